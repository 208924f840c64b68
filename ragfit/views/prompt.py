"""One row as text, part by part: what the template, the instruction and the row each bring."""

import difflib
import re
from collections.abc import Iterator, Sequence

from ragfit.data.findings import became
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.prompt import Rendered
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Block, Callout, Drawn, Note, Span, Table
from ragfit.draw.html import colours
from ragfit.draw.text import counted, visible
from ragfit.draw.view import View
from ragfit.views.token_text import token_texts

Region = tuple[str, int, int]  # name, first character, one past the last
Difference = tuple[str, str, str, str]  # text before it, only at inference, only in training, text after it

_LOOK = {
    "template": style.SPECIAL,
    "instruction": style.NOTE,
    "prompt": style.QUIET,
    "marker": style.MARKER,
    "output": style.LOSS,
    "end of turn": style.LOSS,
}
AROUND = 60  # characters shown before and after a difference
MOST = 12  # differences shown


class PromptView(View):
    """The training text of one row by parts, and how it compares with the prompt at inference.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".

    Attributes:
        parts: (name, text, tokens, tokens with loss) in their order; the counts are None for a slow tokenizer.
        comparison: how the training text compares with the prompt at inference, a sentence.
    """

    def __init__(self, prepared: Prepared, index: int = 0, part: str = "train"):
        self.title = f"Prompt of {part} row {index}"
        row, rendered = prepared.at(index, part), prepared.rendered(index, part)
        ids, loss = row["input_ids"], [label != IGNORE_INDEX for label in row["labels"]]
        self.aside = f"{len(ids):,} tokens, {sum(loss):,} with loss"
        _, spans, _ = token_texts(prepared.tokenizer, ids, rendered.text, prepared.encoder)
        system = prepared.renderer.system
        regions = _regions(rendered, prepared.instruction if system in ("kept", "prompt") else "")
        self.parts = _count(regions, spans, loss, rendered.text)
        # Behind a token that spans the boundary, loss begins later than the completion.
        first = spans[loss.index(True)][0] if spans else 0
        self.comparison, self.differences = _compare(rendered, max(first, rendered.completion_char))
        self.notes = []
        if system == "dropped":
            self.notes.append(
                "The instruction is not in the prompt: the template drops it. Set model.instruction_in_prompt=true."
            )
        if cut := prepared.report.part(part).cut.get(prepared.report.part(part).kept[index]):
            self.notes.append(f"The row's prompt was cut to fit model.max_sequence_len: {cut}.")
        if rendered.changed:
            what = became(*rendered.changed)
            self.notes.append(f"The template changed the output: {what}. What it writes is what is learned.")

    def blocks(self) -> list[Block]:
        compared = (Span("Inference prompt and training text:"), f" {self.comparison}")
        blocks = [
            *map(Callout, self.notes),
            Drawn(self._parts_html, self._parts_lines),
            Callout(compared, "warning" if self.differences else "good"),
        ]
        if self.differences:
            rows = [[Span(text, "mono") for text in found] for found in self.differences[:MOST]]
            blocks.append(Table(["after", "only at inference", "only in training", "before"], rows, widths=["25%"] * 4))
        if len(self.differences) > MOST:
            blocks.append(Note(f"and {len(self.differences) - MOST} more differences"))
        return blocks

    def _parts_html(self) -> str:
        rows = []
        look = f"padding:6px 10px;border:0;{style.border('bottom')};vertical-align:top;line-height:1.6;text-align:left"
        for name, text, tokens, loss in self.parts:
            pair = _LOOK[name]
            learned = f"<br><u>{'all' if loss == tokens else f'{loss:,}'} with loss</u>" if loss else ""
            side = f"{colours(style.PAPER)};border-left:4px solid {style.ACCENTS[pair]};width:112px;font-size:12px"
            paper = colours(style.LOSS_PAPER if loss else style.PAPER)
            rows.append(
                f'<tr><td style="{look};{side}">{style.badge(name, pair)}<br>{_count_of(tokens)}{learned}</td>'
                f'<td style="{look};{paper};padding:0">{style.mono(text)}</td></tr>'
            )
        look = f"width:100%;border-collapse:collapse;{style.border()};margin:8px 0;table-layout:fixed"
        return f'<table style="{look}"><tbody>{"".join(rows)}</tbody></table>'

    def _parts_lines(self) -> Iterator[str]:
        for name, text, tokens, loss in self.parts:
            counts = [_count_of(tokens), f"{loss:,} with loss" if loss else ""]
            yield f"--- {name} ({', '.join(filter(None, counts))})"
            yield visible(text).removesuffix("\n")


def _count_of(tokens: int | None) -> str:
    return {None: "not counted", 0: "in the token before"}.get(tokens) or counted(tokens, "token")


def _regions(row: Rendered, instruction: str) -> list[Region]:
    """The text from its first to its last character, without gaps."""
    text, (start, end) = row.text, row.output
    known = []
    before = row.user[0] if row.user else start
    written = next((said for said in (instruction, instruction.strip()) if said and said in text[:before]), None)
    if written:
        at = text.index(written)
        known.append(("instruction", at, at + len(written)))
    if row.user:
        known.append(("prompt", *row.user))
    if row.marker and row.marker[0] >= (row.user[1] if row.user else 0):
        known.append(("marker", *row.marker))
    known += [("output", start, end), ("end of turn", end, row.end_char)]
    regions, at = [], 0
    for name, left, right in known:
        if left > at:
            regions.append(("template" if row.user or name == "output" else "prompt", at, left))
        regions.append((name, max(left, at), right))
        at = right
    regions.append(("template", at, len(text)))
    return [region for region in regions if region[2] > region[1]]


def _count(
    regions: list[Region], spans: Sequence[tuple[int, int]] | None, loss: list[bool], text: str
) -> list[tuple[str, str, int | None, int | None]]:
    """(name, text, tokens, tokens with loss) of each region; a token counts where it begins."""
    if spans is None:
        return [(name, text[left:right], None, None) for name, left, right in regions]
    starts = [(min(start, len(text) - 1), with_loss) for (start, _), with_loss in zip(spans, loss, strict=True)]
    inside = [[with_loss for start, with_loss in starts if left <= start < right] for _, left, right in regions]
    pairs = zip(regions, inside, strict=True)
    return [(name, text[left:right], len(found), sum(found)) for (name, left, right), found in pairs]


def _compare(row: Rendered, learned: int) -> tuple[str, list[Difference]]:
    """How the prompt at inference and the training text compare, in a sentence, and where they differ.

    Args:
        learned: the first character with loss.
    """
    if row.matches:
        if len(row.prompt) == learned:
            end = row.prompt[-24:]
            return f"identical up to the completion ({len(row.prompt):,} characters, ending in {end!r}).", []
        more = row.text[len(row.prompt) : row.output[0]]
        if more:
            which = "with loss" if learned <= len(row.prompt) else "without loss"
            return f"identical, then the training text has {more!r} before the output, {which}.", []
        ends = sorted((learned, row.output[0]))
        also = "has loss too" if learned < row.output[0] else "has no loss"
        same = f"identical up to the output ({len(row.prompt):,} characters)"
        return f"{same}; the {row.text[slice(*ends)]!r} at this boundary {also}.", []
    old, new = row.prompt, row.text[: row.output[0]]
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    old_words, new_words = _words(old[first:]), _words(new[first:])
    found = []
    codes = [("replace", 0, len(old_words), 0, len(new_words))]
    if len(old_words) * len(new_words) < 4_000_000:  # a second or so
        codes = difflib.SequenceMatcher(None, old_words, new_words, autojunk=False).get_opcodes()
    for tag, a, b, c, d in codes:
        if tag != "equal":
            before = new[: first + len("".join(new_words[:c]))][-AROUND:]
            after = "".join(new_words[d : d + 8])[:AROUND]
            found.append((f"…{before}", "".join(old_words[a:b])[:2000], "".join(new_words[c:d])[:2000], f"{after}…"))
    return f"they differ from character {first:,}: the model learns to continue another text than it is given.", found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
