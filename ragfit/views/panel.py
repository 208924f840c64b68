"""The widgets of `ragfit.views.explore`."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

import ipywidgets as widgets

from ragfit.config.notebook import Chosen
from ragfit.config.paths import PROJECT_ROOT
from ragfit.data.report import Prepared
from ragfit.draw.html import escape
from ragfit.draw.text import counted
from ragfit.views.copied import changed_keys, for_cell, for_shell, spell, typed, write_text
from ragfit.views.row import NoteView, RowView, Settings


class Panel:
    """Chooses a row, shows it under the settings of the fields, and says how to train with them.

    Attributes:
        box: the widget that holds all others.
        fields: the widget of each of the `Settings`.
        found: the numbers of the rows that match.
        row: the `RowView` on show, or None where no row matches.
    """

    def __init__(self, prepared: Prepared, show: str, chosen: Chosen | None):
        self.prepared, self.show, self.chosen = prepared, show, chosen
        self.base = Settings.of(prepared)
        self.files: dict[tuple[str, str], str] = {}
        self._quiet = False

        parts = [part for part in ("train", "dev") if self._numbers(part)]
        self.part = widgets.Dropdown(options=parts)
        self.finding = widgets.Dropdown(options=self._findings("train"))
        self.search = widgets.Text(placeholder="text in a prompt or an output, then Enter", continuous_update=False)
        self.back = widgets.Button(description="◀", tooltip="the row before", layout={"width": "42px"})
        self.ahead = widgets.Button(description="▶", tooltip="the next row", layout={"width": "42px"})
        self.slider = widgets.IntSlider(min=0, max=0, readout=False, layout={"flex": "1 1 auto"})
        self.number = widgets.BoundedIntText(min=0, max=0)
        self.count = widgets.HTML()
        self.fields: dict[str, widgets.ValueWidget] = {
            "completion_start": widgets.Text(placeholder="empty: where the generation prompt ends"),
            "max_sequence_len": widgets.BoundedIntText(min=0, max=10_000_000),
            "over_length": widgets.Dropdown(options=["cut_end", "cut_start", "drop"]),
            "instruction": widgets.Textarea(rows=3, placeholder="empty: no instruction"),
            "template": widgets.Textarea(
                rows=3, placeholder="empty: the tokenizer's chat template; else a text with {query} and {output}"
            ),
            "instruction_in_prompt": widgets.Checkbox(
                description="instruction_in_prompt", indent=False, layout={"width": "200px"}
            ),
        }
        self.reset = widgets.Button(description="Reset settings", icon="undo", layout={"width": "150px"})
        self.write = widgets.Button(description="Write edited texts", icon="save", layout={"width": "180px"})
        self.state = widgets.HTML()
        self.copy_for = widgets.Dropdown(
            options={"for the parameters cell of train.ipynb": for_cell, "for the shell": for_shell},
            layout={"width": "300px"},
        )
        self.copy = widgets.Textarea(rows=3, layout={"width": "100%", "margin": "0"})
        self.view = widgets.HTML(layout={"width": "100%"})
        self.box = self._layout()

        for widget in (self.part, self.finding, self.search):
            widget.observe(self._narrow, "value")
        for widget in (self.slider, *self.fields.values()):
            widget.observe(lambda change: self._show(), "value")
        self.number.observe(self._go, "value")
        self.copy_for.observe(lambda change: self._tell(), "value")
        self.back.on_click(lambda button: self._step(-1))
        self.ahead.on_click(lambda button: self._step(1))
        self.reset.on_click(lambda button: (self._fill(), self._show()))
        self.write.on_click(lambda button: self._write())
        self._fill()
        self._narrow()

    def _layout(self) -> widgets.VBox:
        fields = self.fields
        rows = [
            [
                *([_labelled("part", self.part, "0 0 90px")] if len(self.part.options) > 1 else []),
                _labelled("with a finding", self.finding, "2 1 0"),
                _labelled("search", self.search, "3 1 0"),
            ],
            [self.back, self.slider, self.ahead, _labelled("row", self.number, "0 0 100px"), self.count],
            [
                _labelled("model.completion_start (write a newline as \\n)", fields["completion_start"], "3 1 0"),
                _labelled("model.max_sequence_len (0: no limit)", fields["max_sequence_len"], "2 1 0"),
                _labelled("model.over_length", fields["over_length"], "1 1 0"),
            ],
            [_labelled("instruction", fields["instruction"]), _labelled("template", fields["template"])],
            [fields["instruction_in_prompt"], self.reset, self.write, self.state],
            [_labelled("what is shown, to copy", self.copy_for, "0 0 300px"), self.copy],
        ]
        look = {"width": "100%", "align_items": "flex-end", "grid_gap": "10px", "margin": "0 0 6px"}
        lines = [widgets.HBox(row, layout=look) for row in rows]
        box = widgets.VBox([*lines, self.view], layout={"width": "100%", "padding": "2px 8px 2px 0"})
        return box.add_class("ragfit-explorer")

    # Rows.

    def _numbers(self, part: str) -> list[int]:
        """The numbers of a part's rows in their file, the dropped ones included."""
        report = self.prepared.report.part(part)
        return sorted([*report.kept, *(number for numbers in report.dropped.values() for number in numbers)])

    def _findings(self, part: str) -> list[tuple[str, str]]:
        """(what to show, kind) for the list of findings."""
        options = [(f"any or none ({len(self._numbers(part)):,} rows)", "")]
        for found in self.prepared.report.findings:
            if count := sum(row[0] == part for row in found.rows):
                options.append((f"{found.kind} ({counted(count, 'row')})", found.kind))
        return options

    def _matching(self) -> list[int]:
        """The numbers of the rows that have the chosen finding and hold the text searched for, in any case."""
        part, kind, text = self.part.value, self.finding.value, self.search.value.casefold()
        numbers = self._numbers(part)
        if kind:
            rows = {row for found in self.prepared.report.findings if found.kind == kind for row in found.rows}
            numbers = [number for number in numbers if (part, number) in rows]
        if text:
            row = self.prepared.row
            numbers = [n for n in numbers if any(text in said.casefold() for said in row(n, part)[:2])]
        return numbers

    def _narrow(self, change: dict | None = None) -> None:
        """Another part, finding or search text: the slider runs over the rows that match."""
        if self._quiet:
            return
        with self._quietly():
            if change and change["owner"] is self.part:
                self.finding.options = self._findings(self.part.value)
            self.found = self._matching()
            self.slider.value, self.slider.max = 0, max(0, len(self.found) - 1)
            self.number.max = max(self._numbers(self.part.value))
        self._show()

    def _step(self, by: int) -> None:
        self.slider.value += by  # which keeps itself in its bounds

    def _go(self, change: dict) -> None:
        """A number typed into the box: that row, or the nearest that matches."""
        if self._quiet or not self.found:
            return
        nearest = min(range(len(self.found)), key=lambda place: abs(self.found[place] - change["new"]))
        if nearest == self.slider.value:
            self._show()
        self.slider.value = nearest

    # Settings.

    @property
    def settings(self) -> Settings:
        """The `Settings` that the fields hold."""
        values = {name: field.value for name, field in self.fields.items()}
        values["completion_start"] = typed(values["completion_start"])
        values["max_sequence_len"] = values["max_sequence_len"] or None
        return Settings(**values | {name: _as_in_a_file(values[name]) for name in ("instruction", "template")})

    def _fill(self) -> None:
        """Put the settings that the rows were prepared with into the fields."""
        base = asdict(self.base)
        base["completion_start"] = spell(base["completion_start"])
        base["max_sequence_len"] = base["max_sequence_len"] or 0
        with self._quietly():
            for name, field in self.fields.items():
                field.value = base[name]

    def _write(self) -> None:
        """Write edited texts into files."""
        for name in changed_keys(self.base, self.settings, self.files)[1]:
            text = asdict(self.settings)[name]
            path = write_text(name, text)
            # A relative path is looked up from the project's root too, so this one works from everywhere in it.
            self.files[name, text] = str(path.relative_to(PROJECT_ROOT) if path.is_relative_to(PROJECT_ROOT) else path)
        self._tell()

    # What is shown.

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set widgets without showing a row for each."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _show(self) -> None:
        if self._quiet:
            return
        for widget in (self.slider, self.number, self.back, self.ahead):
            widget.disabled = not self.found
        if self.found:
            number = self.found[self.slider.value]
            with self._quietly():
                self.number.value = number
            self.row = RowView(self.prepared, number, self.part.value, self.show, self.settings)
        else:
            self.row = None
        self.view.value = (self.row or NoteView("No row matches", "Change the search text or the finding.")).html()
        place = f"{self.slider.value + 1:,} of " if self.found else ""
        count = counted(len(self.found), "hit" if self.search.value or self.finding.value else "row")
        self.count.value = f'<span style="white-space:nowrap">{place}{count}</span>'
        self._tell()

    def _tell(self) -> None:
        """What differs, what is missing to train with it, and what to copy."""
        changes, missing = changed_keys(self.base, self.settings, self.files)
        self.write.disabled = not missing
        self.reset.disabled = not (changes or missing)
        copied = ""
        if self.row and self.row.error:
            said = "Nothing to copy: these settings cannot be used."
        elif missing:
            said = f"The edited {' and '.join(missing)} must be in a file first: press “Write edited texts”."
        else:
            said = f"Changed: {', '.join(changes)}." if changes else "Nothing is changed."
            copied = self.copy_for.value(changes, self.chosen)
        self.copy.value = copied
        self.state.value = f'<div style="font-size:12px;line-height:16px">{escape(said)}</div>'


def _labelled(text: str, widget: widgets.Widget, grow: str = "1 1 0") -> widgets.VBox:
    html = f'<div style="font-size:12px;line-height:18px">{escape(text)}</div>'
    label = widgets.HTML(html, layout={"margin": "0", "height": "22px"})
    widget.layout.width, widget.layout.margin = "100%", "0"
    return widgets.VBox([label, widget], layout={"flex": grow, "min_width": "90px", "overflow": "hidden"})


def _as_in_a_file(text: str) -> str:
    """A text as a file gives it back: line ends are newlines, and nothing in it cannot be written."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return text.encode("utf-8", "replace").decode("utf-8")
