"""One row as the views of a row take it: its text, its ids and labels, what was found in it, how inference reads it."""

import difflib
from dataclasses import dataclass

from ragfit.data.findings import Finding
from ragfit.data.mask import IGNORE_INDEX, Encoder
from ragfit.data.prompt import Rendered
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Callout, Span, Table

AROUND = 12  # tokens shown before and after a difference


@dataclass(frozen=True)
class ShownRow:
    """A row, trained on or not.

    Attributes:
        rendered: the text.
        ids, labels: of each token, as the trainer gets them.
        findings: what was found in this row and in all rows.
        instruction: the text of the instruction that it was rendered with.
    """

    rendered: Rendered
    ids: list[int]
    labels: list[int]
    findings: list[Finding]
    instruction: str

    @classmethod
    def of(cls, prepared: Prepared, index: int, part: str) -> "ShownRow":
        """The prepared row `index` of a part, or a ConfigError where there is none."""
        row, report = prepared.at(index, part), prepared.report
        own = (part, report.part(part).kept[index])
        findings = [found for found in report.findings if not found.rows or own in found.rows]
        rendered, instruction = prepared.rendered(index, part), prepared.instruction or ""
        return cls(rendered, row["input_ids"], row["labels"], findings, instruction)

    def found(self) -> list[Block]:
        """What each finding means and what to do."""
        blocks = []
        for one in self.findings:
            name = f"{one.severity.capitalize()}, {one.kind}{'' if one.rows else ' (all rows)'}:"
            seen = f" Seen: {one.detail}." if one.detail else ""
            tone = "warning" if one.severity == "warning" else "note"
            blocks.append(Callout((Span(name), f" {one.meaning}{seen} {one.fix}"), tone))
        return blocks

    def compared(self, encoder: Encoder) -> tuple[str, list[tuple[str, str, str, str]]]:
        """How the ids of the inference prompt and those before the first label compare.

        Returns:
            (a sentence, differences): each is the text before it, what stands only at inference, what stands only in
            training, and the text after it.
        """
        bos = self.ids[: max(0, len(self.ids) - len(encoder.spans(self.rendered.text)[0]))]  # which is not in the text
        prompt = [*bos, *encoder.spans(self.rendered.prompt)[0]]
        first = next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.ids))
        read, text = self.ids[:first], encoder.tokenizer.decode
        if prompt == read:
            return f"the same {len(prompt):,} tokens, ending in {text(prompt[-6:])!r}.", []
        if self.ids[: len(prompt)] == prompt and len(prompt) > first:
            return (
                f"the same tokens, the last {len(prompt) - first:,} of which have loss: {text(prompt[first:])!r}.",
                [],
            )
        found = [
            (text(read[max(0, c - AROUND) : c]), text(prompt[a:b]), text(read[c:d]), text(read[d : d + AROUND]))
            for tag, a, b, c, d in difflib.SequenceMatcher(None, prompt, read).get_opcodes()
            if tag != "equal"
        ]
        return "they differ: the model learns to continue something else than it is given.", found

    def comparison(self, encoder: Encoder) -> list[Block]:
        """The same as blocks: a sentence, and a table where there are differences."""
        said, found = self.compared(encoder)
        tone = "warning" if found else "good"
        told = Callout((Span("Inference prompt and what is read before loss begins:"), f" {said}"), tone)
        rows = [[Span(text, "mono") for text in parts] for parts in found]
        table = Table(["after", "only at inference", "only in training", "before"], rows, widths=["25%"] * 4)
        return [told, table] if found else [told]
