"""What grounding found, drawn: five questions over all rows, and one row's documents and tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.draw import html as style
from ragfit.draw.blocks import Badge, Bar, Block, Callout, Fold, Heading, Line, Long, Note, Picture, Span, Table
from ragfit.draw.figure import figure, finish, legend_below
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View
from ragfit.evaluation.grounding import rise_of, values_of
from ragfit.evaluation.probes import DISTRACTORS, FEWER, PLACES
from ragfit.evaluation.results import MODELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 12  # row numbers that are listed
LEAST = 0.1  # nats by which a token's loss must change for it to depend on a document

# (title, what it means, {measure: what it is called, with its unit}, why rows do not answer it).
QUESTIONS = (
    ("Which document does the answer come from?",
     "Each document is removed in turn; the answer depends most on the one whose removal raises its loss most. A model "
     "that reads depends on a supporting document more often than chance (ContextCite, arXiv 2409.00729).",
     {"top_is_supporting": "depends most on a supporting document (% of rows)",
      "chance": "expected by chance (% of rows)",
      "rise_supporting": "loss increase without a supporting document (nats)",
      "rise_others": "loss increase without another document (nats)"},
     "no supporting document is known for these rows, or all of their documents support them"),
    ("Does it need the documents?",
     "An answer whose loss is lower without any document was memorized or guessed. Such rows teach a model to ignore "
     "its documents (Sufficient Context, arXiv 2411.06037).",
     {"loss_supporting": "loss with the supporting documents only (nats)",
      "loss_all": "loss with all documents (nats)",
      "loss_none": "loss without documents (nats)",
      "cheaper_without": "lower loss without documents (% of rows)"},
     "no supporting document is known for these rows"),
    ("Do irrelevant documents distract it?",
     "Documents of other rows are added to the supporting ones. The flatter the curve, the better the model ignores "
     "irrelevant documents (RAFT, arXiv 2403.10131).",
     {f"{count} others": f"loss with {counted(count, 'distractor')} (nats)" for count in DISTRACTORS},
     "no supporting document is known, or fewer documents of other rows were read"),
    ("Does the position of the document matter?",
     "The supporting document is put at each position among nine documents of other rows. A model that reads all of "
     "them gives a flat curve; one that is lost in the middle gives a hill (arXiv 2307.03172).",
     {f"place {place}": f"loss with the document at position {place} (nats)" for place in range(1, PLACES + 1)},
     f"no supporting document is known, or fewer than {PLACES - 1} documents of other rows were read"),
    ("Are its citations faithful?",
     "A citation is faithful where it names the document that the answer depends on most, which is not always the "
     "expected one (MIRAGE, arXiv 2406.13663).",
     {"cites_expected": "cites exactly the expected documents (% of rows)",
      "cites_top": "cites the document it depends on most (% of rows)",
      "expected_is_top": "depends most on an expected document (% of rows)"},
     "no expected answer cites a document ([1], [2], …)"),
)  # fmt: skip
SUPPORT = (
    "A row names its supporting documents with positive_indices, or they contain its answer, which is not searched for "
    "where answers are labels such as yes and no. More rows bring more documents of other rows."
)
# What is drawn as a curve: the measure at each place on the axis, and what the axis is, by the first of the measures.
CURVES = {
    "0 others": ({x: f"{x} others" for x in DISTRACTORS}, "distractors (documents of other rows)"),
    "place 1": ({x: f"place {x}" for x in range(1, PLACES + 1)}, "position of the supporting document"),
}
HOW = (
    "Losses are sums over the answer's tokens, its citations excluded. In brackets: 95 % intervals over the rows "
    "(Wilson's of a share, Newcombe's of two shares, the bootstrap's of other means, which one row has not). Base and "
    f"tuned stand on the same rows; distractors and positions on every {FEWER}th."
)


class GroundingView(View):
    """What `ragfit.evaluation.grounding` measured: `rows` as in grounding.jsonl, `summary` as in grounding.json.

    `saved` is the path of the rows, or None.
    """

    def __init__(self, rows: Sequence[Mapping], summary: Mapping, saved: Path | None = None):
        self.rows, self.summary, self.saved = list(rows), dict(summary), saved
        self.title = "Does the model read its documents? " + counted(len(self.rows), f"{summary['part']} row")
        self.names = [name for name in MODELS if name in self.rows[0]]

    def row(self, index: int = 0) -> "GroundedRowView":
        """One of the rows, by its index in `rows`, with its documents and the tokens of its answer."""
        return GroundedRowView(self.rows[index])

    def astray(self) -> list[int]:
        """The indices of the rows whose answer depends most on a document that does not support it (last model)."""
        values = [values_of(row, self.names[-1]) for row in self.rows]
        return [index for index, row in enumerate(values) if row.get("top_is_supporting") is False]

    def blocks(self) -> list[Block]:
        unread, parts = self.summary["unread"], []
        notes = {
            f"The documents of {_numbers(unread)} could not be found in the prompt and were not tested.": unread,
            "No trained adapter is loaded: these figures are the base model's.": self.names == ["base"],
            "There is no dev set: these rows were trained on. Set dev_split.": self.summary["part"] == "train",
        }
        for title, meaning, measures, missing in QUESTIONS:
            parts += [Heading(title), *self._answer(meaning, measures, f"{missing}. {SUPPORT}")]
        saved = [Note(f"Saved in {self.saved}.")] if self.saved else []
        return [*(Callout(note) for note, holds in notes.items() if holds), *parts, Note(HOW), *saved]

    def _answer(self, meaning: str, measures: Mapping[str, str], missing: str) -> list[Block]:
        found = {name: self.summary[name] for name in measures if name in self.summary}
        lacking = ", ".join(called for name, called in measures.items() if name not in found)
        if not found:
            return [Note(f"Not measured: {missing}")]
        head = ["measure", *self.names, *(["tuned − base"] if len(self.names) == 2 else []), "rows"]
        rows = [[measures[name], *self._cells(name, of, "%" in measures[name])] for name, of in found.items()]
        drawn: list[Block] = [Table(head, rows, right=range(1, len(head)), widths=("38%",))]
        if curve := CURVES.get(next(iter(measures))):
            drawn = [Picture(lambda: self._curves(*curve), meaning), Fold("the numbers", drawn)]
        if "cheaper_without" in found:
            name = self.names[-1]
            if cheaper := [row["row"] for row in self.rows if values_of(row, name)["cheaper_without"]]:
                drawn.append(Note(f"Lower loss without documents, {name} model: {_numbers(cheaper)}."))
        return [Note(meaning), *drawn, *([Note(f"Not measured: {lacking}: {missing}")] if lacking else [])]

    def _cells(self, name: str, of: Mapping[str, Mapping], share: bool) -> list[Line]:
        cells = [_estimate(of[side], share) for side in self.names]
        if len(self.names) == 2:
            cells.append("–" if name == "chance" else _estimate(of["difference"], share, signed=True))
        return [*cells, f"{of[self.names[-1]]['rows']:,}"]

    def _curves(self, measures: Mapping[int, str], along: str) -> "Figure":
        """The loss with its interval, along the number of others or the places."""
        points = {x: self.summary[measure] for x, measure in measures.items() if measure in self.summary}
        drawn = figure(2.6)
        axis = drawn.subplots()
        for name in self.names:
            colour, marker = {"base": (style.ORANGE, "D"), "tuned": (style.BLUE, "o")}[name]
            mean, low, high = ([of[name][bound] for of in points.values()] for bound in ("mean", "low", "high"))
            if None not in low:
                axis.fill_between(list(points), low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(list(points), mean, color=colour, marker=marker, markersize=4, label=name)
        axis.set_xticks(list(measures))
        axis.set_ylim(bottom=0)
        axis.set_xlabel(along)
        count = max(of[self.names[-1]]["rows"] for of in points.values())
        finish(axis, f"loss of the answer (nats), {counted(count, 'row')}{', 95 % intervals' * (count > 1)}")
        legend_below(drawn)
        return drawn


class GroundedRowView(View):
    """One row: how much the answer's loss increases without each document, and which one each token depends on."""

    def __init__(self, row: Mapping):
        self.row, self.title = row, f"Where the answer to row {row['row']} comes from"
        self.rises = {name: rise_of(row, name) for name in MODELS if name in row}

    def blocks(self) -> list[Block]:
        row, most = self.row, max(1e-9, *(value for rise in self.rises.values() for value in rise.values()))
        table = []
        for one in row["documents"]:
            supports = (Badge("supports", "good"), " ") if (number := one["number"]) in row["supporting"] else ()
            bars = [(Bar(max(0.0, rise[number]) / most), f"{rise[number]:+.2f}") for rise in self.rises.values()]
            table.append([f"[{number}]", (*supports, Long(one["text"])), *bars])
        head = ["number", "document", *(f"{name}: loss increase without it (nats)" for name in self.rises)]
        tokens = {name: [part for token in row[name]["tokens"] for part in _token(token)] for name in self.rises}
        how = f"After each token: the document it depends on most. None: no removal raises its loss by {LEAST} nats."
        return [
            Note(("Question: ", Long(row["question"]))),
            Note(("Answer: ", Long(row["expected"]))),
            Table(head, table, widths=("70px", "46%", *["27%"] * len(self.rises))),
            *(Note((f"{name}: ", *parts)) for name, parts in tokens.items()),
            Note(how),
        ]


def _token(token: Mapping) -> tuple[Line, ...]:
    """A token, and the document that it depends on most."""
    best = max(token["rise"], key=token["rise"].__getitem__)
    badge = (Badge(f"[{best}]"),) if token["rise"][best] > LEAST else ()
    return (Span(token["text"], "mono"), *badge, " ")


def _estimate(one: Mapping, share: bool, signed: bool = False) -> Line:
    sign, scale, unit, digits = "+" * signed, 100 if share else 1, "%" * share, 0 if share else 2
    known = {of: f"{scale * one[of]:{sign}.{digits}f}" for of in ("mean", "low", "high") if one[of] is not None}
    interval = (" ", Span(f"({known['low']} to {known['high']})", "quiet")) if "low" in known else ()
    return (Span(f"{known['mean']}{unit}"), *interval)


def _numbers(rows: Sequence[int]) -> str:
    return f"{counted(len(rows), 'row')} ({listed(rows, LISTED)})"
