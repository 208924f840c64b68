"""A table of runs, with the best of each measure marked."""

import re

from ragfit.views import style
from ragfit.views.style import Html, View, flow, plain

LOW, HIGH = ("train_loss", "dev_loss"), ("exact_match", "f1", "recall", "citations")
STATES = {"finished": ("✓", style.GOOD), "running": ("…", style.NOTE)}


class RunsView(View):
    """The table of `ragfit.table_of_runs`, drawn.

    Args:
        frame: the `pandas.DataFrame`.
    """

    def __init__(self, frame):
        self.frame = frame
        self.title = f"{len(frame)} run{'s' * (len(frame) != 1)}"
        self.best = {}
        for column in (*LOW, *HIGH):
            values = frame[column].dropna() if column in frame else ()
            if len(values) > 1:
                self.best[column] = values.min() if column in LOW else values.max()

    def _cell(self, column, value):
        """A value as text, with a star where it is the best of its column."""
        import pandas

        if not isinstance(value, str) and pandas.isna(value):
            return "–"
        if column in LOW:
            text = f"{value:.4f}"
        elif column in HIGH:
            text = f"{value:.1%}"
        elif column in ("step", "answers", "seconds"):
            text = f"{value:,.0f}"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"★ {text}" if value == self.best.get(column) and column in self.best else text

    def html(self):
        columns = [column for column in self.frame if column != "problem"]
        rows = []
        for name, row in zip(self.frame.index, self.frame[columns].itertuples(index=False, name=None), strict=True):
            cells = [Html(f"<b>{flow(str(name))}</b>")]
            for column, value in zip(columns, row, strict=True):
                text = self._cell(column, value)
                if column == "state":
                    mark, look = STATES.get(value, ("✗", style.BAD))
                    cells.append(style.badge(f"{mark} {text}", look) if text != "–" else text)
                else:
                    cells.append(Html(f"<b>{flow(text).replace(' ', '&nbsp;')}</b>") if text.startswith("★") else flow(text))
            rows.append(cells)
        right = [n for n, column in enumerate(columns, 1) if column in (*LOW, *HIGH, "step", "answers", "seconds")]
        # A long name takes two lines; a key stays as it is written.
        parts = [re.split(r"(?<=\.)(?=[^.]+$)", column) if "." in column else column.split("_") for column in columns]
        head = ["run", *(Html("<br>".join(map(flow, words))) for words in parts)]
        table = Html(f'<div style="overflow-x:auto">{style.table(head, rows, right=right)}</div>')
        note = style.quiet("★ the best of its column") if self.best else Html()
        return style.card(self.title, table, note, *(style.quiet(line) for line in self._problems()))

    def _problems(self):
        if "problem" in self.frame:
            for name, problem in self.frame["problem"].dropna().items():
                yield f"{name}: {problem}"

    def text(self):
        columns = [column for column in self.frame if column != "problem"]
        table = [["run", *columns]]
        for name, row in zip(self.frame.index, self.frame[columns].itertuples(index=False, name=None), strict=True):
            table.append([str(name), *(self._cell(column, value) for column, value in zip(columns, row, strict=True))])
        table = [[plain(" ".join(cell.split())) for cell in line] for line in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        lines += ["  ★ the best of its column"] if self.best else []
        return "\n".join([f"{self.title}:", *lines, *(plain(f"  {' '.join(line.split())}") for line in self._problems())])
