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
    """What `ragfit.evaluate` measured: `rows` as in evaluation.jsonl, `summary` as in evaluation.json, `saved` or None.

    A row is a dict with question, expected (a list), and for base (where there is one) and tuned the answer under that
    name and its scores under `base_f1` and so on. Notes are sentences to be read first.
    """

    def __init__(self, rows: Iterable[dict], summary: Mapping, notes: Iterable[str] = (), saved: Path | None = None):
        self.rows, self.summary, self.notes, self.saved = list(rows), dict(summary), list(notes), saved
        self.title = f"Answers on {counted(len(self.rows), summary['part'] + ' row')}"
        self.columns = [name for name in MODELS if any(name in row for row in self.rows)]

    def blocks(self) -> list[Block]:
        rest = self.rows[SHOWN:]
        return [
            *map(Callout, self.notes),
            Table(["metric", *MODELS, "tuned against base", "what it is"], list(self._figures()), (1, 2), ("120px",)),
            *map(Note, self._fine_print()),
            *([self._answers(self.rows[:SHOWN])] if self.rows else []),
            *([Fold(counted(len(rest), "more row"), [self._answers(rest)])] if rest else []),
        ]

    def _figures(self) -> Iterator[list[Line]]:
        if loss := self.summary.get("dev_loss"):
            cells = ["–" if loss.get(name) is None else Span(f"{loss[name]:.4f}") for name in MODELS]
            change = "" if loss.get("base") is None else f"{loss['tuned'] - loss['base']:+.4f}"
            yield ["dev loss", *cells, change, Span(f"nats per token of {counted(loss['rows'], 'dev row')}", "quiet")]
        for metric, (called, meaning) in (METRICS | OF_LABELS).items():
            if found := self.summary.get(metric):
                count, better, worse = found["rows"], found.get("better"), found.get("worse")
                change = "" if better is None else f"{better} better, {worse} worse, {count - better - worse} same"
                meaning += "" if count == len(self.rows) else f"; {counted(count, 'row')} can have it"
                cells = [_mean(found.get(name), count, metric in SHARES) for name in MODELS]
                yield [called, *cells, change, Span(meaning, "quiet")]

    def _fine_print(self) -> Iterator[str]:
        marker, longest, count = *(self.summary.get(key) for key in ("answer_marker", "max_new_tokens")), len(self.rows)
        yield "In brackets: the 95 % interval of a share. Case, punctuation, articles and citations do not count."
        for name in self.columns:
            if marker and (without := sum(marker not in row[name] for row in self.rows)):
                yield f"{name}: {without} of {count} answers do not hold {marker!r} and were compared whole."
            if cut := sum(bool(row.get(f"{name}_cut")) for row in self.rows):
                yield f"{name}: {cut} of {count} answers were cut at model.generation.max_new_tokens={longest} tokens."
        if self.saved:
            yield f"Saved in {self.saved}."

    def _answers(self, rows: list[dict]) -> Table:
        head = ["question", "expected", *self.columns]
        return Table(head, list(map(self._row, rows)), widths=[f"{100 / len(head):.0f}%"] * len(head))

    def _row(self, row: Mapping) -> list[Line]:
        """What is asked and expected, and each model's answer under its verdict."""
        cells: list[Line] = [Long(f"{row['row']}. {row['question']}"), Long(" or ".join(row["expected"]))]
        for name in self.columns:
            f1, exact, cites = (row[f"{name}_{metric}"] for metric in ("f1", "exact_match", "citations"))
            mark = Badge("✓ exact", "good") if exact else Badge(f"F1 {f1:.0%}") if f1 else Badge("✗ no match", "bad")
            said = citations(after_marker(row[name], self.summary.get("answer_marker")))
            rest = [] if cites is None else [f"cites {'the same' if cites else 'otherwise' if said else 'nothing'}"]
            rest += ["cut"] if row.get(f"{name}_cut") else []
            cells.append((mark, " ", Span(", ".join(rest), "quiet"), " ", "\n", Long(row[name])))
        return cells


def _mean(mean: float | None, count: int, share: bool) -> Line:
    if mean is None:
        return "–"
    low, high = share_interval(round(mean * count), count)
    return Span(f"{mean:.1%}"), Span(f" ({low:.0%} to {high:.0%})" if share else "", "quiet")
