"""The tokens of one row, drawn from the ids and labels that the trainer gets."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Drawn
from ragfit.draw.html import colours, escape, html_lines
from ragfit.draw.text import listed, visible
from ragfit.draw.view import View
from ragfit.views.batch import rows_in
from ragfit.views.shown import ShownRow
from ragfit.views.token_text import token_texts

Losses = Sequence[float | None]  # what each token of a row costs, in nats
# Of each kind of token: how many are seen where a long line begins and where a stretch ends, the fewest worth folding.
SEEN = {"read": (20, 30, 24), "loss": (0, 0, math.inf), "padding": (2, 2, 6)}
LINES = 40  # of a stretch; where it has more, several make one

# The tags say without colour what a token is.
_TAGS = {
    "special": (f'<b style="{colours(style.SPECIAL)};font-weight:600">', "</b>"),
    "marker": (f'<i style="{colours(style.MARKER)};font-style:normal">', "</i>"),
    "boundary": (f'<em style="{colours(style.BAD)};border:1px dashed">', "</em>"),
    "loss": (f'<mark style="{colours(style.LOSS)};border-bottom:2px solid {style.GREEN};padding:1px 0">', "</mark>"),
    "costs": (f'<mark style="{colours(style.PAPER)}">', "</mark>"),  # around boxes with colours of their own
    "padding": ('<small style="background:#8884;font-size:11px">', "</small>"),
}
_BOX = "display:inline-block;vertical-align:top;text-align:center;line-height:1.35;margin:0 1px 4px;padding:1px 3px"
_HINT = "Hover over a token for its position, id, label and text. ⏎ newline, → tab, · space, ⋯ rest of a character."


class TokenView(View):
    """One row, token by token: what is read, and what is learned from. The rest of a long line without loss is folded.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
        batch: a batch of the collator that holds the row: ids, labels and padding are then those of the batch.
        losses: by name, such as `{"base": […], "tuned": […]}`, what each token costs in nats or None; tokens are shaded
            by the last.
        row: another row than the prepared one (`ragfit.views.row`).

    Attributes:
        ids, labels, kinds: of each token; its kind is "read", "loss" or "padding".
        texts: what each token adds to the text; "" where it only continues a character.
        findings: what was found in this row and in all rows.

    Raises:
        ValueError: the batch does not hold the row, or the losses are not one for each token.
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
        self.ids, self.labels, self.losses = row.ids, row.labels, losses or {}
        if batch is not None:
            found = next((one for one in rows_in(batch) if one.tokens == row.ids), None)
            if found is None:
                raise ValueError("The batch does not hold this row. Give a batch that the collator made of it.")
            self.ids, self.labels = found.ids, found.labels
            self.title += f", at {found.places} of its pack" if "position_ids" in batch else ""
        if any(len(costs) != len(self.ids) for costs in self.losses.values()):
            raise ValueError(f"losses: give a number or None for each of the {len(self.ids)} tokens.")
        texts, spans = token_texts(row.ids, row.rendered.text, self.encoder)
        padding = len(self.ids) - len(texts)
        self.texts = texts + [self.tokenizer.decode(i) for i in self.ids[len(texts) :]]
        self.kinds = ["read" if label == IGNORE_INDEX else "loss" for label in self.labels[: len(texts)]]
        self.kinds += ["padding"] * padding
        loss, more = self.kinds.count("loss"), f" + {padding:,} padding" if padding else ""
        share = loss / max(len(texts), 1)
        self.aside = f"{len(texts):,} tokens{more}, ", Bar(share, width=110), f"{loss:,} with loss ({share:.1%})"

        self.special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if str(token).strip()}
        start, stop = row.rendered.marker or (0, 0)
        self.marker = {i for i, (left, right) in enumerate(spans or ()) if left < stop and right > start}
        across = (i for i, (left, right) in enumerate(spans or ()) if left < row.rendered.completion_char < right)
        self.boundary = next((i for i in across if self.kinds[i] == "read"), None)

    def blocks(self) -> list[Block]:
        compared = self.row.comparison(self.encoder)
        different = compared if len(compared) > 1 else []  # else PromptView says that they are the same
        return [*self.row.found(), *different, Drawn(self._page, self._log)]

    def _runs(self) -> Iterator[tuple[str, int, int, bool]]:
        """(kind, start, stop, whether it is folded) of stretches of one kind.

        A fold begins behind the first words of a long line, so each document can be seen to begin.
        """
        stop = 0
        for kind, run in itertools.groupby(self.kinds):
            at, stop = stop, stop + len(list(run))
            begin, end, fewest = SEEN[kind]
            lines = [at, *(i + 1 for i in range(at, stop - 1) if "\n" in self.texts[i])]
            for left, right in itertools.pairwise([*lines[:: len(lines) // LINES + 1], stop]):
                left, right = self._word(left + begin), self._word(max(at, min(right, stop - end)))
                if right - left >= fewest:
                    yield from ((kind, at, left, False), (kind, left, right, True))
                    at = right
            yield kind, at, stop, False

    def _word(self, i: int) -> int:
        """The next place between words or lines, where there is one near."""
        near = range(i, min(i + 8, len(self.ids)))
        return next((k for k in near if self.texts[k][:1].isspace() or self.texts[k - 1].endswith("\n")), i)

    # HTML.

    def _page(self) -> str:
        drawn = []
        for kind, start, stop, folded in self._runs():
            tokens = "".join(map(self._token, range(start, stop)))
            if folded:
                last = escape(visible(" ".join("".join(self.texts[start:stop]).split()[-6:])[-60:]))
                what = "padding tokens" if kind == "padding" else f"tokens without loss … <bdi>{last}</bdi>"
                tokens = style.details(f"{stop - start:,} more {what}", f"<div>{tokens}</div>")
            left, right = _TAGS["costs" if self.losses else "loss"] if kind == "loss" else ("", "")
            drawn.append(f"{left}{tokens}{right}" if tokens else "")
        look = f"font-size:13px;line-height:1.9;white-space:pre-wrap;overflow-wrap:break-word;margin:8px 0;{style.MONO}"
        look += f";padding:8px 12px;{style.border()};border-radius:6px;{colours(style.PAPER)}"
        hint = f'<div style="font-size:12px;{colours(style.FAINT)};margin:3px 0">{_HINT}</div>'
        return f'<div style="margin:4px 0">{self._legend()}</div><div style="{look}">{"".join(drawn)}</div>{hint}'

    def _legend(self) -> str:
        """One cue per kind of token, in the order in which they usually come."""
        across = "" if self.boundary is None else f"spans the boundary, no loss: {self.texts[self.boundary]!r}"
        there = {tag for i in range(len(self.ids)) for tag in (self.kinds[i], *self._tags(i))}
        cues = {"special": "special", "marker": "marker", "boundary": across, "loss": "with loss", "padding": "padding"}
        words = ["no loss", *(html_lines(word).join(_TAGS[tag]) for tag, word in cues.items() if tag in there)]
        if self.losses:
            words.append(f"below a token: its loss in nats ({', then '.join(map(escape, self.losses))})")
        return " &ensp; ".join(words)

    def _tags(self, i: int) -> list[str]:
        if self.kinds[i] == "padding" or i == self.boundary:
            return ["boundary" if i == self.boundary else "padding"]
        return ["marker"] * (i in self.marker) + ["special"] * (self.ids[i] in self.special)

    def _token(self, i: int) -> str:
        text, tags, below = self.texts[i], self._tags(i), ""
        shown = "⋯" if not text else "·" * len(text) if not text.strip(" ") else html_lines(text)
        told = repr(text) if text else f"part {self.tokenizer.convert_ids_to_tokens(self.ids[i])!r}"
        look = ' style="background:#8883"' if i % 2 and not tags else ""  # thin stripes show where a token ends
        after = "<br>" if shown.endswith("<br>") else ""  # behind its frame or box, which would be drawn on two lines
        shown, costs = shown.removesuffix("<br>"), [values[i] for values in self.losses.values()]
        if any(cost is not None for cost in costs):
            numbers = ["–" if cost is None else f"{cost:.2f}" for cost in costs]
            heat = (pair for most, pair in style.HEAT if costs[-1] is not None and costs[-1] <= most)
            look = f' style="{_BOX};{colours(next(heat, style.PADDING))}"'
            told = f"loss {' → '.join(numbers)}, {told}"
            shown = "·" + shown[1:] if shown[:1] == " " else shown  # a box of its own would lose it
            # Where styles are dropped, they stay on the token's line.
            below = "".join(f'<sub style="display:block;font-size:10px">{number} </sub>' for number in numbers)
        for tag in tags:
            shown = shown.join(_TAGS[tag])
        label = f"label {self.labels[i]}" if self.kinds[i] == "loss" else "no loss"
        return f'<bdi title="{i}: id {self.ids[i]}, {label}, {escape(told)}"{look}>{shown}{below}</bdi>{after}'

    # Text.

    def terminal(self, colour: bool = True) -> str:
        """The row without its findings, in a terminal: what has loss green, and the rest dim."""
        return "\n".join([self.head(), *self._log(colour)])

    def _log(self, colour: bool = False) -> Iterator[str]:
        """The row as it runs on, with signs around what has loss; what a page folds is cut."""
        yield "  Tokens between ▶ and ◀ have loss."
        row = ""
        for kind, start, stop, folded in self._runs():
            text = "".join(map(visible, self.texts[start:stop]))
            if folded:
                text = f" [… {stop - start:,} {'padding' if kind == 'padding' else 'tokens'} …]\n"
            text = f"▶{text}◀" if kind == "loss" else text
            row += f"\x1b[{32 if kind == 'loss' else 2}m{text}\x1b[0m" if colour else text
        yield row
        for name, values in self.losses.items():
            yield f"  loss, {name}: {listed([f'{cost:.2f}' for cost in values if cost is not None], 30)}"
