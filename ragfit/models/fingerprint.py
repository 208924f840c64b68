"""What a model computes, in a few numbers: the log-probabilities of some tokens, kept in a checkpoint and compared.

Names and settings say which base an adapter belongs to, and they can be wrong: a folder is filled anew, weights find no
place, a merge changes more than was trained. Log-probabilities of the base and of the tuned model cannot be.
"""

import contextlib
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ragfit.errors import ConfigError
from ragfit.models.tokenizer import model_file

if TYPE_CHECKING:
    from ragfit.data.report import Prepared

FILE = "fingerprint.json"
LENGTH, TOKENS = 64, 16  # ids of a row's end that are read, and of these the last ones, which are measured
# Measured on SmolLM2-135M, base and trained, 12 rows, on a CPU: two rows' mean difference from float32 was at worst
# 0.0001 (another attention), 0.009 (float16), 0.056 (bfloat16), 0.35 (8-bit), 1.3 (4-bit); training moved it by 0.5.
TOLERANCE = {"float32": 0.005, "float16": 0.03, "bfloat16": 0.15, "8-bit": 0.7, "4-bit": 2.5, "quantized": 2.5}
ALIKE = 0.3  # of weights that are quantized the same way, perhaps computed on another machine
WRONG = {
    "base": "the base model is not the one that it was trained on",
    "tuned": "the base model with this adapter is not the model that was trained",
    "merged": "the merged model is not the one that was trained",
}


def rows_for(prepared: "Prepared") -> list[list[int]]:
    """The ends of two rows, of the dev set where there is one: at most `LENGTH` token ids each."""
    ids = (prepared.dev if prepared.dev is not None and len(prepared.dev) else prepared.train)["input_ids"]
    return [list(ids[place])[-LENGTH:] for place in sorted({0, len(ids) - 1})]


@torch.no_grad()
def measure(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> dict[str, Any]:
    """What a model computes of some rows of ids, with its adapter as it stands.

    `type` is that of the weights, a torch type or how they are quantized; `log_probs` are, for each row, those of its
    last `TOKENS` tokens, in nats.
    """
    training, found = model.training, []
    # In training autocast stands in for PEFT's casts of what an adapter reads (`disable_input_dtype_casting`).
    uncast = [module for module in model.modules() if getattr(module, "cast_input_dtype_enabled", True) is False]
    try:
        model.eval()
        for module in uncast:
            module.cast_input_dtype_enabled = True
        for row in rows:
            ids = torch.tensor([row], device=model.get_input_embeddings().weight.device)
            # Not `model(…)`: in training, accelerate has put autocast around the object's own forward.
            seen = type(model).forward(model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            scores = seen.logits[0, -TOKENS - 1 : -1].float().log_softmax(-1)
            scores = scores.gather(-1, ids[0, -TOKENS:, None][-len(scores) :].to(scores.device))[:, 0]
            found.append([round(score, 6) for score in scores.tolist()])
    finally:  # a training may go on, after memory gave out
        for module in uncast:
            module.cast_input_dtype_enabled = False
        model.train(training)
    return {"type": _type(model), "log_probs": found}


def _type(model: PreTrainedModel | PeftModel) -> str:
    quantized = getattr(model.config, "quantization_config", None)
    if quantized is None:
        return str(max(model.parameters(), key=torch.Tensor.numel).dtype).removeprefix("torch.")
    bits = {"8-bit": "load_in_8bit", "4-bit": "load_in_4bit"}
    return next((name for name, key in bits.items() if getattr(quantized, key, False)), "quantized")


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far two measurements of the same rows differ: the mean difference of a log-probability, in nats."""
    pairs = list(zip(itertools.chain(*one["log_probs"]), itertools.chain(*other["log_probs"]), strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def check(folder: str | Path, model: PreTrainedModel | PeftModel, what: str) -> None:
    """Compare a model with the fingerprint in a checkpoint; without one there is nothing to compare.

    `what` is "base" (the model with its adapter off), "tuned" (with it) or "merged" (what they came to).

    Raises:
        ConfigError: it computes something else, beyond what the rounding of its weights' type explains.
    """
    if (path := model_file(str(folder), FILE)) is None:
        return
    fix = f"Take base and adapter from where they were trained, or delete {path} to put them together all the same."
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        tuned = kept["tuned"]  # which every fingerprint has
        expected = kept.get("base") if what == "base" else tuned
        if expected is None:  # all weights were trained: the base is another folder's
            return
        difference, kinds = math.inf, [expected["type"]]
        if max(max(row) for row in kept["rows"]) < model.get_input_embeddings().weight.shape[0]:
            off = what == "base" and isinstance(model, PeftModel)
            with model.disable_adapter() if off else contextlib.nullcontext():
                found = measure(model, kept["rows"])
            difference, kinds = apart(found, expected), [found["type"], expected["type"]]
    except Exception as error:
        error.add_note(f"{path} cannot be compared with this model. {fix}")
        raise
    allowed = max(TOLERANCE.get(kind, TOLERANCE["bfloat16"]) for kind in kinds)
    if len(set(kinds)) == 1 and what != "merged":  # in merging, quantized weights are quantized anew
        allowed = min(allowed, ALIKE)
    if not difference <= allowed:
        off = f"its log-probabilities of some tokens are off by {difference:.3g} from those in {path}"
        problem = f"{WRONG[what]}: {off}, where rounding explains {allowed:g} ({', '.join(kinds)})"
        raise ConfigError("checkpoint", problem, fix)


def write(folder: Path, model: PreTrainedModel | PeftModel, rows: list[list[int]], ends: list[int]) -> None:
    """Write into a tuned model's checkpoint what it and, where it has an adapter, its base make of some rows.

    `ends` are the ids that its answers end with. ValueError where a log-probability is not finite.
    """
    content = {"rows": rows, "tuned": measure(model, rows), "ends": ends}
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            content["base"] = measure(model, rows)
    (folder / FILE).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
