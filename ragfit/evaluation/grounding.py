"""Does the model read? Which document an answer comes from, the base model beside the tuned one.

All five questions (`ragfit.evaluation.grounding_view.QUESTIONS`, with their papers) are asked with one measurement: the
loss of a row's answer under another set of documents (`ragfit.evaluation.probes`), with one pass over what they share.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.data.documents import citations
from ragfit.draw.progress import progress_bar
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import answer_settings, generate
from ragfit.evaluation.grounding_view import GroundingView
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.metrics import share_interval
from ragfit.evaluation.probes import probes, taken_apart
from ragfit.evaluation.reading import Text, read
from ragfit.evaluation.results import MODELS, Save, measured_rows, save_results

if TYPE_CHECKING:
    from trl import SFTTrainer


@explained("The look at grounding", LESS_TO_EVALUATE)
def grounding(trainer: "SFTTrainer", rows: int | None = 30, save: Save = None) -> GroundingView:
    """Measure which documents the answers come from, with the base model and the tuned one.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not, or of `ragfit.load_checkpoint`.
        rows: how many of the dev rows (of the training rows where there is no dev set) are read; None for all.
        save: a folder for `grounding.jsonl` (a line for each row) and `grounding.json` (the summary); by default the
            run's output folder where the trainer has trained. False: none.

    Returns:
        GroundingView, with the attributes `rows`, `summary` and `saved`.

    Raises:
        ConfigError: no row, or none has documents that can be found in its prompt.
    """
    about = measured_rows(trainer)
    found, unread = taken_apart(trainer.prepared, about["part"], rows)
    if not found:
        fix = "Number them in the prompt ([1], [2], …), or list them under documents, word for word as in the prompt."
        raise ConfigError("input_key", f"of {len(unread)} rows none has documents that are found in its prompt", fix)
    table = [
        {"row": row.number, "source": row.where, "question": row.question, "expected": row.output}
        | {
            "documents": list(map(asdict, row.passages.documents)),
            "supporting": sorted(one.number for one in row.supporting),
        }
        for row in found
    ]
    cited = [n for n, row in enumerate(found) if citations(row.output)]
    prompts = [trainer.prepared.renderer.render(found[n].passages.query, "").prompt for n in cited]
    settings, quiet = answer_settings(trainer, about["part"]), not trainer.is_world_process_zero()
    # An adapter that has learned nothing leaves "base" alone; where all weights are trained, there is "model".
    losses = token_losses(trainer, 0, about["part"])
    for name in MODELS[1:] if "model" in losses else losses:
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            for n in progress_bar(range(len(found)), desc=f"documents, {name}", unit="row", disable=quiet):
                table[n][name] = measure(trainer, probes(found, n))
            for n, (answer, _) in zip(cited, generate(trainer, prompts, settings, name), strict=True):
                table[n][name]["answer"] = answer
        for row in table:
            row[name]["values"] = values_of(row, name)
    summary = about | {"rows": len(table), "unread": unread} | summarize(table)
    return GroundingView(table, summary, save_results(trainer, save, "grounding", summary, table))


def measure(trainer: "SFTTrainer", texts: Mapping[str, Text]) -> dict[str, Any]:
    """The loss of a row's answer by the names of its texts, and its rise without each document; citations excluded."""
    costs = {name: one.answer for name, one in zip(texts, read(trainer, list(texts.values())), strict=True)}
    without = {int(name.split()[1]): cost for name, cost in costs.items() if name.startswith("without")}
    losses = {name: sum(loss for _, loss in cost) for name, cost in costs.items()}
    tokens = [
        {"text": text, "loss": loss, "rise": {number: cost[n][1] - loss for number, cost in without.items()}}
        for n, (text, loss) in enumerate(costs["all"])
    ]
    rise = {number: losses[f"without {number}"] - losses["all"] for number in without}
    return {"losses": losses, "rise": rise, "tokens": tokens}


def values_of(row: Mapping[str, Any], name: str) -> dict[str, float | bool]:
    """One row's values of the measures that it has under a model; what is a yes or a no is a bool."""
    losses, rise, answer = row[name]["losses"], row[name]["rise"], row[name].get("answer")
    top, ours = max(rise, key=rise.__getitem__), row["supporting"]
    found = {f"loss_{text}": losses[text] for text in ("all", "supporting", "none") if text in losses}
    found["cheaper_without"] = losses["none"] < losses["all"]
    for measured, numbers in (("supporting", set(ours)), ("others", rise.keys() - ours)):
        if ours and numbers:
            found[f"rise_{measured}"] = sum(rise[number] for number in sorted(numbers)) / len(numbers)
    if "rise_others" in found:
        found |= {"top_is_supporting": top in ours, "chance": len(ours) / len(rise)}
    if answer is not None:
        said, expected = citations(answer), citations(row["expected"])
        found |= {"cites_expected": said == expected, "cites_top": top in said, "expected_is_top": top in expected}
    return found | {text: loss for text, loss in losses.items() if text.endswith("others") or text.startswith("place")}


def estimate(values: Sequence[float | bool]) -> dict[str, float | int | None]:
    """A mean with its 95 % interval: Wilson's of yes and no, of other values the bootstrap's, or None of one alone."""
    import numpy as np

    known, low, high = np.array(values, float), None, None
    if all(isinstance(value, bool) for value in values):
        low, high = share_interval(sum(values), len(values))
    elif len(values) > 1:
        drawn = np.random.default_rng(0).integers(0, len(known), (2000, len(known)))
        low, high = map(float, np.percentile(known[drawn].mean(axis=1), (2.5, 97.5)))
    return {"mean": float(known.mean()), "low": low, "high": high, "rows": len(values)}


def summarize(table: Sequence[Mapping]) -> dict[str, dict]:
    """Each measure's `estimate` under both models, and of their paired difference, on the rows that have it."""
    names = [name for name in MODELS if name in table[0]]
    values = [[row[name]["values"] for name in names] for row in table]
    summary = {}
    for measured in dict.fromkeys(key for row in values for key in row[0]):
        rows = [[one[measured] for one in row] for row in values if measured in row[0]]
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
