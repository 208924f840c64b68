"""Widgets to look at any row and try other settings, and the overrides that train with them."""

import functools
import hashlib
import re
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from ragfit.config.notebook import Chosen, split_overrides
from ragfit.config.overrides import override
from ragfit.data.report import Prepared
from ragfit.draw.html import escape
from ragfit.draw.text import counted
from ragfit.views.row import NoteView, RowView, Settings, settings_of

if TYPE_CHECKING:
    from ipywidgets import VBox, Widget

POLICIES = ("drop", "cut_documents", "cut_start", "cut_end")
TEXTS = ("instruction", "template")  # settings that a configuration names by a file


class Explorer:
    """Widgets to choose a row, change the settings of its prompt and mask, and copy them as overrides.

    Where no front end is live (papermill, nbconvert) a note stands in their place and no widget is made.

    Args:
        prepared: of `ragfit.prepare`.
        show: "prompt" or "tokens".
        chosen: of `ragfit.from_parameters`; the overrides then bring the notebook's own parameters along.

    Attributes:
        box: the widget that holds all others, made when it is first asked for.
        fields: the widget of each of the `Settings`.
        found: the numbers of the rows that match.
        row: the `RowView` on show, or None where no row matches.
    """

    def __init__(self, prepared: Prepared, show: str = "prompt", chosen: Chosen | None = None):
        self.prepared, self.show, self.chosen = prepared, show, chosen

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        note = NoteView(
            "Choose a row and change its settings",
            "This part is interactive: open the notebook in JupyterLab and choose Run All. "
            "The first rows and the rows with findings are shown above.",
        )
        # Beside a widget too: it stands where the saved notebook is read without a kernel, on GitHub for one.
        bundle = {"text/html": note.html(), "text/plain": note.text()}
        return {**self.box._repr_mimebundle_(), **bundle} if live() else bundle

    @functools.cached_property
    def box(self) -> "VBox":
        import ipywidgets as widgets

        parts = [part for part in ("train", "dev") if self.prepared.report.part(part).rows]
        self.part = widgets.Dropdown(options=parts)
        self.finding = widgets.Dropdown()
        self.search = widgets.Text(placeholder="text in a prompt or an output, then Enter", continuous_update=False)
        self.number = widgets.BoundedIntText(min=0)
        self.count, self.state = widgets.HTML(), widgets.HTML()
        base = settings_of(self.prepared)
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
        self.copy = widgets.Textarea(rows=4)
        self.view = widgets.HTML(layout={"width": "100%"})
        self.number.observe(self._go, "value")
        self._narrow({"owner": self.part})
        for widget in (self.part, self.finding, self.search):
            widget.observe(self._narrow, "value")
        for widget in self.fields.values():
            widget.observe(lambda change: self._show(), "value")

        fields = [_labelled(name if name in TEXTS else f"model.{name}", one) for name, one in self.fields.items()]
        chooser = [
            _labelled("part", self.part, "0 0 90px"),
            _labelled("row", self.number, "0 0 110px"),
            _labelled("with a finding", self.finding),
            _labelled("search", self.search),
            self.count,
        ]
        copy = _labelled("to train with what is shown: for the parameters cell of train.ipynb, or a command", self.copy)
        look = {"width": "100%", "align_items": "flex-end", "grid_gap": "10px", "margin": "0 0 6px"}
        rows = (chooser, fields[:4], fields[4:], [copy])
        children = [*(widgets.HBox(row, layout=look) for row in rows), self.state, self.view]
        return widgets.VBox(children, layout={"width": "100%", "padding": "2px"}).add_class("ragfit-explorer")

    def _narrow(self, change: dict) -> None:
        """Another part, finding or search text: which rows match, dropped ones included."""
        part, report = self.part.value, self.prepared.report
        own = report.part(part)
        numbers = sorted([*own.kept, *(number for dropped in own.dropped.values() for number in dropped)])
        if change["owner"] is self.part:
            rows = {found.kind: {n for name, n in found.rows if name == part} for found in report.findings}
            options = {f"{kind} ({counted(len(of), 'row')})": of for kind, of in rows.items() if of}
            self.finding.options = {f"any or none ({counted(len(numbers), 'row')})": frozenset(), **options}
            self.finding.index = 0  # a new Dropdown would show none of them
        having, text, row = self.finding.value, self.search.value.casefold(), self.prepared.row
        self.found = [n for n in numbers if not having or n in having]
        if text:
            self.found = [n for n in self.found if any(text in said.casefold() for said in row(n, part)[:2])]
        self.number.max = max(numbers)
        self._go({"old": -1, "new": self.number.value})

    def _go(self, change: dict) -> None:
        """A number: that row or the next one that matches, in the direction in which it was changed."""
        number, found = change["new"], self.found or [change["new"]]
        if number < change["old"]:
            nearest = max((n for n in found if n <= number), default=found[0])
        else:
            nearest = min((n for n in found if n >= number), default=found[-1])
        if nearest != number:
            self.number.value = nearest  # which calls this again
        else:
            self._show()

    @property
    def settings(self) -> Settings:
        """The `Settings` that the fields hold, texts as a file gives them back."""
        values = {name: field.value for name, field in self.fields.items()}
        for name in TEXTS:
            values[name] = values[name].replace("\r\n", "\n").replace("\r", "\n")
        return Settings(**values | {"max_sequence_len": values["max_sequence_len"] or None})

    def _show(self) -> None:
        """The row under the settings, and what to copy."""
        self.row = None
        if self.found:
            self.row = RowView(self.prepared, self.number.value, self.part.value, self.show, self.settings)
        self.view.value = (self.row or NoteView("No row matches", "Change the search text or the finding.")).html()
        place = f"{self.found.index(self.number.value) + 1:,} of " if self.found else ""
        self.count.value = f'<span style="white-space:nowrap">{place}{counted(len(self.found), "row")}</span>'
        changes, texts = changed(self.base, self.settings)
        said = f"Changed: {', '.join(changes)}." if changes else "Nothing is changed."
        said += "".join(f" Save the text of {name} as {path} first." for name, path in texts.items())
        if self.row and self.row.error:
            self.copy.value, said = "", "Nothing to copy: these settings cannot be used."
        else:
            self.copy.value = to_copy(changes, self.chosen)
        self.state.value = f'<div style="font-size:12px;line-height:16px">{escape(said)}</div>'


explore = Explorer  # as notebooks call it


def _labelled(text: str, widget: "Widget", grow: str = "1 1 0") -> "VBox":
    from ipywidgets import HTML, VBox

    look = "font-size:12px;line-height:18px;white-space:nowrap"
    label = HTML(f'<div style="{look}">{escape(text)}</div>', layout={"height": "22px", "margin": "0"})
    widget.layout.width, widget.layout.margin = "100%", "0"
    return VBox([label, widget], layout={"flex": grow, "min_width": "90px", "overflow": "hidden"})


def live() -> bool:
    """Whether a front end that can answer runs this cell: papermill and nbconvert say that they cannot."""
    try:
        from IPython import get_ipython

        return bool(get_ipython().kernel.get_parent("shell")["content"].get("allow_stdin"))
    except (ImportError, AttributeError, KeyError, TypeError):
        return False


def changed(base: Settings, now: Settings) -> tuple[dict[str, object], dict[str, str]]:
    """(keys that differ with their values, for each edited text the file to save it in).

    The file's name holds a digest of the text, so no other text can be taken for it.
    """
    before, changes, files = asdict(base), {}, {}
    for name, value in asdict(now).items():
        if value == before[name] or (name in TEXTS and not (value.strip() or before[name].strip())):
            continue
        if name not in TEXTS:
            changes[f"model.{name}"] = value
        elif value.strip():
            digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
            changes[name] = files[name] = f"{name}-{digest[:6]}.txt"
        else:
            changes[name] = None
    return changes, files


def to_copy(changes: dict[str, object], chosen: Chosen | None = None) -> str:
    """The changes behind the notebook's own parameters: two lines for its parameters cell, and a papermill command."""
    own = [text for text in (chosen.overrides if chosen else ()) if re.match(r"[~+]*([\w.]*)", text)[1] not in changes]
    overrides = [*own, *(override(key, value) for key, value in changes.items())]
    joined = " ".join(overrides)
    given = {
        "config": chosen and chosen.config,
        "overrides": joined if split_overrides(joined) == overrides else overrides,
    }
    given = {name: value for name, value in given.items() if value}
    words = ["papermill", "notebooks/train.ipynb", "out.ipynb"]
    words += [word for name, value in given.items() for word in ("-p", name, str(value))]
    return "\n".join([*(f"{name} = {value!r}" for name, value in given.items()), " ".join(map(_quoted, words))])


def _quoted(word: str) -> str:
    """A word for a shell, in double quotes where they are enough: Hydra's own are single."""
    if "'" in word and not re.search(r'[$`"!]|\\[\\\n]|\\$', word):
        return f'"{word}"'
    return shlex.quote(word)
