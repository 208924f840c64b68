"""The tokens of one row, drawn from the ids and labels that the trainer gets."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from ragfit.data.findings import Finding
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.prompt import Rendered
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Callout, Drawn, Line, Span
from ragfit.draw.html import colours, escape, html_lines
from ragfit.draw.text import short, visible
from ragfit.draw.view import View
from ragfit.views.batch import rows_in
from ragfit.views.token_text import token_texts

Losses = Sequence[float | None]  # what each token of a row costs, in nats

CONTEXT = 30  # tokens without loss left visible on each side of a fold
FOLD = 60  # the fewest tokens worth folding
PADDING_CONTEXT, PADDING_FOLD = 2, 6
LARGE = 4_000  # tokens

_ODD = ' style="background:#8883"'  # so thin that it shows on any paper
_LOSS = f'<mark style="{colours(style.LOSS)};border-bottom:2px solid {style.GREEN};padding:1px 0">'
_LOSS_BOXES = f'<mark style="{colours(style.PAPER)}">'
# The tags say without colour what a token is.
_TAGS = {
    "": ("", ""),
    "special": (f'<b style="{colours(style.SPECIAL)};font-weight:600">', "</b>"),
    "marker": (f'<i style="{colours(style.MARKER)};font-style:normal">', "</i>"),
    "marker special": (f'<b style="{colours(style.MARKER)};font-weight:600"><i style="font-style:normal">', "</i></b>"),
    "boundary": (f'<em style="{colours(style.BOUNDARY)};border:1px dashed">', "</em>"),
    "padding": ('<small style="background:#8884;font-size:11px">', "</small>"),
}
_HINT = (
    "Hover over a token for its position, id, label (no loss: -100) and text. "
    "⏎ newline, → tab, · a space that could be overlooked, ⋯ rest of a character."
)


class TokenView(View):
    """One row, token by token: what is read, and what is learned from.

    Hover over a token for its position, id, label and text. Long stretches without loss are folded.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
        batch: a batch of the collator that holds the row: ids, labels and padding are then those of the batch.
        losses: what each token costs, in nats: a number or None per token, or several of these by name, such as
            `{"base": […], "tuned": […]}`; tokens are shaded by the last.

    Attributes:
        ids, labels: of each token.
        texts: what each token adds to the text; "" where it only continues a character.
        findings: what was found in this row and in all rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        index: int = 0,
        part: str = "train",
        batch: Mapping[str, object] | None = None,
        losses: Losses | Mapping[str, Losses] | None = None,
    ):
        row, report = prepared.at(index, part), prepared.report
        number, rendered = report.part(part).kept[index], prepared.rendered(index, part)
        self.title = f"Tokens of {part} row {index}" + (f", row {number} of its file" if number != index else "")
        self.findings = [found for found in report.findings if not found.rows or (part, number) in found.rows]
        self.tokenizer = prepared.tokenizer
        added = self.tokenizer.added_tokens_decoder.items()
        self.special = {*self.tokenizer.all_special_ids, *(i for i, token in added if str(token).strip())}

        self.ids, self.labels, mask = row["input_ids"], row["labels"], [1] * len(row["input_ids"])
        if batch is not None:
            found = next((one for one in rows_in(batch) if one.tokens == self.ids), None)
            if found is None:
                raise ValueError("The batch does not hold this row. Give a batch that the collator made of it.")
            self.ids, self.labels, mask = found.ids, found.labels, found.mask
            if "position_ids" in batch:
                self.title += f", at {found.places} of its pack"
        self.padding, self.loss = [not kept for kept in mask], [label != IGNORE_INDEX for label in self.labels]
        texts, spans, dropped = token_texts(self.tokenizer, row["input_ids"], rendered.text, prepared.encoder)
        real, known = list(itertools.compress(range(len(self.ids)), mask)), iter(texts)
        self.texts = [next(known) if kept else self.tokenizer.decode(i) for i, kept in zip(self.ids, mask, strict=True)]
        self._dropped = {real[place]: text for place, text in dropped.items()}
        self._find_places(rendered, dict(zip(real, spans, strict=True)) if spans else {})

        losses = losses or {}
        self.losses: Mapping[str, Losses] = losses if isinstance(losses, Mapping) else {"loss": losses}
        for name, costs in self.losses.items():
            if len(costs) != len(self.ids):
                counts = f"{len(costs)} values for {len(self.ids)} tokens"
                raise ValueError(f"losses: {name} has {counts}. Give a number or None for each.")

    def _find_places(self, rendered: Rendered, spans: Mapping[int, tuple[int, int]]) -> None:
        """Which tokens hold the marker, and which one spans the boundary."""
        start, stop = rendered.marker or (0, 0)
        marker = [i for i, (left, right) in spans.items() if left < stop and right > start]
        self.marker = range(marker[0], marker[-1] + 1) if marker else range(0)
        across = (i for i, (left, right) in spans.items() if left < rendered.completion_char < right)
        self.boundary = next((i for i in across if not self.loss[i]), None)

    @property
    def aside(self) -> Line:
        loss, padding = sum(self.loss), sum(self.padding)
        total = len(self.ids) - padding
        share = loss / max(total, 1)
        more = f" + {padding:,} padding" if padding else ""
        return f"{total:,} tokens{more}, ", Bar(share, width=110), f"{loss:,} with loss ({share:.1%})"

    def blocks(self) -> list[Block]:
        return [*map(callout, self.findings), Drawn(self._page, self._log)]

    def _runs(self) -> Iterator[tuple[int, int, str]]:
        """(start, stop, kind): stretches of one kind: "loss", "prompt" or "padding"."""
        start = 0
        for (padded, loss), run in itertools.groupby(zip(self.padding, self.loss, strict=True)):
            stop = start + len(list(run))
            yield start, stop, "padding" if padded else "loss" if loss else "prompt"
            start = stop

    # HTML.

    def _page(self) -> str:
        look = (
            f"{style.MONO};font-size:13px;line-height:1.9;white-space:pre-wrap;overflow-wrap:break-word;margin:8px 0;"
            f"padding:8px 12px;{style.border()};border-radius:6px;{colours(style.PAPER)}"
        )
        tokens = "".join(self._stretches())
        return (
            f'<div style="margin:4px 0">{self._legend()}</div><div style="{look}">{tokens}</div>'
            f'<div style="font-size:12px;{colours(style.FAINT)};margin:3px 0">{_HINT}</div>'
        )

    def _legend(self) -> str:
        """One cue per kind of token, in the order in which they usually come."""
        across = "" if self.boundary is None else f"spans the boundary, no loss: {self.texts[self.boundary]!r}"
        cues = (
            ("no loss", _TAGS[""], True),
            ("special", _TAGS["special"], self.special.intersection(self.ids)),
            ("marker", _TAGS["marker"], {*self.marker} - {self.boundary}),
            (across, _TAGS["boundary"], across),
            ("with loss", (_LOSS, "</mark>"), True),
            ("padding", _TAGS["padding"], any(self.padding)),
        )
        words = [f"{left}{html_lines(word)}{right}" for word, (left, right), there in cues if there]
        if self.losses:
            words.append(f"below a token: its loss in nats ({', then '.join(map(escape, self.losses))})")
        return " &ensp; ".join(words)

    def _stretches(self) -> Iterator[str]:
        # Stripes show where a token ends; in folds of very long rows they would cost more bytes than the tokens.
        stripes = len(self.ids) < LARGE
        for start, stop, kind in self._runs():
            if kind == "loss":
                yield f"{_LOSS_BOXES if self.losses else _LOSS}{self._tokens(start, stop)}</mark>"
                continue
            context, fewest = (PADDING_CONTEXT, PADDING_FOLD) if kind == "padding" else (CONTEXT, FOLD)
            left, right = start + context, stop - context
            if right - left < fewest:
                yield self._tokens(start, stop)
                continue
            folded = f"<div>{self._tokens(left, right, stripes)}</div>"
            yield self._tokens(start, left) + style.details(self._summary(left, right, kind), folded)
            yield self._tokens(right, stop)

    def _summary(self, left: int, right: int, kind: str) -> str:
        if kind == "padding":
            return f"{right - left:,} more padding tokens"
        first = short("".join(self.texts[left : left + 10]), 36).rstrip("…")
        last = short("".join(self.texts[right - 10 : right])[-36:], 36).rstrip("…")
        return f"{right - left:,} tokens without loss: <bdi>{escape(first)}</bdi> … <bdi>{escape(last)}</bdi>"

    def _tokens(self, start: int, stop: int, stripes: bool = True) -> str:
        return "".join(self._token(i, stripes) for i in range(start, stop))

    def _token(self, i: int, stripes: bool) -> str:
        text, kind = self.texts[i], self._kind(i)
        label = f"label {self.labels[i]}" if self.loss[i] else "no loss"
        shown = "⋯" if not text else "·" * len(text) if text.isspace() and not text.strip(" ") else html_lines(text)
        told = repr(text) if text else f"part {self.tokenizer.convert_ids_to_tokens(self.ids[i])!r}"
        look = _ODD if stripes and i % 2 and not kind else ""
        after = "<br>" if shown.endswith("<br>") else ""  # behind its frame or box, which would be drawn on two lines
        shown, below = shown.removesuffix("<br>"), ""
        costs = [values[i] for values in self.losses.values()]
        if any(cost is not None for cost in costs):
            numbers = list(map(_cost, costs))
            look, told = _heat(costs[-1]), f"loss {' → '.join(numbers)}, {told}"
            shown = "·" + shown[1:] if shown[:1] == " " else shown  # a box of its own would lose it
            # Where styles are dropped, they stay on the token's line.
            below = "".join(f'<sub style="display:block;font-size:10px">{number} </sub>' for number in numbers)
        lost = self._dropped.get(i, "")
        before = f'<s title="{escape(repr(lost))}: the tokenizer drops it">{html_lines(lost)}</s>' if lost else ""
        left, right = _TAGS[kind]
        title = f"{i}: id {self.ids[i]}, {label}, {escape(told)}"
        return f'{before}<bdi title="{title}"{look}>{left}{shown}{right}{below}</bdi>{after}'

    def _kind(self, i: int) -> str:
        if self.padding[i]:
            return "padding"
        if i == self.boundary:
            return "boundary"
        kinds = ("marker" if i in self.marker else "", "special" if self.ids[i] in self.special else "")
        return " ".join(filter(None, kinds))

    # Text.

    def terminal(self, colour: bool = True) -> str:
        """The row without its findings, in a terminal: what has loss green, and the rest dim."""
        return "\n".join([self.head(), *self._log(colour)])

    def _log(self, colour: bool = False) -> Iterator[str]:
        """The row as it runs on, with signs around what has loss; long stretches without loss are cut."""
        dim, green, normal = ("\x1b[2m", "\x1b[32m", "\x1b[0m") if colour else ("", "", "")
        yield "  Tokens between ▶ and ◀ have loss."
        if self.boundary is not None:
            yield f"  Token {self.boundary} {self.texts[self.boundary]!r} spans the boundary and has no loss."
        row, costs = [], []
        for start, stop, kind in self._runs():
            texts = list(map(visible, self.texts[start:stop]))
            if kind == "padding":
                row.append(f"{dim}[{stop - start:,} padding]{normal}")
            elif kind == "loss":
                row.append(f"{green}▶{''.join(texts)}◀{normal}")
                costs += [
                    f"  loss, {name}: {' '.join(map(_cost, values[start:stop][:CONTEXT]))}"
                    + (" …" if stop - start > CONTEXT else "")
                    for name, values in self.losses.items()
                ]
            else:
                if stop - start > 2 * CONTEXT:
                    texts = [*texts[:CONTEXT], f"\n[… {stop - start - 2 * CONTEXT:,} tokens …]\n", *texts[-CONTEXT:]]
                row.append(f"{dim}{''.join(texts)}{normal}")
        yield "".join(row)
        yield from costs


def callout(found: Finding) -> Callout:
    """What a finding means and what to do, above a row."""
    all_rows = "" if found.rows else " (all rows)"
    seen = f" Seen: {found.detail}." if found.detail else ""
    name = Span(f"{found.severity.capitalize()}, {found.kind}{all_rows}:")
    return Callout((name, f" {found.meaning}{seen} {found.fix}"), "warning" if found.severity == "warning" else "note")


def _cost(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:.2f}"


def _heat(cost: float | None) -> str:
    pair = next((pair for limit, pair, *_ in style.HEAT if cost is not None and cost <= limit), style.PADDING)
    box = "display:inline-block;vertical-align:top;text-align:center;line-height:1.35;margin:0 1px 4px;padding:1px 3px"
    return f' style="{box};border-radius:3px;{colours(pair)}"'
