"""What grounding found, drawn: five questions over all rows, and one row's documents and tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.data.documents import Document
from ragfit.draw import html as style
from ragfit.draw.blocks import Badge, Bar, Block, Callout, Fold, Heading, Line, Long, Note, Picture, Span, Table
from ragfit.draw.figure import figure, finish, legend_below
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View
from ragfit.evaluation.probes import DISTRACTORS, PLACES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 12  # row numbers that are listed
LEAST = 0.1  # nats by which a token's loss must change for it to depend on a document

# (part, title, what it means, {measure: what it is called}); shares have names that end so, all else is in nats.
QUESTIONS = (
    (
        "drop",
        "Which document does the answer come from?",
        "Each document is removed in turn; the answer depends most on the one whose removal raises its loss most. A "
        "model that reads depends on a supporting document more often than chance (ContextCite, arXiv 2409.00729).",
        {
            "top_is_supporting": "depends most on a supporting document (% of rows)",
            "chance": "expected by chance (% of rows)",
            "rise_supporting": "loss increase without a supporting document (nats)",
            "rise_others": "loss increase without another document (nats)",
        },
    ),
    (
        "without",
        "Does it need the documents?",
        "An answer whose loss is lower without any document was memorized or guessed. Such rows teach a model to "
        "ignore its documents (Sufficient Context, arXiv 2411.06037).",
        {
            "loss_supporting": "loss with the supporting documents only (nats)",
            "loss_all": "loss with all documents (nats)",
            "loss_none": "loss without documents (nats)",
            "cheaper_without": "lower loss without documents (% of rows)",
        },
    ),
    (
        "distractors",
        "Do irrelevant documents distract it?",
        "Documents of other rows are added to the supporting ones. The flatter the curve, the better the model ignores "
        "irrelevant documents (RAFT, arXiv 2403.10131).",
        {f"distractors_{count}_loss": f"loss with {counted(count, 'distractor')} (nats)" for count in DISTRACTORS}
        | {f"distractors_{count}_f1": f"token F1 with {counted(count, 'distractor')} (%)" for count in DISTRACTORS},
    ),
    (
        "position",
        "Does the position of the document matter?",
        "The supporting document is put at each position among nine documents of other rows. A model that reads all of "
        "them gives a flat curve; one that is lost in the middle gives a hill (arXiv 2307.03172).",
        {f"place_{place}_loss": f"loss with the document at position {place} (nats)" for place in range(1, PLACES + 1)},
    ),
    (
        "citations",
        "Are its citations faithful?",
        "A citation is faithful where it names the document that the answer depends on most, which is not always the "
        "expected one (MIRAGE, arXiv 2406.13663).",
        {
            "cites_expected": "cites exactly the expected documents (% of rows)",
            "cites_top": "cites the document it depends on most (% of rows)",
            "expected_is_top": "depends most on an expected document (% of rows)",
        },
    ),
)

# Why a question has no answer.
NO_SUPPORT = (
    "Not measured: no supporting document is known for any of these rows. A row names it with positive_indices, or a "
    "document contains its answer, which is not searched for where answers are labels such as yes and no."
)
UNASKED = {"citations": "Not measured: no expected answer cites a document ([1], [2], …)."}
TOO_FEW = f"Not measured: it takes {PLACES - 1} documents of other rows, and fewer were read. Read more rows."
# What is drawn as a curve: {part: (places on the axis, what they are, {measure at a place: what it is called})}.
CURVES = {
    "distractors": (
        DISTRACTORS,
        "distractors (documents of other rows)",
        {"distractors_{}_loss": "loss of the answer (nats)", "distractors_{}_f1": "token F1 (0 to 1)"},
    ),
    "position": (
        range(1, PLACES + 1),
        "position of the supporting document",
        {"place_{}_loss": "loss of the answer (nats)"},
    ),
}


class GroundingView(View):
    """What `ragfit.evaluation.grounding` measured.

    Attributes:
        rows: a dict for each row, as in `grounding.jsonl`.
        summary: as in `grounding.json`.
        saved: the path of the rows, or None.
    """

    def __init__(self, rows: Sequence[Mapping], summary: Mapping, saved: Path | None = None):
        self.rows, self.summary, self.saved = list(rows), dict(summary), saved
        self.title = "Does the model read its documents? " + counted(len(self.rows), f"{summary['part']} row")
        self.names = [name for name in ("base", "tuned") if any(name in row for row in self.rows)]

    def row(self, index: int = 0) -> "GroundedRowView":
        """One of the rows: its documents, and the tokens of its answer."""
        return GroundedRowView(self.rows[index])

    def astray(self) -> list[int]:
        """The indices of the rows whose answer, under the tuned model, depends most on no supporting document."""
        name = self.names[-1]
        rises = [_by_number(row[name].get("rise") or {}) for row in self.rows]
        tops = [max(rise, key=rise.__getitem__, default=None) for rise in rises]
        pairs = enumerate(zip(self.rows, tops, strict=True))
        return [n for n, (row, top) in pairs if row["supporting"] and top not in (None, *row["supporting"])]

    def blocks(self) -> list[Block]:
        blocks: list[Block] = []
        if unread := self.summary["unread"]:
            blocks.append(
                Callout(f"The documents of {_numbers(unread)} could not be found in the prompt and were not tested.")
            )
        if self.summary["part"] == "train":
            blocks.append(Callout("There is no dev set: these rows were trained on. Set dev_split."))
        for part, title, meaning, measures in QUESTIONS:
            found = [name for name in measures if name in self.summary]
            if part not in self.summary["parts"]:
                continue
            few = part == "position" and any(row["supporting"] for row in self.rows)
            why = TOO_FEW if few else UNASKED.get(part, NO_SUPPORT)
            blocks += [Heading(title), Note(meaning if found else why)]
            if not found:
                continue
            if part in CURVES:
                blocks.append(Picture(lambda part=part: self._curves(part), f"{title} {meaning}"))
                table = Fold("the numbers", [self._table(measures, found)])
            else:
                table = self._table(measures, found)
            blocks.append(table)
            if part == "without":
                blocks += self._by_heart()
        blocks.append(Note("Losses are sums over the answer's tokens, its citations excluded. In brackets: 95 % "
                           "bootstrap intervals over the rows. Differences are paired."))  # fmt: skip
        return [*blocks, *([Note(f"Saved in {self.saved}.")] if self.saved else [])]

    def _table(self, measures: Mapping[str, str], found: Sequence[str]) -> Table:
        rows = []
        for name in found:
            of, share = self.summary[name], "%" in measures[name]
            cells = [_estimate(of[side], share) for side in self.names]
            if len(self.names) == 2:
                cells.append("–" if name == "chance" else _estimate(of["difference"], share, signed=True))
            count = next((one["rows"] for one in of.values() if one), 0)
            rows.append([measures[name], *cells, f"{count:,}"])
        head = ["", *self.names, *(["tuned − base"] if len(self.names) == 2 else []), "rows"]
        return Table(["measure", *head[1:]], rows, right=range(1, len(head)), widths=("38%",))

    def _by_heart(self) -> list[Block]:
        """The rows whose answers have a lower loss without documents, under the tuned model."""
        name = self.names[-1]
        rows = [
            row["row"]
            for row in self.rows
            if row[name].get("none") is not None and row[name]["none"] < row[name]["all"]
        ]
        return [Note(f"Lower loss without documents, {name} model: {_numbers(rows)}.")] if rows else []

    def _curves(self, part: str) -> "Figure":
        """The mean of each measure of a part with its interval, along the number of others or the places."""
        counts, along, measures = CURVES[part]
        known = [key for key in measures if any(key.format(x) in self.summary for x in counts)]
        drawn = figure(2.6)
        for axis, key in zip(drawn.subplots(1, len(known), squeeze=False)[0], known, strict=True):
            for name, colour, marker in (("base", style.ORANGE, "D"), ("tuned", style.BLUE, "o")):
                points = [(x, one) for x in counts if (one := (self.summary.get(key.format(x)) or {}).get(name))]
                if points:
                    xs = [x for x, _ in points]
                    means, low, high = ([one[bound] for _, one in points] for bound in ("mean", "low", "high"))
                    axis.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
                    axis.plot(xs, means, color=colour, marker=marker, markersize=4, label=name)
            axis.set_xticks(list(counts))
            axis.set_ylim(bottom=0)
            axis.set_xlabel(along)
            count = max(one["rows"] for x in counts for one in (self.summary.get(key.format(x)) or {}).values() if one)
            finish(axis, f"{measures[key]}, {counted(count, 'row')}, 95 % intervals")
        legend_below(drawn)
        return drawn


class GroundedRowView(View):
    """One row: how much the answer's loss increases without each document, and which one each token depends on."""

    def __init__(self, row: Mapping):
        self.row, self.title = row, f"Where the answer to row {row['row']} comes from"
        self.names = [name for name in ("base", "tuned") if "rise" in (row.get(name) or {})]
        self.documents = [Document(**one) for one in row["documents"]]

    def blocks(self) -> list[Block]:
        row, supports = self.row, set(self.row["supporting"])
        rises = {name: _by_number(row[name]["rise"]) for name in self.names}
        most = max((value for rise in rises.values() for value in rise.values()), default=0.0)
        table = [
            [
                f"[{one.number}]",
                (Badge("supports", "good"), " ", Long(one.text)) if one.number in supports else Long(one.text),
                *(
                    (Bar(max(0.0, rise[one.number]) / max(most, 1e-9)), f"{rise[one.number]:+.2f}")
                    for rise in rises.values()
                ),
            ]
            for one in self.documents
        ]
        head = ["", "document", *(f"{name}: loss increase without it (nats)" for name in self.names)]
        blocks: list[Block] = [Note(("Question: ", Long(row["question"]))), Note(("Answer: ", Long(row["expected"])))]
        blocks.append(Table(["number", *head[1:]], table, widths=("70px", "46%", *["27%"] * len(self.names))))
        for name in self.names:
            tokens = row[name]["tokens"]
            blocks.append(Note((f"{name}: ", *(part for token in tokens for part in self._token(token)))))
            figures = [
                [Span(repr(token["text"]), "mono"), f"{token['loss']:.2f}", _changes(_by_number(token["rise"]))]
                for token in tokens
            ]
            head = ["token", "loss (nats)", f"change without a document, where at least {LEAST} nats"]
            blocks.append(Fold(f"{name}: loss of each token", [Table(head, figures, (1,), ("20%",))], in_text=False))
        return [
            *blocks,
            Note(
                f"After each token: the document it depends on most. None: no removal raises its loss by {LEAST} nats."
            ),
        ]

    def _token(self, token: Mapping) -> tuple[Line, ...]:
        rise = _by_number(token["rise"])
        best = max(rise, key=rise.__getitem__, default=None)
        word = Span(token["text"], "mono")
        return (word, Badge(f"[{best}]"), " ") if best is not None and rise[best] > LEAST else (word, " ")


def _changes(rise: Mapping[int, float]) -> str:
    """The documents whose removal changes a loss, from the most to the least."""
    ranked = sorted(rise.items(), key=lambda pair: -abs(pair[1]))
    return ", ".join(f"[{number}] {change:+.2f}" for number, change in ranked if abs(change) >= LEAST) or "–"


def _by_number(rise: Mapping) -> dict[int, float]:
    """JSON has made texts of the numbers."""
    return {int(number): value for number, value in rise.items()}


def _estimate(one: Mapping | None, share: bool, signed: bool = False) -> Line:
    if one is None:
        return "–"
    sign, scale, unit = "+" if signed else "", 100 if share else 1, "%" if share else ""
    digits = ".0f" if share else ".2f"
    low, high = (f"{scale * one[bound]:{sign}{digits}}" for bound in ("low", "high"))
    return Span(f"{scale * one['mean']:{sign}{digits}}{unit}"), " ", Span(f"({low} to {high})", "quiet")


def _numbers(rows: Sequence[int]) -> str:
    return f"{counted(len(rows), 'row')} ({listed(rows, LISTED)})"
