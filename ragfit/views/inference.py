"""What the model reads at inference, and what it read in training before the first token that it learns."""

import difflib

from ragfit.data.mask import IGNORE_INDEX, Encoder
from ragfit.draw.blocks import Block, Callout, Span, Table
from ragfit.views.shown import ShownRow

AROUND = 12  # tokens shown before and after a difference


def compared(row: ShownRow, encoder: Encoder) -> tuple[str, list[tuple[str, str, str, str]]]:
    """How the ids of the inference prompt and those before the first label compare.

    Returns:
        (a sentence, differences): each is the text before it, what stands only at inference, what stands only in
        training, and the text after it.
    """
    bos = row.ids[: max(0, len(row.ids) - len(encoder.spans(row.rendered.text)[0]))]  # which is not in the text
    prompt = [*bos, *encoder.spans(row.rendered.prompt)[0]]
    first = next((i for i, label in enumerate(row.labels) if label != IGNORE_INDEX), len(row.ids))
    read, decode = row.ids[:first], encoder.tokenizer.decode
    if prompt == read:
        return f"the same {len(prompt):,} tokens, ending in {decode(prompt[-6:])!r}.", []
    if row.ids[: len(prompt)] == prompt and len(prompt) > first:
        return f"the same tokens, the last {len(prompt) - first:,} of which have loss: {decode(prompt[first:])!r}.", []
    found = [
        (decode(read[max(0, c - AROUND) : c]), decode(prompt[a:b]), decode(read[c:d]), decode(read[d : d + AROUND]))
        for tag, a, b, c, d in difflib.SequenceMatcher(None, prompt, read).get_opcodes()
        if tag != "equal"
    ]
    return "they differ: the model learns to continue something else than it is given.", found


def comparison(row: ShownRow, encoder: Encoder) -> list[Block]:
    """The same as blocks."""
    said, found = compared(row, encoder)
    told = Callout(
        (Span("Inference prompt and what is read before loss begins:"), f" {said}"), "warning" if found else "good"
    )
    rows = [[Span(text, "mono") for text in parts] for parts in found]
    table = Table(["after", "only at inference", "only in training", "before"], rows, widths=["25%"] * 4)
    return [told, table] if found else [told]
