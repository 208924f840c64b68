"""Any row of the data under any settings, prepared by the code of `ragfit.prepare`: the view is what training would see."""

from dataclasses import dataclass, replace

from omegaconf import OmegaConf

from ragfit.data.prepare import Part, Preparer
from ragfit.data.prompt import Renderer
from ragfit.draw import html as style
from ragfit.draw.blocks import Block, Note
from ragfit.draw.html import Html
from ragfit.draw.text import plain, visible
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.views.prompt import PromptView
from ragfit.views.tokens import TokenView

# Findings that compare rows with each other; a row alone does not show them, and no setting changes them.
_BETWEEN_ROWS = ("duplicate rows", "row in train and dev")
MODEL_KEYS = ("completion_start", "instruction_in_prompt", "max_sequence_len", "over_length")
TEXT_KEYS = ("instruction", "template")


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
    def of(cls, prepared):
        """The settings that rows were prepared with."""
        model = prepared.cfg.model
        return cls(
            prepared.renderer.marker,
            prepared.instruction or "",
            bool(model.get("instruction_in_prompt")),
            prepared.renderer.template or "",
            model.get("max_sequence_len"),
            model.get("over_length") or "drop",
        )


def prepare_row(prepared, number, part="train", settings=None):
    """One row, prepared as `ragfit.prepare` does it, under other settings.

    Args:
        prepared: of `ragfit.prepare`.
        number: the row's number in its file.
        settings: a `Settings`; those of `prepared` where None.

    Returns:
        (Prepared, trained on): its only row has the index `number`. Where the row would be dropped, `trained on` is
        false and the row is there as it would be without `max_sequence_len`, or not at all.

    Raises:
        RagfitError: as `ragfit.prepare`.
    """
    settings = settings or Settings.of(prepared)
    cfg = prepared.cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for key in MODEL_KEYS:
        cfg.model[key] = getattr(settings, key)
    instruction = settings.instruction if settings.instruction.strip() else ""
    template = settings.template if settings.template.strip() else None
    renderer = Renderer(
        prepared.tokenizer,
        instruction,
        template,
        settings.instruction_in_prompt,
        settings.completion_start,
        prepared.renderer.stop_ids,
    )
    work, result, kept = _run(cfg, renderer, prepared, number, part)
    trained = bool(kept)
    if not trained and result.rejected_lengths:
        whole = cfg.copy()
        whole.model.max_sequence_len = None
        kept = _run(whole, renderer, prepared, number, part)[2]
    findings = work.findings() + [
        finding
        for finding in prepared.report.findings
        if finding.kind in _BETWEEN_ROWS and (part, number) in finding.rows
    ]
    # Findings go with the row's number, so the row's index is that number too.
    done = replace(result, kept={number: number} if kept else {})
    rows = {number: {"input_ids": kept[0].input_ids, "labels": kept[0].labels()}} if kept else {}
    report = replace(prepared.report, **{part: done}, findings=findings)
    alone = {"train": {}, "dev": {}, part: rows}
    alone |= {"report": report, "renderer": renderer, "encoder": work.encoder, "instruction": instruction, "cfg": cfg}
    return replace(prepared, **alone), trained


def _run(cfg, renderer, prepared, number, part):
    work, result = Preparer(cfg, renderer), Part(rows=1)
    return work, result, work.prepare_row(part, prepared.sources[part], number, result)


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
    """

    def __init__(self, prepared, number, part="train", show="prompt", settings=None):
        self.name = f"{part}, row {number} of its file"
        self.title = f"{'Prompt' if show == 'prompt' else 'Tokens'} of {self.name}"
        self.error, self.trained, self.findings, self.inner, self.ids, self.labels = "", False, [], None, None, None
        settings = settings or Settings.of(prepared)
        try:
            one, self.trained = prepare_row(prepared, number, part, settings)
            self.findings = one.report.findings
        except RagfitError as error:
            self.error = str(error)
            one = self._without_marker(prepared, number, part, settings)
        if one is None or number not in getattr(one, part):
            return
        if not self.error:
            self.ids, self.labels = getattr(one, part)[number].values()
        self.inner = (PromptView if show == "prompt" else TokenView)(one, number, part)
        if show == "prompt":
            self.inner.title = self.title
        else:
            self.inner.name, self.inner.findings = self.name, []  # they are told above it

    def _without_marker(self, prepared, number, part, settings):
        """The row as it would be without a marker: there is the text that the marker must match."""
        if not settings.completion_start:
            return None
        try:
            return prepare_row(prepared, number, part, replace(settings, completion_start=""))[0]
        except RagfitError:
            return None

    def _notes(self):
        """(severity, title, text) of what stands above the row."""
        if self.error:
            yield "error", "These settings cannot be used", self.error
            if self.inner:
                yield "note", "Below", "the same row without a completion_start."
        elif not self.trained:
            yield (
                "warning",
                "Not trained on",
                "the row is dropped." + (" Below: the row as it is." if self.inner else ""),
            )
        for finding in self.findings:
            all_rows = "" if finding.rows else " (all rows)"
            seen = f" Seen: {visible(finding.detail)}." if finding.detail else ""
            yield finding.severity, f"{finding.kind}{all_rows}", f"{finding.meaning}{seen} {finding.fix}"

    def html(self):
        looks = {"error": style.BAD, "warning": style.WARNING, "note": style.NOTE}
        notes = Html("".join(
            style.callout(Html(f"<b>{style.escape(title)}:</b> {style.html_lines(text)}"), looks[severity])
            for severity, title, text in self._notes()
        ))  # fmt: skip
        if self.inner is None:
            return style.card(self.title, notes)
        return Html(f'<div style="{style.SANS};font-size:13px;line-height:1.5">{notes}</div>{self.inner.html()}')

    def text(self):
        lines = [f"[{severity}] {title}: {plain(text)}" for severity, title, text in self._notes()]
        return "\n".join([*lines, self.inner.text() if self.inner else self.title])


class NoteView(View):
    """A sentence or two where there is nothing else to see."""

    def __init__(self, title, text):
        self.title, self.said = title, text

    def blocks(self) -> list[Block]:
        return [Note(self.said)]


def rows_with_findings(prepared, show="prompt", most=6):
    """A `RowView` of the first row of each finding, at most `most`; findings that share a row share its view."""
    rows = {}
    for finding in prepared.report.findings:
        if finding.rows and not any(row in rows for row in finding.rows):
            rows[finding.rows[0]] = None
    if not rows:
        return [NoteView("Rows with findings", "There are none: no finding concerns single rows.")]
    return [RowView(prepared, number, part, show) for part, number in list(rows)[:most]]
