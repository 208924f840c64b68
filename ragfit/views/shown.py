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
    """A row, trained on or not: its text, its ids and labels as the trainer gets them, its findings and those of all
    rows, and the text of the instruction that it was rendered with."""

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
            blocks.append(Callout((Span(name), f" {one.meaning}{seen} {one.fix}"), one.severity))
        return blocks

    def comparison(self, encoder: Encoder) -> list[Block]:
        """How the ids of the inference prompt and those before the first label compare; a table where they differ."""
        bos = self.ids[: max(0, len(self.ids) - len(encoder.spans(self.rendered.text)[0]))]  # which is not in the text
        prompt, text = [*bos, *encoder.spans(self.rendered.prompt)[0]], encoder.tokenizer.decode
        first = next((i for i, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.ids))
        read, rows = self.ids[:first], []
        if prompt == read:
            said = f"the same {len(prompt):,} tokens, ending in {text(prompt[-6:])!r}."
        elif self.ids[: len(prompt)] == prompt and len(prompt) > first:
            said = f"the same tokens, the last {len(prompt) - first:,} of which have loss: {text(prompt[first:])!r}."
        else:
            said = "they differ: the model learns to continue something else than it is given."
            for tag, a, b, c, d in difflib.SequenceMatcher(None, prompt, read).get_opcodes():
                parts = read[max(0, c - AROUND) : c], prompt[a:b], read[c:d], read[d : d + AROUND]
                rows += [[Span(text(part), "mono") for part in parts]] if tag != "equal" else []
        head = ["after", "only at inference", "only in training", "before"]
        table = [Table(head, rows, widths=["25%"] * 4)] if rows else []
        told = (Span("Inference prompt and what is read before loss begins:"), f" {said}")
        return [Callout(told, "warning" if rows else "good"), *table]
