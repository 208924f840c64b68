"""Widgets to look at any row and try other settings, and the overrides that train with them."""

import functools
import hashlib
import shlex
from typing import Any

from ragfit.config.notebook import Chosen, split_overrides
from ragfit.config.overrides import override
from ragfit.data.report import Prepared
from ragfit.draw.html import escape
from ragfit.draw.progress import in_notebook
from ragfit.draw.text import counted
from ragfit.views.row import NoteView, RowView, Settings, settings_of

POLICIES = ("drop", "cut_documents", "cut_start", "cut_end")
TEXTS = ("instruction", "template")  # settings that a configuration names by a file


class Explorer:
    """Widgets to choose a row, change the settings of its prompt and mask, and copy them as overrides.

    `show` is "prompt" or "tokens"; with `chosen`, of `ragfit.from_parameters`, the overrides have the notebook's own.
    `box` holds all widgets and is made when first asked for (a note takes its place without a front end), `fields` has
    those of the `Settings`; `found` are the numbers of the rows that match, and `row` is the `RowView` on show.
    """

    def __init__(self, prepared: Prepared, show: str = "prompt", chosen: Chosen | None = None):
        self.prepared, self.show, self.chosen = prepared, show, chosen

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        note = NoteView("Try other settings", "This part is interactive: open the notebook in JupyterLab to change it.")
        # Beside a widget too: it stands where the saved notebook is read without a kernel, on GitHub for one.
        return (self.box._repr_mimebundle_() if live() else {}) | {"text/html": note.html(), "text/plain": note.text()}

    @functools.cached_property
    def box(self) -> Any:
        import ipywidgets as widgets

        base, report = settings_of(self.prepared), self.prepared.report
        findings = [(f"{one.kind} ({len(one.rows):,})", set(one.rows)) for one in report.findings if one.rows]
        self.part = widgets.Dropdown(options=[part for part in ("train", "dev") if report.part(part).rows])
        self.finding = widgets.Dropdown(options=[("any or none", set()), *findings])
        self.search = widgets.Text(placeholder="text in a prompt or an output, then Enter", continuous_update=False)
        self.number, self.copy = widgets.BoundedIntText(min=0), widgets.Textarea(rows=4)
        self.count, self.state, self.view = widgets.HTML(), widgets.HTML(), widgets.HTML()
        # As in a command, a newline and a tab of the marker are written \n and \t; a limit of 0 is none.
        marker = base.completion_start.replace("\n", "\\n").replace("\t", "\\t")
        self.fields = {
            "completion_start": widgets.Text(marker, placeholder="where the prompt ends", continuous_update=False),
            "max_sequence_len": widgets.BoundedIntText(base.max_sequence_len or 0, min=0, max=10_000_000),
            "over_length": widgets.Dropdown(options=POLICIES, value=base.over_length),
            "instruction_in_prompt": widgets.Dropdown(options=[False, True], value=base.instruction_in_prompt),
            "instruction": widgets.Textarea(base.instruction, rows=3, placeholder="no instruction"),
            "template": widgets.Textarea(base.template, rows=3, placeholder="chat template; or {query} and {output}"),
        }
        self.base = self.settings
        self.number.observe(self._go, "value")
        self._narrow()
        for widget in (self.part, self.finding, self.search):
            widget.observe(self._narrow, "value")
        for widget in self.fields.values():
            widget.observe(self._show, "value")

        chooser = [_labelled("part", self.part, "0 0 90px"), _labelled("row", self.number, "0 0 110px")]
        chooser += [_labelled("with a finding", self.finding), _labelled("search", self.search), self.count]
        fields = [_labelled(name if name in TEXTS else f"model.{name}", one) for name, one in self.fields.items()]
        copy = _labelled("to train with what is shown: for the parameters cell of train.ipynb, or a command", self.copy)
        look = {"width": "100%", "align_items": "flex-end", "grid_gap": "10px", "margin": "0 0 6px"}
        rows = [widgets.HBox(row, layout=look) for row in (chooser, fields[:4], fields[4:], [copy])]
        return widgets.VBox([*rows, self.state, self.view]).add_class("ragfit-explorer")

    def _narrow(self, change: Any = None) -> None:
        """Another part, finding or search text: which rows match, dropped ones included."""
        part, having, text = self.part.value, self.finding.value, self.search.value.casefold()
        own, row = self.prepared.report.part(part), self.prepared.row
        numbers = sorted([*own.kept, *(number for dropped in own.dropped.values() for number in dropped)])
        self.found = [n for n in numbers if not having or (part, n) in having]
        self.found = [n for n in self.found if not text or any(text in said.casefold() for said in row(n, part)[:2])]
        self.number.max = max(numbers)
        self._go({"old": -1, "new": self.number.value})

    def _go(self, change: dict) -> None:
        """A number: that row or the next one that matches, in the direction in which it was changed."""
        number, found = change["new"], self.found or [change["new"]]
        up = min((n for n in found if n >= number), default=found[-1])
        down = max((n for n in found if n <= number), default=found[0])
        nearest = down if number < change["old"] else up
        if nearest == number:
            self._show()
        self.number.value = nearest  # which calls this again where it is another

    @property
    def settings(self) -> Settings:
        """The `Settings` that the fields hold, texts as a file gives them back."""
        values = {name: field.value for name, field in self.fields.items()}
        for name in TEXTS:
            values[name] = values[name].replace("\r\n", "\n").replace("\r", "\n") if values[name].strip() else ""
        return Settings(**values | {"max_sequence_len": values["max_sequence_len"] or None})

    def _show(self, change: Any = None) -> None:
        """The row under the settings, and what to copy."""
        number, part = self.number.value, self.part.value
        self.row = RowView(self.prepared, number, part, self.show, self.settings) if self.found else None
        self.view.value = (self.row or NoteView("No row matches", "Change the search text or the finding.")).html()
        place = f"{self.found.index(number) + 1:,} of " if self.found else ""
        self.count.value = f'<span style="white-space:nowrap">{place}{counted(len(self.found), "row")}</span>'
        changes, files = {}, ""
        for name, value in vars(self.settings).items():
            if value == vars(self.base)[name]:
                continue
            changes[name if name in TEXTS else f"model.{name}"] = value
            if name in TEXTS:  # a file's name holds a digest of its text, so no other text can be taken for it
                digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
                changes[name] = f"{name}-{digest[:6]}.txt" if value else None
                files += f" Save the text of {name} as {changes[name]} first." if value else ""
        said = f"Changed: {', '.join(changes)}.{files}" if changes else "Nothing is changed."
        self.copy.value = "" if self.row and self.row.error else to_copy(changes, self.chosen)
        self.state.value = f'<div style="font-size:12px;line-height:16px">{escape(said)}</div>'


explore = Explorer  # as notebooks call it


def _labelled(text: str, widget: Any, grow: str = "1 1 0") -> Any:
    from ipywidgets import HTML, VBox

    look = "font-size:12px;line-height:18px;white-space:nowrap"
    label = HTML(f'<div style="{look}">{escape(text)}</div>', layout={"height": "22px", "margin": "0"})
    widget.layout.width, widget.layout.margin = "100%", "0"
    return VBox([label, widget], layout={"flex": grow, "min_width": "90px", "overflow": "hidden"})


def live() -> bool:
    """Whether a front end that can answer runs this cell: papermill and nbconvert say that they cannot."""
    if not in_notebook():
        return False
    from IPython import get_ipython

    return bool(get_ipython().kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def to_copy(changes: dict[str, object], chosen: Chosen | None = None) -> str:
    """The changes behind the notebook's own parameters: two lines for its parameters cell, and a papermill command."""
    own = [text for text in (chosen.overrides if chosen else ()) if text.lstrip("+~").partition("=")[0] not in changes]
    overrides = [*own, *(override(key, value) for key, value in changes.items())]
    joined, given = " ".join(overrides), {"config": chosen.config} if chosen else {}
    given["overrides"] = joined if split_overrides(joined) == overrides else overrides
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = shlex.join(["papermill", "notebooks/train.ipynb", "out.ipynb", *words])
    return "\n".join([*(f"{name} = {value!r}" for name, value in given.items()), command])
