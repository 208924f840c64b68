"""Any row of the data under any settings, prepared by the code of `ragfit.prepare`: what training would see."""

import math
from dataclasses import dataclass, replace

from ragfit.data.fit import Fitter
from ragfit.data.prepare import Part, Preparer
from ragfit.data.prompt import Renderer
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Callout, Note, Span
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.views.prompt import PromptView
from ragfit.views.shown import ShownRow
from ragfit.views.tokens import TokenView, callout

# Findings that compare rows with each other; a row alone does not show them, and no setting changes them.
_BETWEEN_ROWS = ("duplicate rows", "row in train and dev")


@dataclass(frozen=True)
class Settings:
    """What decides how a row becomes text and labels; `instruction` and `template` are texts, not paths."""

    completion_start: str = ""
    max_sequence_len: int | None = None
    over_length: str = "drop"
    instruction: str = ""
    template: str = ""
    instruction_in_prompt: bool = False

    @classmethod
    def of(cls, prepared: Prepared) -> "Settings":
        """The settings that rows were prepared with."""
        model, renderer = prepared.cfg.model, prepared.renderer
        return cls(
            renderer.marker,
            model.get("max_sequence_len"),
            model.get("over_length") or "drop",
            prepared.instruction or "",
            renderer.template or "",
            bool(model.get("instruction_in_prompt")),
        )


def prepare_row(prepared: Prepared, number: int, part: str, settings: Settings) -> tuple[ShownRow | None, bool, list]:
    """One row, prepared as `ragfit.prepare` does it, under other settings.

    Args:
        number: the row's number in its file.

    Returns:
        (row, whether it is trained on, findings): a row that would be dropped as too long is as it would be without
        `max_sequence_len`; None where it would be dropped for another reason.

    Raises:
        RagfitError: as `ragfit.prepare`.
    """
    renderer = Renderer(
        prepared.tokenizer,
        settings.instruction if settings.instruction.strip() else "",
        settings.template if settings.template.strip() else None,
        settings.instruction_in_prompt,
        settings.completion_start,
        prepared.renderer.stop_ids,
    )
    findings = None
    for limit in (settings.max_sequence_len or math.inf, math.inf):
        work, result = Preparer(prepared.cfg, renderer), Part(rows=1)
        work.fitter = Fitter(renderer, work.encoder, limit, settings.over_length)
        kept = work.prepare_row(part, prepared.sources[part], number, result)
        findings = work.checks.findings() if findings is None else findings
        if kept or not result.rejected_lengths:
            break
    own = (part, number)
    findings += [found for found in prepared.report.findings if found.kind in _BETWEEN_ROWS and own in found.rows]
    trained = not any(found.kind.startswith("dropped") for found in findings)
    if not kept:
        return None, trained, findings
    query, output, _ = replace(prepared, report=replace(prepared.report, **{part: result})).row(number, part)
    rendered = renderer.render(query, output)
    return ShownRow(rendered, kept[0].input_ids, kept[0].labels(), findings, renderer, work.encoder), trained, findings


class RowView(View):
    """Any row of the data, trained on or not, with what was found in it.

    Args:
        prepared: of `ragfit.prepare`.
        number: the row's number in its file.
        part: "train" or "dev".
        show: "prompt" for a `PromptView`, "tokens" for a `TokenView`.
        settings: a `Settings` to prepare the row with; those of `prepared` where None.

    Attributes:
        error: why the settings cannot be used, or "".
        trained: whether the row would be trained on.
        row: a `ShownRow`, or None.
        findings: what was found in the row, and in all rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        number: int,
        part: str = "train",
        show: str = "prompt",
        settings: Settings | None = None,
    ):
        self.title = f"{'Prompt' if show == 'prompt' else 'Tokens'} of {part}, row {number} of its file"
        self.error, self.row, self.trained, self.findings = "", None, False, []
        try:
            settings = settings or Settings.of(prepared)
            self.row, self.trained, self.findings = prepare_row(prepared, number, part, settings)
        except RagfitError as error:
            self.error = str(error)
        view = PromptView if show == "prompt" else TokenView
        self.inner = view(prepared, number, part, row=self.row) if self.row else None
        self.aside = self.inner.aside if self.inner else ""

    def blocks(self) -> list[Block]:
        if self.error:
            return [Callout((Span("These settings cannot be used:"), f" {self.error}"), "bad")]
        below = " Below is the row as it is." if self.inner else ""
        dropped = [] if self.trained else [Callout((Span("Not trained on:"), f" the row is dropped.{below}"))]
        return [*dropped, *(self.inner.blocks() if self.inner else map(callout, self.findings))]


class NoteView(View):
    """A sentence or two where there is nothing else to see."""

    def __init__(self, title: str, text: str):
        self.title, self.said = title, text

    def blocks(self) -> list[Block]:
        return [Note(self.said)]


def rows_with_findings(prepared: Prepared, show: str = "prompt", most: int = 6) -> list[View]:
    """A `RowView` of the first row of each finding, at most `most`; findings that share a row share its view."""
    rows = {}
    for finding in prepared.report.findings:
        if finding.rows and not any(row in rows for row in finding.rows):
            rows[finding.rows[0]] = None
    if not rows:
        return [NoteView("Rows with findings", "None: no finding concerns individual rows.")]
    return [RowView(prepared, number, part, show) for part, number in list(rows)[:most]]
