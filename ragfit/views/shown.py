"""One row as the views of a row take it: its text, its ids and labels, and what was found in it."""

from dataclasses import dataclass

from ragfit.data.findings import Finding
from ragfit.data.prompt import Rendered
from ragfit.data.report import Prepared


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
