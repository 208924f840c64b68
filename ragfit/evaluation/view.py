"""Base against tuned: metrics on top, then the answers side by side."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ragfit.data.words import citations
from ragfit.draw.blocks import Badge, Block, Callout, Fold, Line, Long, Note, Span, Table
from ragfit.draw.text import counted
from ragfit.draw.view import View
from ragfit.evaluation.metrics import after_marker, share_interval
from ragfit.evaluation.results import MODELS
from ragfit.runs.records import METRICS, OF_LABELS

SHOWN = 6  # rows shown before the rest is folded
SHARES = ("exact_match", "citations", "accuracy")  # a row has it or not, so that the mean is a share of the rows


class EvaluationView(View):
    """What `ragfit.evaluate` measured.

    Attributes:
        rows: dicts with question, expected (a list), and for base (where there is one) and tuned the answer under that
            name and its scores under `base_f1` and so on, as in `evaluation.jsonl`.
        summary: part, rows, max_new_tokens and a dict for each metric, as in `evaluation.json`.
        notes: sentences to be read first.
        saved: the path of the rows, or None.
    """

    def __init__(self, rows: Iterable[dict], summary: Mapping, notes: Iterable[str] = (), saved: Path | None = None):
        self.rows, self.summary, self.notes, self.saved = list(rows), dict(summary), list(notes), saved
        self.title = f"Answers on {counted(len(self.rows), summary['part'] + ' row')}"
        self.columns = [name for name in MODELS if any(name in row for row in self.rows)]

    def blocks(self) -> list[Block]:
        head, rest = ["metric", *MODELS, "tuned against base", "what it is"], self.rows[SHOWN:]
        return [
            *map(Callout, self.notes),
            Table(head, list(self._figures()), (1, 2), ("120px",)),
            *map(Note, self._fine_print()),
            *([self._answers(self.rows[:SHOWN])] if self.rows else []),
            *([Fold(counted(len(rest), "more row"), [self._answers(rest)])] if rest else []),
        ]

    def _figures(self) -> Iterator[list[Line]]:
        """A line of the table for each figure: its name, a cell for each model, the comparison, what it is."""
        if loss := self.summary.get("dev_loss"):
            cells = [Span("–" if loss.get(name) is None else f"{loss[name]:.4f}") for name in MODELS]
            change = "" if loss["base"] is None else f"{loss['tuned'] - loss['base']:+.4f}"
            what = f"nats per completion token of {counted(loss['rows'], 'dev row')}"
            yield ["dev loss", *cells, change, Span(what, "quiet")]
        for metric, (name, meaning) in (METRICS | OF_LABELS).items():
            if found := self.summary.get(metric):
                count, better, worse = found["rows"], found.get("better"), found.get("worse")
                same = "" if better is None else f"{better} better, {worse} worse, {count - better - worse} same"
                meaning += "" if count == len(self.rows) else f"; {counted(count, 'row')} can have it"
                yield [name, *(_mean(metric, found, model) for model in MODELS), same, Span(meaning, "quiet")]

    def _fine_print(self) -> Iterator[str]:
        """How to read the numbers, and why one is missing."""
        if self.rows:
            yield "In brackets: the 95 % interval of a share. Case, punctuation, articles and citations do not count."
        marker, count = self.summary.get("answer_marker"), len(self.rows)
        for name in self.columns:
            if marker and (without := sum(marker not in row[name] for row in self.rows)):
                yield f"{name}: {without} of {count} answers do not hold {marker!r} and were compared whole."
            if cut := sum(bool(row.get(f"{name}_cut")) for row in self.rows):
                where = f"{self.summary['max_new_tokens']} tokens; for longer ones set model.generation.max_new_tokens"
                yield f"{name}: {cut} of {count} answers were cut at {where}."
        if "base" not in self.columns and self.rows:
            yield "All weights were trained, so the base model is not here any more."
        if self.saved:
            yield f"Saved in {self.saved}."

    def _answers(self, rows: list[dict]) -> Table:
        table = []
        for row in rows:
            first, *others = row["expected"]
            expected = Long(first + (f" (or {len(others)} more)" if others else ""))
            answers = (_answer(row, name, self.summary) for name in self.columns)
            table.append([Long(f"{row['row']}. {row['question']}"), expected, *answers])
        head = ["question", "expected", *self.columns]
        return Table(head, table, widths=[f"{100 / len(head):.0f}%"] * len(head))


def _mean(metric: str, found: Mapping, name: str) -> Line:
    """A mean over the rows; with its interval, where it is a share of them."""
    if found.get(name) is None:
        return "–"
    low, high = share_interval(round(found[name] * found["rows"]), found["rows"])
    mean = Span(f"{found[name]:.1%}")
    return (mean, " ", Span(f"({low:.0%} to {high:.0%})", "quiet")) if metric in SHARES else mean


def _answer(row: Mapping, name: str, summary: Mapping) -> Line:
    """An answer under its verdict."""
    f1, exact, recall, cites = (row[f"{name}_{key}"] for key in ("f1", "exact_match", "recall", "citations"))
    mark = Badge("✓ exact", "good") if exact else Badge(f"F1 {f1:.0%}") if f1 else Badge("✗ no match", "bad")
    rest = [f"recall {recall:.0%}"] if recall and not exact and "accuracy" not in summary else []
    if cites is not None:
        other = "otherwise" if citations(after_marker(row[name], summary.get("answer_marker"))) else "nothing"
        rest.append(f"cites {'the same' if cites else other}")
    rest += ["cut"] if row.get(f"{name}_cut") else []
    return mark, " ", Span(", ".join(rest), "quiet"), " ", "\n", Long(row[name])
