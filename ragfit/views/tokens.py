"""The tokens of one row, drawn from the ids and labels that the trainer gets."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Drawn, Line
from ragfit.draw.html import colours, escape, html_lines
from ragfit.draw.text import visible
from ragfit.draw.view import View
from ragfit.views.batch import rows_in
from ragfit.views.shown import ShownRow
from ragfit.views.token_text import token_texts

Losses = Sequence[float | None]  # what each token of a row costs, in nats
BEGIN, END = 20, 30  # tokens that are seen of a long line, and before loss begins
FOLD = 24  # the fewest tokens worth folding
LINES = 40  # of a stretch without loss; where it has more, several make one
PADDING, PADDING_FOLD, COSTS = 2, 6, 30  # the same of padding; losses told in a log

_ODD = ' style="background:#8883"'  # so thin that it shows on any paper
_LOSS = f'<mark style="{colours(style.LOSS)};border-bottom:2px solid {style.GREEN};padding:1px 0">'
_LOSS_BOXES = f'<mark style="{colours(style.PAPER)}">'
# The tags say without colour what a token is.
_TAGS = {
    "": ("", ""),
    "special": (f'<b style="{colours(style.SPECIAL)};font-weight:600">', "</b>"),
    "marker": (f'<i style="{colours(style.MARKER)};font-style:normal">', "</i>"),
    "boundary": (f'<em style="{colours(style.BAD)};border:1px dashed">', "</em>"),
    "padding": ('<small style="background:#8884;font-size:11px">', "</small>"),
}
_HINT = (
    "Hover over a token for its position, id, label (no loss: -100) and text. "
    "⏎ newline, → tab, · a space that could be overlooked, ⋯ rest of a character."
)


class TokenView(View):
    """One row, token by token: what is read, and what is learned from.

    The rest of a long line without loss is folded.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
        batch: a batch of the collator that holds the row: ids, labels and padding are then those of the batch.
        losses: by name, such as `{"base": […], "tuned": […]}`, what each token costs in nats or None; tokens are shaded
            by the last.
        row: another row than the prepared one (`ragfit.views.row`).

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
        losses: Mapping[str, Losses] | None = None,
        row: ShownRow | None = None,
    ):
        self.row = row = row or ShownRow.of(prepared, index, part)
        self.encoder, self.tokenizer = prepared.encoder, prepared.tokenizer
        self.title, self.findings = f"Tokens of {part} row {index}", row.findings
        added = self.tokenizer.added_tokens_decoder.items()
        self.special = {*self.tokenizer.all_special_ids, *(i for i, token in added if str(token).strip())}

        self.ids, self.labels = row.ids, row.labels
        if batch is not None:
            found = next((one for one in rows_in(batch) if one.tokens == self.ids), None)
            if found is None:
                raise ValueError("The batch does not hold this row. Give a batch that the collator made of it.")
            self.ids, self.labels = found.ids, found.labels
            if "position_ids" in batch:
                self.title += f", at {found.places} of its pack"
        self.loss = [label != IGNORE_INDEX for label in self.labels]
        texts, spans = token_texts(row.ids, row.rendered.text, self.encoder)
        self.padding = [place >= len(texts) for place in range(len(self.ids))]  # which stands behind a row
        self.texts = texts + [self.tokenizer.decode(i) for i in self.ids[len(texts) :]]
        # Which tokens hold the marker, and which one spans the boundary.
        start, stop = row.rendered.marker or (0, 0)
        self.marker = {i for i, (left, right) in enumerate(spans or ()) if left < stop and right > start}
        across = (i for i, (left, right) in enumerate(spans or ()) if left < row.rendered.completion_char < right)
        self.boundary = next((i for i in across if not self.loss[i]), None)

        self.losses = losses or {}
        if any(len(costs) != len(self.ids) for costs in self.losses.values()):
            raise ValueError(f"losses: give a number or None for each of the {len(self.ids)} tokens.")

    @property
    def aside(self) -> Line:
        loss, padding = sum(self.loss), sum(self.padding)
        total = len(self.ids) - padding
        share = loss / max(total, 1)
        more = f" + {padding:,} padding" if padding else ""
        return f"{total:,} tokens{more}, ", Bar(share, width=110), f"{loss:,} with loss ({share:.1%})"

    def blocks(self) -> list[Block]:
        compared = self.row.comparison(self.encoder)
        different = compared if len(compared) > 1 else []  # else PromptView says that they are the same
        return [*self.row.found(), *different, Drawn(self._page, self._log)]

    def _runs(self) -> Iterator[tuple[int, int, str]]:
        """(start, stop, kind): stretches of one kind: "loss", "prompt", "padding", or "folded" in one of the last two.

        A fold begins behind the first words of a long line, so each document can be seen to begin.
        """
        start = 0
        for (padded, loss), run in itertools.groupby(zip(self.padding, self.loss, strict=True)):
            stop = start + len(list(run))
            kind = "padding" if padded else "loss" if loss else "prompt"
            for left, right in self._folds(start, stop, kind):
                yield from ((start, left, kind), (left, right, "folded"))
                start = right
            if start < stop:
                yield start, stop, kind
            start = stop

    def _folds(self, start: int, stop: int, kind: str) -> Iterator[tuple[int, int]]:
        if kind == "loss":
            return
        begin, end, fewest = (PADDING, PADDING, PADDING_FOLD) if kind == "padding" else (BEGIN, END, FOLD)
        lines = [start, *(i + 1 for i in range(start, stop - 1) if "\n" in self.texts[i])]
        for left, right in itertools.pairwise([*lines[:: len(lines) // LINES + 1], stop]):
            left, right = (self._word(i) for i in (left + begin, min(right, stop - end)))
            if right - left >= fewest:
                yield left, right

    def _word(self, i: int) -> int:
        """The next place between words or lines, where there is one near."""
        near = range(max(i, 0), min(i + 8, len(self.ids)))
        return next((k for k in near if self.texts[k][:1].isspace() or self.texts[k - 1].endswith("\n")), i)

    # HTML.

    def _page(self) -> str:
        look = (
            f"{style.MONO};font-size:13px;line-height:1.9;white-space:pre-wrap;overflow-wrap:break-word;margin:8px 0;"
            f"padding:8px 12px;{style.border()};border-radius:6px;{colours(style.PAPER)}"
        )
        return (
            f'<div style="margin:4px 0">{self._legend()}</div><div style="{look}">{"".join(self._stretches())}</div>'
            f'<div style="font-size:12px;{colours(style.FAINT)};margin:3px 0">{_HINT}</div>'
        )

    def _legend(self) -> str:
        """One cue per kind of token, in the order in which they usually come."""
        across = "" if self.boundary is None else f"spans the boundary, no loss: {self.texts[self.boundary]!r}"
        cues = (
            ("no loss", _TAGS[""], True),
            ("special", _TAGS["special"], self.special.intersection(self.ids)),
            ("marker", _TAGS["marker"], self.marker - {self.boundary}),
            (across, _TAGS["boundary"], across),
            ("with loss", (_LOSS, "</mark>"), True),
            ("padding", _TAGS["padding"], any(self.padding)),
        )
        words = [f"{left}{html_lines(word)}{right}" for word, (left, right), there in cues if there]
        if self.losses:
            words.append(f"below a token: its loss in nats ({', then '.join(map(escape, self.losses))})")
        return " &ensp; ".join(words)

    def _stretches(self) -> Iterator[str]:
        for start, stop, kind in self._runs():
            tokens = "".join(map(self._token, range(start, stop)))
            if kind == "loss":
                yield f"{_LOSS_BOXES if self.losses else _LOSS}{tokens}</mark>"
            elif kind == "folded":
                last = escape(visible(" ".join("".join(self.texts[start:stop]).split()[-6:])[-60:]))
                what = "padding tokens" if self.padding[start] else f"tokens without loss … <bdi>{last}</bdi>"
                yield style.details(f"{stop - start:,} more {what}", f"<div>{tokens}</div>")
            else:
                yield tokens

    def _token(self, i: int) -> str:
        text, kinds = self.texts[i], self._kinds(i)
        label = f"label {self.labels[i]}" if self.loss[i] else "no loss"
        shown = "⋯" if not text else "·" * len(text) if text.isspace() and not text.strip(" ") else html_lines(text)
        told = repr(text) if text else f"part {self.tokenizer.convert_ids_to_tokens(self.ids[i])!r}"
        look = _ODD if i % 2 and not kinds else ""  # stripes show where a token ends
        after = "<br>" if shown.endswith("<br>") else ""  # behind its frame or box, which would be drawn on two lines
        shown, below = shown.removesuffix("<br>"), ""
        costs = [values[i] for values in self.losses.values()]
        if any(cost is not None for cost in costs):
            numbers = list(map(_cost, costs))
            look, told = _heat(costs[-1]), f"loss {' → '.join(numbers)}, {told}"
            shown = "·" + shown[1:] if shown[:1] == " " else shown  # a box of its own would lose it
            # Where styles are dropped, they stay on the token's line.
            below = "".join(f'<sub style="display:block;font-size:10px">{number} </sub>' for number in numbers)
        for kind in kinds:
            left, right = _TAGS[kind]
            shown = f"{left}{shown}{right}"
        title = f"{i}: id {self.ids[i]}, {label}, {escape(told)}"
        return f'<bdi title="{title}"{look}>{shown}{below}</bdi>{after}'

    def _kinds(self, i: int) -> list[str]:
        if self.padding[i] or i == self.boundary:
            return ["padding" if self.padding[i] else "boundary"]
        return ["marker"] * (i in self.marker) + ["special"] * (self.ids[i] in self.special)

    # Text.

    def terminal(self, colour: bool = True) -> str:
        """The row without its findings, in a terminal: what has loss green, and the rest dim."""
        return "\n".join([self.head(), *self._log(colour)])

    def _log(self, colour: bool = False) -> Iterator[str]:
        """The row as it runs on, with signs around what has loss; what a page folds is cut."""
        dim, green, normal = ("\x1b[2m", "\x1b[32m", "\x1b[0m") if colour else ("", "", "")
        yield "  Tokens between ▶ and ◀ have loss."
        if self.boundary is not None:
            yield f"  Token {self.boundary} {self.texts[self.boundary]!r} spans the boundary and has no loss."
        row = []
        for start, stop, kind in self._runs():
            text = "".join(map(visible, self.texts[start:stop]))
            padding = "padding" if self.padding[start] else "tokens"
            cut = {"loss": f"▶{text}◀", "folded": f" [… {stop - start:,} {padding} …]\n"}
            row.append(f"{green if kind == 'loss' else dim}{cut.get(kind, text)}{normal}")
        yield "".join(row)
        for name, values in self.losses.items():
            known = [_cost(cost) for cost in values if cost is not None]
            yield f"  loss, {name}: {' '.join(known[:COSTS])}{' …' if len(known) > COSTS else ''}"


def _cost(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:.2f}"


def _heat(cost: float | None) -> str:
    pair = next((pair for limit, pair in style.HEAT if cost is not None and cost <= limit), style.PADDING)
    box = "display:inline-block;vertical-align:top;text-align:center;line-height:1.35;margin:0 1px 4px;padding:1px 3px"
    return f' style="{box};border-radius:3px;{colours(pair)}"'
