"""Widgets to look at any row and try other settings, and to copy what came of it into the training notebook."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

from ragfit.config.notebook import split_overrides
from ragfit.config.overrides import override
from ragfit.config.paths import PROJECT_ROOT
from ragfit.draw import html as style
from ragfit.views.row import MODEL_KEYS, TEXT_KEYS, NoteView, RowView, Settings


def explore(prepared, show="prompt", chosen=None):
    """Widgets to choose a row, change the settings of its prompt and mask, and copy them as overrides.

    Where no front end is live (papermill, nbconvert) a note stands in their place and no widget is made.

    Args:
        prepared: of `ragfit.prepare`.
        show: "prompt" or "tokens".
        chosen: of `ragfit.from_parameters`; the overrides then bring the notebook's own parameters along.

    Returns:
        Explorer
    """
    return Explorer(prepared, show, chosen)


class Explorer:
    """What `explore` returns. `app` is the box of widgets, made when it is first asked for."""

    def __init__(self, prepared, show="prompt", chosen=None):
        if show not in ("prompt", "tokens"):
            raise ValueError(f"show is {show!r}. Use 'prompt' or 'tokens'.")
        self.prepared, self.show, self.chosen = prepared, show, chosen
        self.base = Settings.of(prepared)
        self.written = {}  # the file of each edited text
        self._app, self._quiet = None, False
        self.part = "train" if prepared.report.train.rows else "dev"
        self.found = self.numbers(self.part)
        self.row = None

    @property
    def app(self):
        if self._app is None:
            self._app = self._build()
        return self._app

    def _repr_mimebundle_(self, include=None, exclude=None):
        note = NoteView(
            "Choose a row and change its settings",
            "This part is interactive: open the notebook in JupyterLab and choose Run All. "
            "The first rows and the rows with findings are shown above.",
        )
        # Beside a widget too: it stands where the saved notebook is read without a kernel, on GitHub for one.
        bundle = {"text/html": str(note.html()), "text/plain": note.text()}
        if live():
            made = self.app._repr_mimebundle_()
            bundle = {**(made[0] if isinstance(made, tuple) else made), **bundle}
        return bundle

    # Rows.

    def numbers(self, part):
        """The numbers of a part's rows in their file, the dropped ones included."""
        report = getattr(self.prepared.report, part)
        dropped = [number for numbers in report.dropped.values() for number in numbers]
        in_order = all(a < b for a, b in zip(report.kept, report.kept[1:]))
        return sorted([*report.kept, *dropped]) if in_order else [*report.kept, *dropped]

    def matching(self, part, text="", kind=""):
        """The numbers of the rows that hold a text (in any case) and have a finding of a kind."""
        numbers = self.numbers(part)
        if kind:
            rows = {row for finding in self.prepared.report.findings if finding.kind == kind for row in finding.rows}
            numbers = [number for number in numbers if (part, number) in rows]
        if text:
            text = text.casefold()
            numbers = [n for n in numbers if any(text in said.casefold() for said in self.prepared.row(n, part)[:2])]
        return numbers

    # Settings and overrides.

    def changes(self):
        """The keys whose values differ from those the rows were prepared with; a text is named by its file.

        Returns:
            (dict of key to value, names of edited texts that are in no file yet)
        """
        now, found, missing = self.settings, {}, []
        for field in fields(Settings):
            name, value = field.name, getattr(now, field.name)
            if value == getattr(self.base, name):
                continue
            if name in MODEL_KEYS:
                found[f"model.{name}"] = value
            elif not value.strip():
                if getattr(self.base, name).strip():
                    found[name] = None
            elif self.written.get((name, value)):
                found[name] = self.written[name, value]
            else:
                missing.append(name)
        return found, missing

    def overrides(self, shell=False):
        """The Hydra overrides of what is shown, those of the notebook's own parameters first.

        Args:
            shell: spell out a newline in the marker as backslash and n, which reads better in a command.
        """
        changes, _ = self.changes()
        marker = changes.get("model.completion_start")
        if shell and marker and "\\" not in marker:
            changes["model.completion_start"] = marker.replace("\n", "\\n").replace("\t", "\\t")
        before = self.chosen.overrides if self.chosen else ()
        before = [text for text in before if re.match(r"[~+]*([\w.]*)", text)[1] not in changes]
        return [*before, *(override(key, value) for key, value in changes.items())]

    def cell(self):
        """Lines for the parameters cell of train.ipynb."""
        overrides = self.overrides()
        joined = " ".join(overrides)
        lines = [f"config = {self.chosen.config!r}"] if self.chosen else []
        if overrides:
            lines.append(f"overrides = {(joined if split_overrides(joined) == overrides else overrides)!r}")
        return "\n".join(lines)

    def command(self):
        """The same as a papermill command, for the notebook's working directory."""
        overrides = self.overrides(shell=True)
        joined = " ".join(overrides)
        joined = joined if split_overrides(joined) == overrides else repr(overrides)
        config = f" -p config {_shell(self.chosen.config)}" if self.chosen else ""
        given = f" -p overrides {_shell(joined)}" if overrides else ""
        # The overrides may name files relative to this folder, so the command is one for this folder.
        notebook, here = PROJECT_ROOT / "notebooks" / "train.ipynb", Path.cwd()
        shown = notebook.relative_to(here) if notebook.is_relative_to(here) else "notebooks/train.ipynb"
        return f"papermill {shown} out.ipynb{config}{given}"

    def write_texts(self):
        """Write edited texts into files of the working directory, never over another file; their paths."""
        paths = []
        for name in self.changes()[1]:
            text = getattr(self.settings, name)
            path, count = Path.cwd() / f"edited-{name}.txt", 1
            while path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
                count += 1
                path = path.with_name(f"edited-{name}-{count}.txt")
            path.write_text(text, encoding="utf-8", newline="")
            # A relative path is looked up from the project's root too, so this one works from everywhere in it.
            inside = path.is_relative_to(PROJECT_ROOT)
            self.written[name, text] = str(path.relative_to(PROJECT_ROOT) if inside else path)
            paths.append(path)
        return paths

    # Widgets.

    def _build(self):
        import ipywidgets as widgets

        def wide(widget, width="auto", **layout):
            widget.layout = widgets.Layout(width=width, **layout)
            return widget

        def row(*children):
            look = widgets.Layout(width="100%", align_items="flex-end", grid_gap="10px", margin="0 0 6px")
            return widgets.HBox(children, layout=look)

        def labelled(text, widget, grow="1 1 0"):
            label = widgets.HTML(f'<div style="font-size:12px;line-height:18px">{style.escape(text)}</div>')
            label.layout = widgets.Layout(margin="0", height="22px")
            widget.layout.width, widget.layout.margin = "100%", "0"
            return widgets.VBox([label, widget], layout=widgets.Layout(flex=grow, min_width="90px", overflow="hidden"))

        base = self.base
        parts = [part for part in ("train", "dev") if self.numbers(part)]
        self.choose_part = widgets.Dropdown(options=parts, value=self.part)
        self.choose_finding = widgets.Dropdown(options=self._findings(self.part))
        self.search = widgets.Text(placeholder="text in a prompt or an output, then Enter", continuous_update=False)
        self.back = wide(widgets.Button(description="◀", tooltip="the row before"), "42px")
        self.ahead = wide(widgets.Button(description="▶", tooltip="the next row"), "42px")
        self.slider = wide(widgets.IntSlider(min=0, max=max(0, len(self.found) - 1), readout=False), flex="1 1 auto")
        self.number = wide(widgets.BoundedIntText(value=self.found[0], min=0, max=max(self.found)), "90px")
        self.told = widgets.HTML()
        self.completion_start = widgets.Text(
            value=spell(base.completion_start), placeholder="empty: where the generation prompt ends"
        )
        self.max_sequence_len = widgets.BoundedIntText(value=base.max_sequence_len or 0, min=0, max=10_000_000)
        policies = list(dict.fromkeys([base.over_length, "drop", "cut_start", "cut_end"]))
        self.over_length = widgets.Dropdown(options=sorted(policies), value=base.over_length)
        self.instruction = widgets.Textarea(value=base.instruction, rows=3, placeholder="empty: no instruction")
        self.template = widgets.Textarea(
            value=base.template,
            rows=3,
            placeholder="empty: the tokenizer's chat template; else a text with {query} and {output}",
        )
        self.instruction_in_prompt = widgets.Checkbox(
            value=base.instruction_in_prompt,
            description="instruction_in_prompt",
            indent=False,
            layout=widgets.Layout(width="200px"),
        )
        self.reset = wide(widgets.Button(description="Reset settings", icon="undo"), "150px")
        self.write = wide(widgets.Button(description="Write edited texts", icon="save"), "180px")
        self.for_cell = wide(widgets.Textarea(rows=3), "100%", margin="0")
        self.for_shell = wide(widgets.Textarea(rows=3), "100%", margin="0")
        self.state = widgets.HTML()
        self.view = wide(widgets.HTML(), "100%")

        top = [labelled("with a finding", self.choose_finding, "2 1 0"), labelled("search", self.search, "3 1 0")]
        if len(parts) > 1:
            top.insert(0, labelled("part", self.choose_part, "0 0 90px"))
        copies = [
            labelled("for the parameters cell of train.ipynb", self.for_cell),
            labelled("for the shell", self.for_shell),
        ]
        app = widgets.VBox(
            [
                row(*top),
                row(self.back, self.slider, self.ahead, labelled("row", self.number, "0 0 100px"), self.told),
                row(
                    labelled("model.completion_start (write a newline as \\n)", self.completion_start, "3 1 0"),
                    labelled("model.max_sequence_len (0: no limit)", self.max_sequence_len, "2 1 0"),
                    labelled("model.over_length", self.over_length, "1 1 0"),
                ),
                row(labelled("instruction", self.instruction), labelled("template", self.template)),
                row(self.instruction_in_prompt, self.reset, self.write, self.state),
                row(*copies),
                self.view,
            ],
            layout=widgets.Layout(width="100%", padding="2px 8px 2px 0"),
        )
        app.add_class("ragfit-explorer")
        for widget in (self.choose_part, self.choose_finding, self.search):
            widget.observe(self._narrow, "value")
        self.slider.observe(lambda change: self._show(), "value")
        self.number.observe(self._go, "value")
        self.back.on_click(lambda _: self._step(-1))
        self.ahead.on_click(lambda _: self._step(1))
        for name in (*MODEL_KEYS, *TEXT_KEYS):
            getattr(self, name).observe(lambda change: self._show(), "value")
        self.reset.on_click(self._reset)
        self.write.on_click(self._write)
        self._app = app
        self._show()
        return app

    @property
    def settings(self):
        """The `Settings` that the widgets hold."""
        if self._app is None:
            return self.base
        return Settings(
            typed(self.completion_start.value),
            _clean(self.instruction.value),
            self.instruction_in_prompt.value,
            _clean(self.template.value),
            self.max_sequence_len.value or None,
            self.over_length.value,
        )

    def _findings(self, part):
        """(what to show, kind) for the list of findings."""
        counts = {f.kind: sum(1 for row in f.rows if row[0] == part) for f in self.prepared.report.findings}
        options = [(f"any or none ({len(self.numbers(part)):,} rows)", "")]
        return options + [
            (f"{kind} ({count:,} row{'s' * (count != 1)})", kind) for kind, count in counts.items() if count
        ]

    def _narrow(self, change):
        """Another part, finding or search text: the slider runs over the rows that match."""
        if self._quiet:
            return
        if change["owner"] is self.choose_part:
            self._quiet = True
            self.choose_finding.options = self._findings(self.choose_part.value)
            self._quiet = False
        self.part = self.choose_part.value
        self.found = self.matching(self.part, self.search.value, self.choose_finding.value)
        self._quiet = True
        self.slider.value = 0
        self.slider.max = max(0, len(self.found) - 1)
        self.number.max = max(self.numbers(self.part))
        self._quiet = False
        self._show()

    def _step(self, by):
        self.slider.value = min(max(self.slider.value + by, 0), self.slider.max)

    def _go(self, change):
        """A number typed into the box: that row, or the nearest that matches."""
        if self._quiet or not self.found:
            return
        wanted = change["new"]
        nearest = min(range(len(self.found)), key=lambda place: abs(self.found[place] - wanted))
        if nearest == self.slider.value:
            self._show()
        self.slider.value = nearest

    def _show(self):
        if self._quiet:
            return
        nothing = not self.found
        for widget in (self.slider, self.number, self.back, self.ahead):
            widget.disabled = nothing
        if nothing:
            self.row, self.view.value = (
                None,
                str(NoteView("No row matches", "Change the search text or the finding.").html()),
            )
        else:
            number = self.found[min(self.slider.value, len(self.found) - 1)]
            self._quiet = True
            self.number.value = number
            self._quiet = False
            self.row = RowView(self.prepared, number, self.part, self.show, self.settings)
            self.view.value = str(self.row.html())
        place = f"{self.slider.value + 1:,} of " if self.found else ""
        what = "hit" if self.search.value or self.choose_finding.value else "row"
        told = f"{place}{len(self.found):,} {what}{'s' * (len(self.found) != 1)}"
        self.told.value = f'<span style="white-space:nowrap">{told}</span>'
        self._tell()

    def _tell(self):
        """The overrides, and what is missing for them."""
        changes, missing = self.changes()
        self.write.disabled = not missing
        self.reset.disabled = not (changes or missing)
        if self.row is not None and self.row.error:
            said, cell, command = "Nothing to copy: these settings cannot be used.", "", ""
        elif missing:
            said = f"The edited {' and '.join(missing)} must be in a file first: press “Write edited texts”."
            cell, command = "", ""
        else:
            names = ", ".join(changes)
            said = f"Changed: {names}." if changes else "Nothing is changed."
            cell, command = self.cell(), self.command()
        self.state.value = f'<div style="font-size:12px;line-height:16px">{style.escape(said)}</div>'
        self.for_cell.value, self.for_shell.value = cell, command

    def _reset(self, _):
        self._quiet = True
        for name in (*MODEL_KEYS, *TEXT_KEYS):
            value = getattr(self.base, name)
            getattr(self, name).value = (
                spell(value) if name == "completion_start" else value or (0 if name == "max_sequence_len" else value)
            )
        self._quiet = False
        self._show()

    def _write(self, _):
        self.write_texts()
        self._tell()


def live():
    """Whether a front end that can answer runs this cell: papermill and nbconvert say that they cannot."""
    try:
        from IPython import get_ipython

        return bool(get_ipython().kernel.get_parent("shell")["content"].get("allow_stdin"))
    except (ImportError, AttributeError, KeyError, TypeError):
        return False


def typed(text):
    r"""What a text field means: `\n`, `\t`, `\r`, `\\`, `\xa0` and `\u00a0` are the characters they name.

    >>> typed(r"assistant\n") == "assistant\n"
    True
    """
    names = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(
        r"\\(?:([ntr\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))",
        lambda match: names[match[1]] if match[1] else chr(int(match[2] or match[3], 16)),
        text,
    )


def spell(text):
    """The inverse of `typed`: a text as it stands in a field of one line, every character seen."""
    names = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}

    def one(char):
        if char in names:
            return names[char]
        return char if char.isprintable() or ord(char) > 0xFFFF else f"\\u{ord(char):04x}"

    return "".join(map(one, text))


def _clean(text):
    """A text as a file gives it back: line ends are newlines, and nothing in it cannot be written."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return text.encode("utf-8", "replace").decode("utf-8")


def _shell(text):
    """A text quoted for a shell, in double quotes where they are enough: Hydra's own are single."""
    if re.fullmatch(r"[\w./-]+", text):
        return text
    return shlex.quote(text) if re.search(r'[$`"!]|\\[\\\n]|\\$', text) else f'"{text}"'
