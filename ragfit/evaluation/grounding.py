"""Does the model read? Which document an answer comes from, the base model beside the tuned one.

All five questions are asked with one measurement, the loss of a row's answer under another set of documents
(`ragfit.evaluation.reading`):

1. Drop a document: how many nats the answer costs more without it (ContextCite, https://arxiv.org/abs/2409.00729;
   AttriBoT, https://arxiv.org/abs/2411.15102).
2. Without documents: is the answer cheaper without any, so that it was learned by heart or guessed (Sufficient Context,
   https://arxiv.org/abs/2411.06037)?
3. Distractors: the supporting documents among 0, 1, 2, 4 and 8 of other rows (RAFT, https://arxiv.org/abs/2403.10131).
4. Position: the supporting document at each place of ten (Lost in the Middle, https://arxiv.org/abs/2307.03172).
5. Honest citations: does the answer cite the document that its loss leans on (MIRAGE, https://arxiv.org/abs/2406.13663)?
"""

import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ragfit.config.explain import explained
from ragfit.data.documents import Document, Passages, find_documents, renumber, supporting
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import generate, longest_answer
from ragfit.evaluation.metrics import citations, gold_of, scores
from ragfit.evaluation.reading import Reading, read

if TYPE_CHECKING:
    from ragfit.training.trainer import RagfitTrainer

DISTRACTORS = (0, 1, 2, 4, 8)
PLACES = 10
FEWER = 3  # distractors and places are read on every third of the rows: each costs several times the rest
PARTS = ("drop", "without", "distractors", "position", "citations")


@dataclass(frozen=True)
class Row:
    """A row taken apart.

    Attributes:
        number: its number in its file.
        supports: the numbers of the documents that support its answer.
    """

    number: int
    where: str
    query: str
    output: str
    source: Mapping
    passages: Passages
    supports: frozenset[int]

    def without(self, document: Document) -> str:
        """The prompt without a document."""
        return self.passages.prompt([one for one in self.passages.documents if one is not document])

    def with_only(self, documents: Sequence[Document]) -> str:
        return self.passages.prompt(documents)

    def among(self, documents: Sequence[Document]) -> tuple[str, str]:
        """(prompt, answer) with documents in a new order, its own and others', numbered anew."""
        fresh = self.passages.numbered([one.text for one in documents])
        own = {id(one): new.number for one, new in zip(documents, fresh, strict=True)}
        numbers = {one.number: own[id(one)] for one in self.passages.documents if id(one) in own}
        return self.passages.prompt(fresh), renumber(self.output, numbers)

    @property
    def supporting(self) -> list[Document]:
        return [one for one in self.passages.documents if one.number in self.supports]


@dataclass(frozen=True)
class Estimate:
    """A mean over rows.

    Attributes:
        mean, low, high: the mean, and the bounds of its 95 % bootstrap interval.
        rows: how many rows it is over.
    """

    mean: float
    low: float
    high: float
    rows: int


def estimate(values: Iterable[float | None], seed: int = 0, samples: int = 2000) -> Estimate | None:
    """The mean of a value over rows with its 95 % bootstrap interval (percentiles; rows are drawn anew); None of no rows."""
    import numpy as np

    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    draws = np.random.default_rng(seed).integers(0, len(known), (samples, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), (2.5, 97.5))
    return Estimate(float(known.mean()), float(low), float(high), len(known))


@explained("The look at grounding")
def grounding(trainer: "RagfitTrainer", rows: int | None = 30, parts: Sequence[str] = PARTS, seed: int = 0, save=None):
    """Measure which documents the answers come from, with the base model and the tuned one.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not, or of `ragfit.load_checkpoint`.
        rows: how many of the dev rows (of the training rows where there is no dev set) are read; None for all.
        parts: what is asked, of `PARTS`.
        seed: draws the other rows' documents and the bootstrap's samples.
        save: a folder for `grounding.jsonl` (a line for each row) and `grounding.json` (the summary); by default the
            run's output folder where the trainer has trained. False: none.

    Returns:
        GroundingView, with the attributes `rows`, `summary` and `saved`.

    Raises:
        ConfigError: `rows` is below 1, a part is unknown, or no row has documents that can be found in its prompt.
    """
    from ragfit.evaluation.grounding_view import GroundingView
    from ragfit.evaluation.results import now, save_results

    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ConfigError("rows", f"it is {rows!r}", "Give the number of rows to read, or None for all.")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError("parts", f"there is no part {unknown[0]!r}", f"Choose of {', '.join(PARTS)}.")
    part = "dev" if trainer.prepared.dev is not None else "train"
    found, unread = taken_apart(trainer.prepared, part, rows)
    if not found:
        raise ConfigError(
            "input_key",
            f"none of the {len(unread)} rows has documents that can be found in its prompt",
            "Number them in the prompt ([1], [2], …), or list them in the row under "
            "documents as they stand in the prompt, word for word.",
        )
    table = [
        {"row": row.number, "source": row.where, "question": _question(row), "expected": row.output}
        | {"documents": [asdict(one) for one in row.passages.documents], "supporting": sorted(row.supports)}
        for row in found
    ]
    for name, model in models(trainer):
        with model:
            for one, measured in zip(table, measure(trainer, found, parts, seed), strict=True):
                one[name] = measured
    summary = {
        "part": part,
        "rows": len(table),
        "unread": unread,
        "parts": list(parts),
        "seed": seed,
        "written": now(),
        **summarize(table, seed),
    }
    folder = trainer.args.output_dir if save is None and trainer.state.global_step else save
    saved = None
    if folder and trainer.is_world_process_zero():
        saved = save_results(folder, "grounding", summary, table)
    return GroundingView(table, summary, saved)


def models(trainer: "RagfitTrainer") -> list[tuple[str, contextlib.AbstractContextManager]]:
    """The models to compare, each with the context in which the trainer's model is that one."""
    from peft import PeftModel

    tuned = [("tuned", contextlib.nullcontext())]
    return [("base", trainer.model.disable_adapter()), *tuned] if isinstance(trainer.model, PeftModel) else tuned


def taken_apart(prepared, part: str, rows: int | None) -> tuple[list[Row], list[int]]:
    """The first prepared rows of a part, and the numbers of those whose documents cannot be found."""
    found, unread = [], []
    for number in prepared.report.part(part).kept[:rows]:
        query, output, source = prepared.row(number, part)
        passages = find_documents(query, source)
        if passages is None:
            unread.append(number)
            continue
        supports = supporting(passages, source, output, prepared.cfg.output_key)
        where = prepared.sources[part].where(number)
        found.append(Row(number, where, query, output, source, passages, supports))
    return found, unread


def measure(trainer: "RagfitTrainer", rows: Sequence[Row], parts: Sequence[str], seed: int) -> list[dict]:
    """What one model makes of each row: plain values, in nats where they are losses."""
    measured = [_under_its_documents(trainer, row, parts) for row in rows]
    chosen = [i for i, row in enumerate(rows) if row.supports][::FEWER]
    for i in chosen:
        draw = random.Random(f"{seed} {rows[i].number}")
        others = _others(rows, i, draw)
        if "distractors" in parts:
            measured[i]["distractors"] = _with_distractors(trainer, rows[i], others, draw)
        if "position" in parts and len(others) >= PLACES - 1:
            measured[i]["position"] = _at_each_place(trainer, rows[i], others)
    _answers(trainer, rows, measured, parts)
    return measured


def _under_its_documents(trainer: "RagfitTrainer", row: Row, parts: Sequence[str]) -> dict:
    """Parts 1 and 2: the loss with all of a row's documents, without each of them, with the supporting ones, with none."""
    documents = row.passages.documents
    drop = len(documents) if "drop" in parts or "citations" in parts else 0
    texts = [(row.query, row.output), *((row.without(one), row.output) for one in documents[:drop])]
    if "without" in parts:
        texts += [(row.with_only([]), row.output), (row.with_only(row.supporting), row.output)]
    all_, *rest = read(trainer, texts)
    found = {"all": sum(all_.of("answer")), "citations": sum(all_.of("citation"))}
    if drop:
        dropped = rest[:drop]
        found["rise"] = {
            one.number: sum(r.of("answer")) - found["all"] for one, r in zip(documents, dropped, strict=True)
        }
        found["tokens"] = _tokens(all_, dropped, documents)
    if "without" in parts:
        found["none"] = sum(rest[drop].of("answer"))
        found["supporting"] = sum(rest[drop + 1].of("answer")) if row.supports else None
    return found


def _tokens(all_: Reading, dropped: Sequence[Reading], documents: Sequence[Document]) -> list[dict]:
    """For each token of the answer its text, its loss, and how much it rises without each document."""
    places = [place for place, kind in enumerate(all_.kinds) if kind == "answer"]
    return [
        {
            "text": all_.tokens[place],
            "loss": all_.losses[place],
            "rise": {
                one.number: r.of("answer")[n] - all_.losses[place] for one, r in zip(documents, dropped, strict=True)
            },
        }
        for n, place in enumerate(places)
    ]


def _others(rows: Sequence[Row], i: int, draw: random.Random) -> list[Document]:
    """Documents of other rows, in a drawn order, none of which is one of the row's own."""
    own = {one.text for one in rows[i].passages.documents}
    texts = {one.text: one for k, row in enumerate(rows) if k != i for one in row.passages.documents}
    others = [one for text, one in texts.items() if text not in own]
    draw.shuffle(others)
    return others


def _with_distractors(
    trainer: "RagfitTrainer", row: Row, others: Sequence[Document], draw: random.Random
) -> list[dict]:
    """Part 3: the loss with the supporting documents among more and more others, each added to those before it."""
    mixed, found = list(row.supporting), []
    for count in DISTRACTORS:
        added = count + len(row.supporting) - len(mixed)
        if len(others) < count:
            break
        for one in others[count - added : count]:
            mixed.insert(draw.randint(0, len(mixed)), one)
        query, output = row.among(mixed)
        found.append({"others": count, "query": query, "output": output})
    for one, reading in zip(found, read(trainer, [(one["query"], one["output"]) for one in found]), strict=True):
        one["loss"] = sum(reading.of("answer"))
    return found


def _at_each_place(trainer: "RagfitTrainer", row: Row, others: Sequence[Document]) -> list[float]:
    """Part 4: the loss with the first supporting document at each place among nine others."""
    document, nine = row.supporting[0], list(others[: PLACES - 1])
    texts = [row.among([*nine[:place], document, *nine[place:]]) for place in range(PLACES)]
    # Those with the document far behind have most in common, so the last one is read first.
    readings = read(trainer, texts[::-1])[::-1]
    return [sum(reading.of("answer")) for reading in readings]


def _answers(trainer: "RagfitTrainer", rows: Sequence[Row], measured: list[dict], parts: Sequence[str]) -> None:
    """Generated answers: with the row's own documents for part 5, and F1 for part 3."""
    prepared, batch = trainer.prepared, trainer.args.per_device_eval_batch_size
    part = "dev" if prepared.dev is not None else "train"
    limit = longest_answer(prepared, part)
    asked = []
    if "citations" in parts:
        asked += [
            (one, "answer", row.query, row.output)
            for row, one in zip(rows, measured, strict=True)
            if citations(row.output)
        ]
    for row, one in zip(rows, measured, strict=True):
        short = len(row.output.split()) <= 10
        asked += [(v, "answer", v["query"], row) for v in one.get("distractors", ()) if short]
    prompts = [prepared.renderer.render(query, "").prompt for _, _, query, _ in asked]
    said = generate(trainer.model, prepared, prompts, limit, None, batch) if prompts else []
    for (into, key, _, row), (answer, _) in zip(asked, said, strict=True):
        into[key] = answer
        if isinstance(row, Row):
            gold = gold_of(row.source, prepared.cfg.output_key, row.where)
            into["f1"] = scores(answer, gold).f1
    for one in measured:
        for variant in one.get("distractors", ()):
            variant.pop("query"), variant.pop("output")


def leans_on(rise: Mapping[int, float]) -> int | None:
    """The document without which something costs most more; None where none makes it dearer."""
    best = max(rise, key=rise.__getitem__, default=None)
    return best if best is not None and rise[best] > 0 else None


def _question(row: Row) -> str:
    return next((row.source[key] for key in ("query", "question") if isinstance(row.source.get(key), str)), row.query)


# What comes of it.


def values_of(row: Mapping, name: str) -> dict[str, float | None]:
    """One row's values of each measure under a model, None where it has none."""
    one, supports = row.get(name) or {}, set(row["supporting"])
    rise = {int(number): value for number, value in (one.get("rise") or {}).items()}
    ours = [value for number, value in rise.items() if number in supports]
    others = [value for number, value in rise.items() if number not in supports]
    top = max(rise, key=rise.__getitem__, default=None)
    known = bool(rise and ours and others)
    expected, cited = citations(row["expected"]), citations(one.get("answer") or "")
    asked = "answer" in one and top is not None
    found = {
        "top_is_supporting": float(top in supports) if known else None,
        "chance": len(ours) / len(rise) if known else None,
        "rise_supporting": sum(ours) / len(ours) if ours else None,
        "rise_others": sum(others) / len(others) if others and ours else None,
        "loss_all": one.get("all"),
        "loss_supporting": one.get("supporting"),
        "loss_none": one.get("none"),
        "cheaper_without": float(one["none"] < one["all"]) if one.get("none") is not None else None,
        "cites_expected": float(cited == expected) if asked else None,
        "cites_top": float(top in cited) if asked else None,
        "expected_is_top": float(top in expected) if asked else None,
    }
    for variant in one.get("distractors") or ():
        found[f"distractors_{variant['others']}_loss"] = variant["loss"]
        found[f"distractors_{variant['others']}_f1"] = variant.get("f1")
    for place, loss in enumerate(one.get("position") or (), 1):
        found[f"place_{place}_loss"] = loss
    return found


def summarize(table: Sequence[Mapping], seed: int = 0) -> dict[str, dict]:
    """Each measure's mean over the rows that have it, under both models, and their paired difference.

    Returns:
        `{measure: {"base": …, "tuned": …, "difference": …}}`, each an `Estimate` as a dict or None.
    """
    values = {name: [values_of(row, name) for row in table] for name in ("base", "tuned")}
    summary = {}
    for measure_ in dict.fromkeys(key for rows in values.values() for row in rows for key in row):
        of = {name: [row.get(measure_) for row in rows] for name, rows in values.items()}
        pairs = zip(of["base"], of["tuned"], strict=True)
        of["difference"] = [None if base is None or tuned is None else tuned - base for base, tuned in pairs]
        found = {name: estimate(column, seed) for name, column in of.items()}
        if any(found.values()):
            summary[measure_] = {name: asdict(one) if one else None for name, one in found.items()}
    return summary
