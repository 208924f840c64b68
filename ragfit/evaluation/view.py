"""Base against tuned: metrics on top, then the answers side by side."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ragfit.draw.blocks import Badge, Block, Callout, Fold, Heading, Line, Long, Note, Span, Table
from ragfit.draw.view import View
from ragfit.evaluation.results import CLOSED_BOOK, MODELS
from ragfit.runs.records import METRICS, OF_LABELS

SHOWN = 6  # rows shown before the rest is folded


class EvaluationView(View):
    """What `ragfit.evaluate` measured.

    Args:
        rows: dicts with question, expected (a list), and for base (where there is one) and tuned the answer under that
            name and its scores under `base_f1` and so on.
        summary: of `ragfit.evaluation`: part, rows, max_new_tokens and a dict for each metric.
        notes: sentences to be read first.
        saved: the path of the rows, or None.
    """

    def __init__(self, rows: Iterable[dict], summary: Mapping, notes: Iterable[str] = (), saved: Path | None = None):
        self.rows, self.summary, self.notes, self.saved = list(rows), dict(summary), list(notes), saved
        self.title = f"Answers on {len(self.rows)} {summary['part']} row{'s' * (len(self.rows) != 1)}"
        self.columns = [name for name in (*MODELS, CLOSED_BOOK) if any(row.get(name) is not None for row in self.rows)]

    def _metrics(self, sides: Sequence[str]) -> Iterator[tuple[str, list[str], str, str]]:
        """(name, value of each side, comparison, meaning) of each metric, as text; "–" where there is no value."""
        loss = self.summary.get("dev_loss")
        if loss:
            values = ["–" if loss.get(side) is None else f"{loss[side]:.4f}" for side in sides]
            change = "" if loss["base"] is None else f"{loss['tuned'] - loss['base']:+.4f}"
            yield "dev loss", values, change, f"nats per completion token, mean of {loss['rows']:,} dev rows"
        for metric, (name, meaning) in (METRICS | OF_LABELS).items():
            found = self.summary.get(metric)
            if not found:
                continue
            count = found["rows"]
            values = ["–" if found.get(side) is None else f"{found[side]:.1%}" for side in sides]
            change = ""
            if "better" in found:
                better, worse = found["better"], found["worse"]
                change = f"{better} better, {worse} worse, {count - better - worse} same"
            yield name, values, change, meaning + ("" if count == len(self.rows) else f"; {count} rows have one")

    def _fine_print(self) -> Iterator[str]:
        """How to read the numbers."""
        if self.rows:
            one = f"One row of {len(self.rows)} is {1 / len(self.rows):.1%}."
            yield f"{one} Case, punctuation, articles and citations do not count."
        marker = self.summary.get("answer_marker")
        if marker:
            for name in self.columns:
                without = sum(marker not in row.get(name, marker) for row in self.rows)
                if without:
                    which = f"{without} of {len(self.rows)} answers do not hold {marker!r}"
                    yield f"{name}: {which} and were compared whole."
        for name in self.columns:
            cut = sum(bool(row.get(f"{name}_cut")) for row in self.rows)
            if cut:
                where = f"{self.summary['max_new_tokens']} tokens (model.generation.max_new_tokens)"
                yield f"{name}: {cut} of {len(self.rows)} answers were cut at {where}."
        if "base" not in self.columns and self.rows:
            yield "All weights were trained, so the base model is not here any more."
        if self.saved:
            yield f"Saved in {self.saved}."

    def blocks(self) -> list[Block]:
        sides = [*MODELS, *([CLOSED_BOOK] if CLOSED_BOOK in self.columns else [])]
        metrics = [
            [name, *map(Span, values), change, Span(note, "quiet")]
            for name, values, change, note in self._metrics(sides)
        ]
        head, right = ["metric", *map(_named, sides), "tuned against base", "what it is"], range(1, len(sides) + 1)
        rest = self.rows[SHOWN:]
        return [
            *map(Callout, self.notes),
            Table(head, metrics, right, ("120px",)),
            *self._confusion(),
            *map(Note, self._fine_print()),
            *([self._answers(self.rows[:SHOWN])] if self.rows else []),
            *([Fold(f"{len(rest)} more row{'s' * (len(rest) != 1)}", [self._answers(rest)])] if rest else []),
        ]

    def _confusion(self) -> list[Block]:
        """How often each label was answered where each was expected."""
        found = self.summary.get("confusion")
        if not found:
            return []
        labels, tables = found["labels"], []
        for name in [column for column in self.columns if column in found]:
            rows = [[label, *map(str, counts)] for label, counts in zip(labels, found[name], strict=False)]
            tables += [Heading(name), Table(["expected", *labels], rows, right=range(1, len(labels) + 1))]
        return [Fold("which labels were answered", tables)]

    def _answers(self, rows: list[dict]) -> Table:
        table = [
            [
                Long(f"{row['row']}. {row['question']}"),
                Long(_one_of(row["expected"])),
                *(self._answer(row, name) for name in self.columns),
            ]
            for row in rows
        ]
        widths = [f"{100 / (2 + len(self.columns)):.0f}%"] * (2 + len(self.columns))
        return Table(["question", "expected", *map(_named, self.columns)], table, widths=widths)

    def _answer(self, row: dict, name: str) -> Line:
        if name not in row:
            return "–"
        mark, rest = answer_mark(row, name)
        return (
            Badge(mark, {"✓": "good", "✗": "bad"}.get(mark[0], "note")),
            " ",
            Span(rest, "quiet"),
            "\n",
            Long(row[name]),
        )


def answer_mark(row: Mapping, name: str) -> tuple[str, str]:
    """How an answer did: a mark of one word or two, and what else there is to say."""
    f1, exact = row[f"{name}_f1"], row[f"{name}_exact_match"]
    mark = "✓ exact" if exact else f"F1 {f1:.0%}" if f1 else "✗ no match"
    rest = []
    recall, cites = row.get(f"{name}_recall"), row.get(f"{name}_citations")
    if recall is not None and not (exact and recall == 1) and (recall or f1):
        rest.append(f"recall {recall:.0%}")
    if cites is not None:
        rest.append("cites the same" if cites else "cites otherwise")
    if row.get(f"{name}_cut"):
        rest.append("cut")
    return mark, ", ".join(rest)


def _one_of(expected: Sequence[str]) -> str:
    return expected[0] if len(expected) == 1 else f"{expected[0]} (or {len(expected) - 1} more)"


def _named(side: str) -> str:
    return "tuned, no documents" if side == CLOSED_BOOK else side
