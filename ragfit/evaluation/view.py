"""Base against tuned: metrics on top, then the answers side by side."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ragfit.data.words import citations
from ragfit.draw.blocks import Badge, Block, Callout, Fold, Heading, Line, Long, Note, Span, Table
from ragfit.draw.text import counted
from ragfit.draw.view import View
from ragfit.evaluation.metrics import after_marker, share_interval
from ragfit.evaluation.results import CLOSED_BOOK, MODELS
from ragfit.runs.records import METRICS, OF_LABELS

SHOWN = 6  # rows shown before the rest is folded
SHARES = ("exact_match", "citations", "accuracy")  # a row has it or not, so that the mean is a share of the rows


class EvaluationView(View):
    """What `ragfit.evaluate` measured.

    Args:
        rows: dicts with question, expected (a list), and for base (where there is one) and tuned the answer under that
            name and its scores under `base_f1` and so on.
        summary: of `ragfit.evaluate`: part, rows, max_new_tokens and a dict for each metric.
        notes: sentences to be read first.
        saved: the path of the rows, or None.
    """

    def __init__(self, rows: Iterable[dict], summary: Mapping, notes: Iterable[str] = (), saved: Path | None = None):
        self.rows, self.summary, self.notes, self.saved = list(rows), dict(summary), list(notes), saved
        self.title = f"Answers on {counted(len(self.rows), summary['part'] + ' row')}"
        self.columns = [name for name in (*MODELS, CLOSED_BOOK) if any(name in row for row in self.rows)]
        self.sides = [*MODELS, *([CLOSED_BOOK] if CLOSED_BOOK in self.columns else [])]

    def blocks(self) -> list[Block]:
        head = ["metric", *map(self._named, self.sides), "tuned against base", "what it is"]
        rest = self.rows[SHOWN:]
        return [
            *map(Callout, self.notes),
            Table(head, list(self._figures()), range(1, len(self.sides) + 1), ("120px",)),
            *self._confusion(),
            *map(Note, self._fine_print()),
            *([self._answers(self.rows[:SHOWN])] if self.rows else []),
            *([Fold(counted(len(rest), "more row"), [self._answers(rest)])] if rest else []),
        ]

    def _named(self, side: str) -> str:
        if side != CLOSED_BOOK:
            return side
        count = sum(side in row for row in self.rows)
        return "tuned, no documents" + ("" if count == len(self.rows) else f" ({counted(count, 'row')})")

    def _figures(self) -> Iterator[list[Line]]:
        """A line of the table for each figure: its name, a cell for each side, the comparison, what it is."""
        if loss := self.summary.get("dev_loss"):
            cells = [Span("–" if loss.get(side) is None else f"{loss[side]:.4f}") for side in self.sides]
            change = "" if loss["base"] is None else f"{loss['tuned'] - loss['base']:+.4f}"
            what = f"nats per completion token of {counted(loss['rows'], 'dev row')}"
            yield ["dev loss", *cells, change, Span(what, "quiet")]
        for metric, (name, meaning) in (METRICS | OF_LABELS).items():
            if not (found := self.summary.get(metric)):
                continue
            count, change = found["rows"], ""
            if "better" in found:
                better, worse = found["better"], found["worse"]
                change = f"{better} better, {worse} worse, {count - better - worse} same"
            meaning += "" if count == len(self.rows) else f"; {counted(count, 'row')} can have it"
            yield [name, *(self._mean(metric, side, found) for side in self.sides), change, Span(meaning, "quiet")]

    def _mean(self, metric: str, side: str, found: Mapping) -> Line:
        if found.get(side) is None:
            return "–"
        closed = sum(row.get(f"{side}_{metric}") is not None for row in self.rows)
        count = closed if side == CLOSED_BOOK else found["rows"]
        mean = Span(f"{found[side]:.1%}")
        if metric not in SHARES:
            return mean
        low, high = share_interval(round(found[side] * count), count)
        return mean, " ", Span(f"({low:.0%} to {high:.0%})", "quiet")

    def _fine_print(self) -> Iterator[str]:
        """How to read the numbers, and why one is missing."""
        if self.rows:
            yield "In brackets: the 95 % interval of a share. Case, punctuation, articles and citations do not count."
        marker = self.summary.get("answer_marker")
        for name in self.columns:
            answers = [row for row in self.rows if name in row]
            if marker and (without := sum(marker not in row[name] for row in answers)):
                yield f"{name}: {without} of {len(answers)} answers do not hold {marker!r} and were compared whole."
            if cut := sum(bool(row.get(f"{name}_cut")) for row in answers):
                where = f"{self.summary['max_new_tokens']} tokens; for longer ones set model.generation.max_new_tokens"
                yield f"{name}: {cut} of {len(answers)} answers were cut at {where}."
        if "base" not in self.columns and self.rows:
            yield "All weights were trained, so the base model is not here any more."
        if self.saved:
            yield f"Saved in {self.saved}."

    def _confusion(self) -> list[Block]:
        """How often each label was answered where each was expected."""
        found, tables = self.summary.get("confusion") or {"labels": []}, []
        for name in (name for name in self.columns if name in found):
            rows = [[label, *map(str, counts)] for label, counts in zip(found["labels"], found[name], strict=False)]
            head = ["expected", *found["labels"]]
            tables += [Heading(name), Table(head, rows, right=range(1, len(head)))]
        return [Fold("which labels were answered", tables)] if tables else []

    def _answers(self, rows: list[dict]) -> Table:
        table = []
        for row in rows:
            first, *others = row["expected"]
            expected = Long(first + (f" (or {len(others)} more)" if others else ""))
            answers = (_answer(row, name, self.summary) if name in row else "–" for name in self.columns)
            table.append([Long(f"{row['row']}. {row['question']}"), expected, *answers])
        head = ["question", "expected", *map(self._named, self.columns)]
        return Table(head, table, widths=[f"{100 / len(head):.0f}%"] * len(head))


def _answer(row: Mapping, name: str, summary: Mapping) -> Line:
    """An answer under its verdict."""
    f1, exact = row[f"{name}_f1"], row[f"{name}_exact_match"]
    recall, cites = row.get(f"{name}_recall"), row.get(f"{name}_citations")
    mark = Badge("✓ exact", "good") if exact else Badge(f"F1 {f1:.0%}") if f1 else Badge("✗ no match", "bad")
    rest = [f"recall {recall:.0%}"] if recall and not exact and "confusion" not in summary else []
    if cites is not None:
        other = "otherwise" if citations(after_marker(row[name], summary.get("answer_marker"))) else "nothing"
        rest.append(f"cites {'the same' if cites else other}")
    if row.get(f"{name}_cut"):
        rest.append("cut")
    return mark, " ", Span(", ".join(rest), "quiet"), " ", "\n", Long(row[name])
