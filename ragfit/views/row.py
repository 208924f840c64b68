"""Any row of the data under any settings, prepared by the code of `ragfit.prepare`: what training would see."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfit.config.schema import PROMPT_KEYS
from ragfit.data.fit import Fitter
from ragfit.data.prepare import Part, Preparer
from ragfit.data.prompt import Renderer
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Callout, Note, Span
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.views.prompt import PromptView
from ragfit.views.tokens import TokenView, callout

if TYPE_CHECKING:
    from ragfit.data.mask import Masked

# Findings that compare rows with each other; a row alone does not show them, and no setting changes them.
_BETWEEN_ROWS = ("duplicate rows", "row in train and dev")


@dataclass(frozen=True)
class Settings:
    """What decides how a row becomes text and labels; `instruction` and `template` are texts, not paths."""

    completion_start: str = ""
    instruction: str = ""
    instruction_in_prompt: bool = False
    template: str = ""
    max_sequence_len: int | None = None
    over_length: str = "drop"

    @classmethod
    def of(cls, prepared: Prepared) -> "Settings":
        """The settings that rows were prepared with."""
        model, renderer = prepared.cfg.model, prepared.renderer
        given = {key: model[key] for key in PROMPT_KEYS if model.get(key)} | {"completion_start": renderer.marker}
        return cls(**given, instruction=prepared.instruction or "", template=renderer.template or "")


def prepare_row(prepared: Prepared, number: int, part: str, settings: Settings) -> tuple[Prepared, bool]:
    """One row, prepared as `ragfit.prepare` does it, under other settings.

    Args:
        number: the row's number in its file.

    Returns:
        (rows, whether the row is trained on): the only row has the index `number`. Where it would be dropped as too
        long, it is there as it would be without `max_sequence_len`; where it would be dropped for another reason,
        there is none.

    Raises:
        RagfitError: as `ragfit.prepare`.
    """
    instruction, template = (text if text.strip() else "" for text in (settings.instruction, settings.template))
    renderer = Renderer(
        prepared.tokenizer,
        instruction,
        template or None,
        settings.instruction_in_prompt,
        settings.completion_start,
        prepared.renderer.stop_ids,
        None if template else prepared.renderer.chat_template_kwargs,
    )

    def run(limit: float) -> "tuple[Preparer, Part, list[Masked]]":
        work, result = Preparer(prepared.cfg, renderer, prepared.sources), Part(rows=1)
        work.fitter = Fitter(renderer, work.encoder, limit, settings.over_length, prepared.cfg.output_key)
        return work, result, work.prepare_row(part, number, result)

    work, result, kept = run(settings.max_sequence_len or math.inf)
    trained = bool(kept)
    if not kept and result.rejected_lengths:
        kept = run(math.inf)[-1]
    among_rows = [
        found for found in prepared.report.findings if found.kind in _BETWEEN_ROWS and (part, number) in found.rows
    ]
    # Findings go with the row's number, so the row's index is that number too.
    one = replace(result, kept={number: number} if kept else {})
    report = replace(prepared.report, **{part: one}, findings=work.checks.findings() + among_rows)
    rows = {number: {"input_ids": kept[0].input_ids, "labels": kept[0].labels()}} if kept else {}
    made = {"renderer": renderer, "encoder": work.encoder, "instruction": instruction}
    return replace(prepared, report=report, **made, **{"train": {}, "dev": {}, part: rows}), trained


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
        ids, labels: the row's, or None.
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
        self.error, self.trained, self.findings, self.inner, self.ids, self.labels = "", False, [], None, None, None
        settings = settings or Settings.of(prepared)
        try:
            one, self.trained = prepare_row(prepared, number, part, settings)
            self.findings = one.report.findings
        except RagfitError as error:
            self.error = str(error)
            one = _without_marker(prepared, number, part, settings)
        if one is None or number not in one.part(part):
            return
        if not self.error:
            self.ids, self.labels = one.part(part)[number].values()
        self.inner = (PromptView if show == "prompt" else TokenView)(one, number, part)
        self.aside = self.inner.aside

    def blocks(self) -> list[Block]:
        blocks: list[Block] = []
        if self.error:
            below = " Below is the same row without a completion_start." if self.inner else ""
            blocks.append(Callout((Span("These settings cannot be used:"), f" {self.error}{below}"), "bad"))
        elif not self.trained:
            below = " Below is the row as it is." if self.inner else ""
            blocks.append(Callout((Span("Not trained on:"), f" the row is dropped.{below}")))
        if isinstance(self.inner, TokenView):
            return blocks + self.inner.blocks()  # which tell the findings
        return [*blocks, *map(callout, self.findings), *(self.inner.blocks() if self.inner else [])]


def _without_marker(prepared: Prepared, number: int, part: str, settings: Settings) -> Prepared | None:
    """The row as it would be without a marker: there is the text that the marker must match."""
    try:
        return prepare_row(prepared, number, part, replace(settings, completion_start=""))[0]
    except RagfitError:
        return None


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
