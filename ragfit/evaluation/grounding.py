"""Does the model read? Which document an answer comes from, the base model beside the tuned one.

All five questions are asked with one measurement, the loss of a row's answer under another set of documents
(`ragfit.evaluation.probes`, `ragfit.evaluation.reading`):

1. Drop a document: how much the answer's loss rises without it (ContextCite, https://arxiv.org/abs/2409.00729;
   AttriBoT, https://arxiv.org/abs/2411.15102).
2. Without documents: is the answer's loss lower without any, so that it was memorized or guessed (Sufficient Context,
   https://arxiv.org/abs/2411.06037)?
3. Distractors: the supporting documents among 0, 1, 2, 4 and 8 of other rows (RAFT, https://arxiv.org/abs/2403.10131).
4. Position: the supporting document at each place of ten (Lost in the Middle, https://arxiv.org/abs/2307.03172).
5. Citations: does the answer cite the document that it depends on most (MIRAGE, https://arxiv.org/abs/2406.13663)?
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.paths import PathText
from ragfit.data.documents import citations
from ragfit.data.words import question_of
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import answer_settings, generate
from ragfit.evaluation.metrics import share_interval
from ragfit.evaluation.probes import Text, probes, taken_apart
from ragfit.evaluation.reading import Reading, read
from ragfit.evaluation.results import MODELS, data_of, results_folder, save_results
from ragfit.runs.records import now

if TYPE_CHECKING:
    from trl import SFTTrainer

    from ragfit.evaluation.grounding_view import GroundingView

PARTS = ("drop", "without", "distractors", "position", "citations")


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
    from peft import PeftModel

    from ragfit.evaluation.grounding_view import GroundingView

    if rows is not None and rows < 1:
        raise ConfigError("rows", f"it is {rows!r}", "Give the number of rows to read, or None for all.")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError("parts", f"there is no part {unknown[0]!r}", f"Choose of {', '.join(PARTS)}.")
    part = "dev" if trainer.prepared.dev is not None else "train"
    found, unread = taken_apart(trainer.prepared, part, rows)
    if not found:
        problem = f"none of the {len(unread)} rows has documents that can be found in its prompt"
        fix = (
            "Number them in the prompt ([1], [2], …), or list them in the row under documents as they stand in the "
            "prompt, word for word."
        )
        raise ConfigError("input_key", problem, fix)
    folder = results_folder(trainer, save)
    table = [
        {"row": row.number, "source": row.where, "question": question_of(row.source, row.query), "expected": row.output}
        | {"documents": [asdict(one) for one in row.passages.documents], "supporting": sorted(row.supports)}
        for row in found
    ]
    texts, first = probes(found, parts, seed), trainer.is_world_process_zero()
    cited = [n for n, row in enumerate(found) if "citations" in parts and citations(row.output)]
    for name in MODELS if isinstance(trainer.model, PeftModel) else MODELS[1:]:
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            rows_read = progress_bar(texts, desc=f"documents, {name}", unit="row", delay=2, disable=not first)
            for one, groups in zip(table, rows_read, strict=True):
                one[name] = measure(trainer, groups)
            answers = _answers(trainer, [found[n].query for n in cited], f"answers, {name}")
            for n, answer in zip(cited, answers, strict=True):
                table[n][name]["answer"] = answer
    summary = {
        "part": part,
        "data": data_of(trainer),
        "rows": len(table),
        "unread": unread,
        "parts": list(parts),
        "seed": seed,
        "written": now(),
        **summarize(table, seed),
    }
    return GroundingView(table, summary, save_results(folder, "grounding", summary, table) if folder else None)


def measure(trainer: "SFTTrainer", groups: Sequence[dict[str, Text]]) -> dict[str, Any]:
    """What a row's answer costs the model as it is now, under each of its texts.

    Args:
        groups: one row's of `probes`.

    Returns:
        `losses`, the sum over the answer's tokens in nats, citations excluded, by the names of the texts, and `tokens`:
        of each token of the answer its text, its loss, and how much that rises without each document.
    """
    readings: dict[str, Reading] = {}
    for group in groups:
        readings |= zip(group, read(trainer, list(group.values())), strict=True)
    costs = {name: reading.of("answer") for name, reading in readings.items()}
    without = {name.split()[1]: cost for name, cost in costs.items() if name.startswith("without")}
    whole = zip(readings["all"].tokens, readings["all"].kinds, strict=True)
    texts = [text for text, kind in whole if kind == "answer"]
    tokens = [
        {"text": text, "loss": loss, "rise": {number: cost[n] - loss for number, cost in without.items()}}
        for n, (text, loss) in enumerate(zip(texts, costs["all"], strict=True))
    ]
    return {"losses": {name: sum(cost) for name, cost in costs.items()}, "tokens": tokens}


def _answers(trainer: "SFTTrainer", queries: Sequence[str], doing: str) -> list[str]:
    """What the model as it is now answers."""
    prepared, size = trainer.prepared, trainer.args.per_device_eval_batch_size
    settings = answer_settings(trainer, "dev" if prepared.dev is not None else "train")
    prompts = [prepared.renderer.render(query, "").prompt for query in queries]
    shown = doing if trainer.is_world_process_zero() else None
    answers = generate(trainer.model, prepared, prompts, settings["max_new_tokens"], settings, size, shown)
    return [answer for answer, _ in answers]


# What comes of it.


def rise_of(row: Mapping[str, Any], name: str) -> dict[int, float]:
    """By how many nats a row's answer costs more without each document, by number; {} where it was not asked."""
    losses = row[name]["losses"]
    without = {one["number"]: losses.get(f"without {one['number']}") for one in row["documents"]}
    return {number: loss - losses["all"] for number, loss in without.items() if loss is not None}


def values_of(row: Mapping[str, Any], name: str) -> dict[str, float | bool | None]:
    """One row's values of each measure under a model, None where it has none; what is a yes or a no is a bool."""
    one, supports, rise = row[name], set(row["supporting"]), rise_of(row, name)
    losses, answer = one["losses"], one.get("answer")
    ours = [value for number, value in rise.items() if number in supports]
    others = [value for number, value in rise.items() if number not in supports]
    top = max(rise, key=rise.__getitem__, default=None)
    known, asked = bool(ours and others), answer is not None and top is not None
    found = {
        "top_is_supporting": top in supports if known else None,
        "chance": len(ours) / len(rise) if known else None,
        "rise_supporting": sum(ours) / len(ours) if ours else None,
        "rise_others": sum(others) / len(others) if known else None,
        "loss_all": losses["all"],
        "loss_supporting": losses.get("supporting"),
        "loss_none": losses.get("none"),
        "cheaper_without": losses["none"] < losses["all"] if "none" in losses else None,
        "cites_expected": citations(answer) == citations(row["expected"]) if asked else None,
        "cites_top": top in citations(answer) if asked else None,
        "expected_is_top": top in citations(row["expected"]) if asked else None,
    }
    for key, loss in losses.items():
        if key.endswith("others") or key.startswith("place"):
            found[key] = loss
    return found


def estimate(values: Sequence[float | bool], seed: int = 0, samples: int = 2000) -> dict[str, float | int | None]:
    """A mean over rows, with the bounds of its 95 % interval.

    Of a share (of yes and no) it is Wilson's, of other values the bootstrap's, and None where there is one value alone.

    Returns:
        `mean`, `low`, `high` and `rows`, the number of values.
    """
    import numpy as np

    known, low, high = np.array(values, float), None, None
    if all(isinstance(value, bool) for value in values):
        low, high = share_interval(sum(values), len(values))
    elif len(values) > 1:
        draws = np.random.default_rng(seed).integers(0, len(known), (samples, len(known)))
        low, high = map(float, np.percentile(known[draws].mean(axis=1), (2.5, 97.5)))
    return {"mean": float(known.mean()), "low": low, "high": high, "rows": len(values)}


def summarize(table: Sequence[Mapping], seed: int = 0) -> dict[str, dict]:
    """Each measure's mean under both models, and their paired difference, all over the rows that have it under both.

    Returns:
        `{measure: {"base": …, "tuned": …, "difference": …}}`, each an `estimate`; "tuned" alone where there is no base.
    """
    names = [name for name in MODELS if name in table[0]]
    values = [[values_of(row, name) for name in names] for row in table]
    summary = {}
    for measure_ in dict.fromkeys(key for row in values for key in row[0]):
        rows = [[one.get(measure_) for one in row] for row in values]
        rows = [row for row in rows if None not in row]
        if not rows:
            continue
        of = {name: estimate(column, seed) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        if len(names) == 2:
            of["difference"] = estimate([float(tuned) - float(base) for base, tuned in rows], seed)
            if isinstance(rows[0][0], bool):
                of["difference"] |= _between_shares(of["base"], of["tuned"])
        summary[measure_] = of
    return summary


def _between_shares(base: Mapping[str, float], tuned: Mapping[str, float]) -> dict[str, float]:
    """The bounds of a difference of two shares, Newcombe's (1998), on the safe side for the same rows."""
    change = tuned["mean"] - base["mean"]
    below = math.hypot(tuned["mean"] - tuned["low"], base["high"] - base["mean"])
    above = math.hypot(tuned["high"] - tuned["mean"], base["mean"] - base["low"])
    return {"low": max(-1.0, change - below), "high": min(1.0, change + above)}
