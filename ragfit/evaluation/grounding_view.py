"""What grounding found, drawn: five questions over all rows, and one row's documents and tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ragfit.draw import html as style
from ragfit.draw.blocks import Badge, Bar, Block, Callout, Fold, Heading, Line, Long, Note, Picture, Span, Table
from ragfit.draw.figure import figure, finish, legend_below
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View
from ragfit.evaluation.probes import DISTRACTORS, FEWER, PLACES
from ragfit.evaluation.results import MODELS

LEAST = 0.1  # nats by which a token's loss must change for it to depend on a document
# By question: what it means, what its curve is drawn along, and its measures with what they are called and their unit.
QUESTIONS = {
    "Which document does the answer come from?": {
        "meaning": "A model that reads depends most on a supporting one (ContextCite, arXiv 2409.00729).",
        "top_is_supporting": "depends most on a supporting document (% of rows)",
        "chance": "expected by chance (% of rows)",
        "rise_supporting": "loss increase without a supporting document (nats)",
        "rise_others": "loss increase without another document (nats)",
    },
    "Does it need the documents?": {
        "meaning": "One that costs less without any was memorized or guessed (Sufficient Context, arXiv 2411.06037).",
        "loss_supporting": "loss with the supporting documents only (nats)",
        "loss_all": "loss with all documents (nats)",
        "loss_none": "loss without documents (nats)",
        "cheaper_without": "lower loss without documents (% of rows)",
    },
    "Do irrelevant documents distract it?": {
        "meaning": "The flatter, the better it ignores documents of other rows (RAFT, arXiv 2403.10131).",
        "along": f"distractors (documents of other rows), every {FEWER}th row",
        **{f"{count} others": f"loss with {counted(count, 'distractor')} (nats)" for count in DISTRACTORS},
    },
    "Does the position of the document matter?": {
        "meaning": "One that is lost in the middle of nine documents of other rows gives a hill (arXiv 2307.03172).",
        "along": f"position of the supporting document, every {FEWER}th row",
        **{f"place {place}": f"loss with the document at position {place} (nats)" for place in range(1, PLACES + 1)},
    },
    "Are its citations faithful?": {
        "meaning": "A faithful one names the document that the answer depends on most (MIRAGE, arXiv 2406.13663).",
        "cites_expected": "cites exactly the expected documents (% of rows)",
        "cites_top": "cites the document it depends on most (% of rows)",
        "expected_is_top": "depends most on an expected document (% of rows)",
    },
}
MISSING = "no supporting document or no citation is known, or too few other documents: more rows bring more"
HOW = "Losses are sums over an answer's tokens, its citations excluded. In brackets: 95 % intervals over the rows."


class GroundingView(View):
    """What `ragfit.grounding` measured: `rows` as in grounding.jsonl, `summary` as in grounding.json, and `saved`."""

    def __init__(self, rows: Sequence[Mapping], summary: Mapping, saved: Path | None = None):
        self.rows, self.summary, self.saved = list(rows), dict(summary), saved
        self.title = "Does the model read its documents? " + counted(len(self.rows), f"{summary['part']} row")
        self.names = [name for name in MODELS if name in self.rows[0]]

    def row(self, index: int = 0) -> "GroundedRowView":
        """One of the rows, by its index in `rows`, with its documents and the tokens of its answer."""
        return GroundedRowView(self.rows[index])

    def astray(self) -> list[int]:
        """The indices of the rows whose answer depends most on a document that does not support it (last model)."""
        values = [row[self.names[-1]]["values"] for row in self.rows]
        return [n for n, one in enumerate(values) if one.get("top_is_supporting") is False]

    def blocks(self) -> list[Block]:
        unread, saved = self.summary["unread"], [Note(f"Saved in {self.saved}.")] if self.saved else []
        said = {
            f"No documents could be found in {counted(len(unread), 'row')} ({listed(unread, 12)}), not tested.": unread,
            "No trained adapter is loaded: these figures are the base model's.": self.names == ["base"],
            "There is no dev set: these rows were trained on. Set dev_split.": self.summary["part"] == "train",
        }
        answers = [block for title, question in QUESTIONS.items() for block in self._answer(title, **question)]
        return [*(Callout(text) for text, holds in said.items() if holds), *answers, Note(HOW), *saved]

    def _answer(self, title: str, meaning: str, along: str = "", **measures: str) -> list[Block]:
        found = {name: self.summary[name] for name in measures if name in self.summary}
        lacking = ", ".join(called for name, called in measures.items() if found and name not in found) or "all of it"
        blocks: list[Block] = [Heading(title), Note(meaning)]
        if found:
            head = ["measure", *self.names, *(["tuned − base"] if len(self.names) == 2 else []), "rows"]
            rows = [_line(measures[name], of) for name, of in found.items()]
            table = Table(head, rows, range(1, len(head)), ("38%",))
            curve = Picture(lambda: self._curves(found, along), f"{title} {meaning}")
            blocks += [curve, Fold("the numbers", [table])] if along else [table]
        return [*blocks, *([Note(f"Not measured: {lacking}: {MISSING}.")] if len(found) < len(measures) else [])]

    def _curves(self, measures: Mapping[str, Mapping], along: str) -> Figure:
        """The loss with its interval, along the number of others or the places."""
        drawn, places = figure(2.6), [int("".join(filter(str.isdigit, name))) for name in measures]
        axis = drawn.subplots()
        for name in self.names:
            colour, marker = {"base": (style.ORANGE, "D"), "tuned": (style.BLUE, "o")}[name]
            mean, low, high = ([of[name][bound] for of in measures.values()] for bound in ("mean", "low", "high"))
            if None not in low:
                axis.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(places, mean, color=colour, marker=marker, markersize=4, label=name)
        axis.set(xticks=places, xlabel=along, ylim=(0, None))
        finish(axis, "loss of the answer (nats), with 95 % intervals where there are several rows")
        legend_below(drawn)
        return drawn


class GroundedRowView(View):
    """One row: how much the answer's loss increases without each document, and which one each token depends on."""

    def __init__(self, row: Mapping):
        self.row, self.title = row, f"Where the answer to row {row['row']} comes from"

    def blocks(self) -> list[Block]:
        row, names = self.row, [name for name in MODELS if name in self.row]
        most = max(1e-9, *(rise for name in names for rise in row[name]["rise"].values()))
        table = []
        for one in row["documents"]:
            supports = (Badge("supports", "good"), " ") if one["number"] in row["supporting"] else ()
            rises = [row[name]["rise"][one["number"]] for name in names]
            bars = [(Bar(max(0.0, rise) / most), f"{rise:+.2f}") for rise in rises]
            table.append([f"[{one['number']}]", (*supports, Long(one["text"])), *bars])
        head = ["number", "document", *(f"{name}: loss increase without it (nats)" for name in names)]
        return [
            Note(("Question: ", Long(row["question"]))),
            Note(("Answer: ", Long(row["expected"]))),
            Table(head, table, widths=("70px", "46%", *["27%"] * len(names))),
            *(Note((f"{name}: ", *map(_token, row[name]["tokens"]))) for name in names),
            Note(
                f"After each token: the document it depends on most. None: no removal raises its loss by {LEAST} nats."
            ),
        ]


def _token(token: Mapping) -> Line:
    """A token, and the document that it depends on most."""
    best = max(token["rise"], key=token["rise"].__getitem__)
    return Span(token["text"], "mono"), *([Badge(f"[{best}]")] if token["rise"][best] > LEAST else []), " "


def _line(called: str, of: Mapping[str, Mapping]) -> list[Line]:
    """A measure's line of the table: for each model and for their difference its mean and interval, and the rows."""
    scale, digits, unit = (100, ".0f", "%") if "%" in called else (1, ".2f", "")
    cells: list[Line] = []
    for side, one in of.items():
        form = f"{'+' if side == 'difference' else ''}{digits}"
        mean, low, high = (n if n is None else f"{scale * n:{form}}" for n in (one["mean"], one["low"], one["high"]))
        cells.append((Span(f"{mean}{unit}"), " ", Span(f"({low} to {high})" if low else "", "quiet")))
    return [called, *cells, f"{one['rows']:,}"]
