"""Any row of the data under any settings, prepared by the code of `ragfit.prepare`: what training would see."""

from ragfit.data.prepare import Preparer, Settings
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Callout, Span
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.views.prompt import PromptView
from ragfit.views.shown import ShownRow
from ragfit.views.tokens import TokenView


def settings_of(prepared: Prepared) -> Settings:
    model, renderer = prepared.cfg.model, prepared.renderer
    prompt = renderer.marker, prepared.instruction or "", bool(model.get("instruction_in_prompt"))
    return Settings(*prompt, renderer.template or "", model.get("max_sequence_len"), model.get("over_length") or "drop")


class RowView(View):
    """Any row of the data, with what was found in it; one that would be dropped is as it would be without the limit.

    Args:
        prepared: of `ragfit.prepare`.
        number, part: the row's number in its file, and "train" or "dev".
        show: "prompt" for a `PromptView`, "tokens" for a `TokenView`.
        settings: to prepare the row with; those of `prepared` where None.

    Attributes:
        error: why the row cannot be prepared with these settings, or "".
        row, trained: a `ShownRow` or None, and whether it would be trained on.
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
        self.title = f"{show.capitalize()} of {part}, row {number} of its file"
        work = Preparer(prepared.cfg, prepared.renderer, prepared.sources)
        try:
            rendered, masked, found = work.one(number, part, settings := settings or settings_of(prepared))
        except RagfitError as error:
            self.error, self.row, self.findings, self.trained = str(error), None, [], False
            return
        self.error, self.trained = "", not any(one.kind.startswith("dropped: ") for one in found)
        # A row alone doesn't show what was found by comparing rows with each other, and no setting changes that.
        between = (one for one in prepared.report.findings if one.kind in ("duplicate rows", "row in train and dev"))
        self.findings = [*found, *(one for one in between if (part, number) in one.rows)]
        self.row = ShownRow(rendered, masked.input_ids, masked.labels(), self.findings, settings.instruction)
        self.inner = {"prompt": PromptView, "tokens": TokenView}[show](prepared, number, part, row=self.row)
        self.aside = self.inner.aside

    def blocks(self) -> list[Block]:
        if self.error:
            return [Callout((Span("This row cannot be prepared with these settings:"), f" {self.error}"), "bad")]
        dropped = Callout((Span("Not trained on:"), " the row is dropped. Below is the row as it is."))
        return [*([] if self.trained else [dropped]), *self.inner.blocks()]


class NoteView(View):
    """A sentence or two where there is nothing else to see."""

    def __init__(self, title: str, text: str):
        self.title, self.aside = title, text


def rows_with_findings(prepared: Prepared, show: str = "prompt", most: int = 6) -> list[View]:
    """A `RowView` of the first row of each finding, at most `most`; findings of one row share its view."""
    rows = list(dict.fromkeys(finding.rows[0] for finding in prepared.report.findings if finding.rows))[:most]
    views = [RowView(prepared, number, part, show) for part, number in rows]
    return views or [NoteView("Rows with findings", "None: no finding concerns individual rows.")]
