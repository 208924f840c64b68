"""Any row of the data under any settings, prepared by the code of `ragfit.prepare`: what training would see."""

from ragfit.data.prepare import Preparer, Settings
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Callout, Note, Span
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.views.prompt import PromptView
from ragfit.views.shown import ShownRow
from ragfit.views.tokens import TokenView

# Findings that compare rows with each other; a row alone does not show them, and no setting changes them.
_BETWEEN_ROWS = ("duplicate rows", "row in train and dev")


def settings_of(prepared: Prepared) -> Settings:
    """The settings that rows were prepared with."""
    model, renderer = prepared.cfg.model, prepared.renderer
    return Settings(
        renderer.marker,
        prepared.instruction or "",
        bool(model.get("instruction_in_prompt")),
        renderer.template or "",
        model.get("max_sequence_len"),
        model.get("over_length") or "drop",
    )


class RowView(View):
    """Any row of the data, trained on or not, prepared as `ragfit.prepare` does it, with what was found in it.

    A row that would be dropped is as it would be without `max_sequence_len`.

    Args:
        prepared: of `ragfit.prepare`.
        number: the row's number in its file.
        part: "train" or "dev".
        show: "prompt" for a `PromptView`, "tokens" for a `TokenView`.
        settings: a `Settings` to prepare the row with; those of `prepared` where None.

    Attributes:
        error: why the row cannot be prepared with these settings, or "".
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
        self.error, self.row, self.findings, self.inner = "", None, [], None
        settings, own = settings or settings_of(prepared), (part, number)
        work = Preparer(prepared.cfg, prepared.renderer, prepared.sources)
        try:
            rendered, masked, findings = work.one(number, part, settings)
        except RagfitError as error:
            self.error = str(error)
        else:
            findings += [one for one in prepared.report.findings if one.kind in _BETWEEN_ROWS and own in one.rows]
            self.row = ShownRow(rendered, masked.input_ids, masked.labels(), findings, settings.instruction)
            self.inner = (PromptView if show == "prompt" else TokenView)(prepared, number, part, row=self.row)
            self.aside, self.findings = self.inner.aside, self.row.findings
        self.trained = bool(self.row) and not any(found.kind.startswith("dropped: ") for found in self.findings)

    def blocks(self) -> list[Block]:
        if not self.inner:
            return [Callout((Span("This row cannot be prepared with these settings:"), f" {self.error}"), "bad")]
        dropped = Callout((Span("Not trained on:"), " the row is dropped. Below is the row as it is."))
        return [*([] if self.trained else [dropped]), *self.inner.blocks()]


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
