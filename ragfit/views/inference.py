"""What the model reads at inference, and what it read in training before the first token that it learns."""

import difflib
import os
from collections.abc import Sequence

from ragfit.data.mask import IGNORE_INDEX, Encoder
from ragfit.draw.blocks import Block, Callout, Note, Span, Table
from ragfit.views.shown import ShownRow

MOST = 12  # differences shown
AROUND = 12  # tokens shown before and after a difference
TOO_MANY = 4_000_000  # pairs of tokens to compare: a second or so


def compared(row: ShownRow, encoder: Encoder) -> tuple[str, list[tuple[str, str, str, str]]]:
    """How the ids of the inference prompt and those before the first label compare.

    Returns:
        (a sentence, differences): each is the text before it, what stands only at inference, what stands only in
        training, and the text after it.
    """
    bos = row.ids[: max(0, len(row.ids) - len(encoder.spans(row.rendered.text)[0]))]  # which is not in the text
    prompt = [*bos, *encoder.spans(row.rendered.prompt)[0]]
    first = next((i for i, label in enumerate(row.labels) if label != IGNORE_INDEX), len(row.ids))
    read = row.ids[:first]
    decode = encoder.tokenizer.decode
    if prompt == read:
        return f"the same {len(prompt):,} tokens, ending in {decode(prompt[-6:])!r}.", []
    if row.ids[: len(prompt)] == prompt and len(prompt) > first:
        return f"the same tokens, the last {len(prompt) - first:,} of which have loss: {decode(prompt[first:])!r}.", []
    said = "they differ: the model learns to continue something else than it is given."
    return said, [tuple(map(decode, parts)) for parts in _differences(prompt, read)]


def _differences(old: Sequence[int], new: Sequence[int]) -> list[tuple[Sequence[int], ...]]:
    start = len(os.path.commonprefix([old, new]))
    a, b = old[start:], new[start:]
    codes = [("replace", 0, len(a), 0, len(b))]
    if len(a) * len(b) < TOO_MANY:
        codes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return [
        (new[max(0, start + k - AROUND) : start + k], a[i:j], b[k:m], b[m : m + AROUND])
        for tag, i, j, k, m in codes
        if tag != "equal"
    ]


def comparison(row: ShownRow, encoder: Encoder) -> list[Block]:
    """The same as blocks."""
    said, found = compared(row, encoder)
    name = Span("Inference prompt and what is read before loss begins:")
    if not found:
        return [Callout((name, f" {said}"), "good")]
    rows = [[Span(text, "mono") for text in parts] for parts in found[:MOST]]
    table = Table(["after", "only at inference", "only in training", "before"], rows, widths=["25%"] * 4)
    more = [Note(f"and {len(found) - MOST} more differences")] if len(found) > MOST else []
    return [Callout((name, f" {said}")), table, *more]
