"""Does the model read? Which document an answer comes from, the base model beside the tuned one.

All five questions are asked with one measurement, the loss of a row's answer under another set of documents
(`ragfit.evaluation.reading`):

1. Drop a document: how much the answer's loss rises without it (ContextCite, https://arxiv.org/abs/2409.00729;
   AttriBoT, https://arxiv.org/abs/2411.15102).
2. Without documents: is the answer's loss lower without any, so that it was memorized or guessed (Sufficient Context,
   https://arxiv.org/abs/2411.06037)?
3. Distractors: the supporting documents among 0, 1, 2, 4 and 8 of other rows (RAFT, https://arxiv.org/abs/2403.10131).
4. Position: the supporting document at each place of ten (Lost in the Middle, https://arxiv.org/abs/2307.03172).
5. Citations: does the answer cite the document that it depends on most (MIRAGE, https://arxiv.org/abs/2406.13663)?
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.paths import PathText, user_path
from ragfit.data.documents import citations
from ragfit.errors import ConfigError
from ragfit.evaluation.metrics import question_of
from ragfit.evaluation.probes import measure, taken_apart

if TYPE_CHECKING:
    from trl import SFTTrainer

    from ragfit.evaluation.grounding_view import GroundingView

PARTS = ("drop", "without", "distractors", "position", "citations")


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
    """The mean of a value over the rows that have one, with its 95 % bootstrap interval; None where no row has one."""
    import numpy as np

    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    draws = np.random.default_rng(seed).integers(0, len(known), (samples, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), (2.5, 97.5))
    return Estimate(float(known.mean()), float(low), float(high), len(known))


@explained("The look at grounding", LESS_TO_EVALUATE)
def grounding(
    trainer: "SFTTrainer",
    rows: int | None = 30,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    save: PathText | Literal[False] | None = None,
) -> "GroundingView":
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
    from ragfit.evaluation.results import save_results
    from ragfit.runs.card import tell_grounding
    from ragfit.runs.records import now

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
        {"row": row.number, "source": row.where, "question": question_of(row.source, row.query), "expected": row.output}
        | {"documents": [asdict(one) for one in row.passages.documents], "supporting": sorted(row.supports)}
        for row in found
    ]
    for name, model in models(trainer):
        with model:
            for one, measured in zip(table, measure(trainer, name, found, parts, seed), strict=True):
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
    folder = user_path(folder, "save") if folder else None
    saved = None
    if folder and trainer.is_world_process_zero():
        saved = save_results(folder, "grounding", summary, table)
        if folder.resolve() == Path(trainer.args.output_dir).resolve():
            tell_grounding(folder / "checkpoint", summary)
    return GroundingView(table, summary, saved)


def models(trainer: "SFTTrainer") -> list[tuple[str, contextlib.AbstractContextManager]]:
    """The models to compare, each with the context in which the trainer's model is that one."""
    from peft import PeftModel

    tuned = [("tuned", contextlib.nullcontext())]
    return [("base", trainer.model.disable_adapter()), *tuned] if isinstance(trainer.model, PeftModel) else tuned


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
