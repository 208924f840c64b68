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
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.metrics import share_interval
from ragfit.evaluation.probes import probes, taken_apart
from ragfit.evaluation.reading import Text, read
from ragfit.evaluation.results import MODELS, data_of, part_of, results_folder, save_results
from ragfit.runs.records import now

if TYPE_CHECKING:
    from trl import SFTTrainer

    from ragfit.evaluation.grounding_view import GroundingView

DRAWS = 2000  # of the bootstrap


@explained("The look at grounding", LESS_TO_EVALUATE)
def grounding(
    trainer: "SFTTrainer", rows: int | None = 30, save: PathText | Literal[False] | None = None
) -> "GroundingView":
    """Measure which documents the answers come from, with the base model and the tuned one.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not, or of `ragfit.load_checkpoint`.
        rows: how many of the dev rows (of the training rows where there is no dev set) are read; None for all.
        save: a folder for `grounding.jsonl` (a line for each row) and `grounding.json` (the summary); by default the
            run's output folder where the trainer has trained. False: none.

    Returns:
        GroundingView, with the attributes `rows`, `summary` and `saved`.

    Raises:
        ConfigError: `rows` is below 1, or no row has documents that can be found in its prompt.
    """
    from peft import PeftModel

    from ragfit.evaluation.grounding_view import GroundingView

    if rows is not None and rows < 1:
        raise ConfigError("rows", f"it is {rows!r}", "Give the number of rows to read, or None for all.")
    part = part_of(trainer)
    found, unread = taken_apart(trainer.prepared, part, rows)
    if not found:
        problem = f"none of the {len(unread)} rows has documents that can be found in its prompt"
        fix = "Number them in the prompt ([1], [2], …), or list them in the row under documents, word for word."
        raise ConfigError("input_key", problem, fix)
    folder = results_folder(trainer, save)
    table = [
        {"row": row.number, "source": row.where, "question": question_of(row.source, row.query), "expected": row.output}
        | {"documents": [asdict(one) for one in row.passages.documents], "supporting": sorted(row.supports)}
        for row in found
    ]
    first = trainer.is_world_process_zero()
    cited = [n for n, row in enumerate(found) if citations(row.output)]
    prompts = [trainer.prepared.renderer.render(found[n].query, "").prompt for n in cited]
    settings, size = answer_settings(trainer, part), trainer.args.per_device_eval_batch_size
    names = MODELS if isinstance(trainer.model, PeftModel) else MODELS[1:]
    if list(token_losses(trainer, 0, part)) == ["base"]:
        names = MODELS[:1]  # the adapter has learned nothing, so the base model is all there is to measure
    for name in names:
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            for n in progress_bar(range(len(found)), desc=f"documents, {name}", unit="row", disable=not first):
                table[n][name] = measure(trainer, probes(found, n))
            doing = f"answers, {name}" if first else None
            answers = generate(trainer.model, trainer.prepared, prompts, settings, size, doing)
            for n, (answer, _) in zip(cited, answers, strict=True):
                table[n][name]["answer"] = answer
    about = {"part": part, "data": data_of(trainer), "rows": len(table), "unread": unread, "written": now()}
    summary = about | summarize(table)
    saved = save_results(folder, "grounding", summary, table) if folder else None
    return GroundingView(table, summary, saved)


def measure(trainer: "SFTTrainer", texts: Mapping[str, Text]) -> dict[str, Any]:
    """What a row's answer costs the model as it is now, under each of the texts of `probes`.

    `losses` are sums over the answer's tokens in nats, citations excluded, by the names of the texts; `tokens` are the
    text of each token of the answer, its loss, and how much that rises without each document.
    """
    costs = {name: reading.answer() for name, reading in zip(texts, read(trainer, list(texts.values())), strict=True)}
    without = {name.split()[1]: cost for name, cost in costs.items() if name.startswith("without")}
    tokens = [
        {"text": text, "loss": loss, "rise": {number: cost[n][1] - loss for number, cost in without.items()}}
        for n, (text, loss) in enumerate(costs["all"])
    ]
    return {"losses": {name: sum(loss for _, loss in cost) for name, cost in costs.items()}, "tokens": tokens}


def rise_of(row: Mapping[str, Any], name: str) -> dict[int, float]:
    """By how many nats a row's answer costs more without each document, by number."""
    losses = row[name]["losses"]
    return {one["number"]: losses[f"without {one['number']}"] - losses["all"] for one in row["documents"]}


def values_of(row: Mapping[str, Any], name: str) -> dict[str, float | bool]:
    """One row's values of the measures that it has under a model; what is a yes or a no is a bool."""
    losses, answer, rise = row[name]["losses"], row[name].get("answer"), rise_of(row, name)
    ours = [value for number, value in rise.items() if number in row["supporting"]]
    others = [value for number, value in rise.items() if number not in row["supporting"]]
    top = max(rise, key=rise.__getitem__)
    found = {f"loss_{text}": losses[text] for text in ("all", "supporting", "none") if text in losses}
    found["cheaper_without"] = losses["none"] < losses["all"]
    if ours:
        found["rise_supporting"] = sum(ours) / len(ours)
    if ours and others:
        found["rise_others"] = sum(others) / len(others)
        found |= {"top_is_supporting": top in row["supporting"], "chance": len(ours) / len(rise)}
    if answer is not None:
        said, expected = citations(answer), citations(row["expected"])
        found |= {"cites_expected": said == expected, "cites_top": top in said, "expected_is_top": top in expected}
    return found | {text: loss for text, loss in losses.items() if text.endswith("others") or text.startswith("place")}


def estimate(values: Sequence[float | bool]) -> dict[str, float | int | None]:
    """A mean over rows with the bounds of its 95 % interval, in nats or as a share: `mean`, `low`, `high` and `rows`.

    Of a share (of yes and no) it is Wilson's, of other values the bootstrap's, and None where there is one value alone.
    """
    import numpy as np

    known, low, high = np.array(values, float), None, None
    if all(isinstance(value, bool) for value in values):
        low, high = share_interval(sum(values), len(values))
    elif len(values) > 1:
        drawn = np.random.default_rng(0).integers(0, len(known), (DRAWS, len(known)))
        low, high = map(float, np.percentile(known[drawn].mean(axis=1), (2.5, 97.5)))
    return {"mean": float(known.mean()), "low": low, "high": high, "rows": len(values)}


def summarize(table: Sequence[Mapping]) -> dict[str, dict]:
    """`{measure: {"base": …, "tuned": …, "difference": …}}`, each an `estimate` over the rows that have it under both.

    One model's alone where there is no other.
    """
    names = [name for name in MODELS if name in table[0]]
    values = [[values_of(row, name) for name in names] for row in table]
    summary = {}
    for measured in dict.fromkeys(key for row in values for one in row for key in one):
        rows = [[one[measured] for one in row] for row in values if all(measured in one for one in row)]
        if rows:
            of = {name: estimate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
            if len(names) == 2:
                of["difference"] = estimate([float(tuned) - float(base) for base, tuned in rows])
                if isinstance(rows[0][0], bool):
                    of["difference"] |= _between_shares(of["base"], of["tuned"])
            summary[measured] = of
    return summary


def _between_shares(base: Mapping[str, float], tuned: Mapping[str, float]) -> dict[str, float]:
    """The bounds of a difference of two shares, Newcombe's (1998), on the safe side for the same rows."""
    change = tuned["mean"] - base["mean"]
    below = math.hypot(tuned["mean"] - tuned["low"], base["high"] - base["mean"])
    above = math.hypot(tuned["high"] - tuned["mean"], base["mean"] - base["low"])
    return {"low": max(-1.0, change - below), "high": min(1.0, change + above)}
