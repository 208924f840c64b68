"""What a model computes, in a few numbers: the log-probabilities of some tokens, kept in a checkpoint and compared.

Names and settings say which base an adapter belongs to, and they can be wrong; log-probabilities cannot be.
"""

import contextlib
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
    ids = (prepared.dev or prepared.train)["input_ids"]
    return [list(ids[place])[-LENGTH:] for place in sorted({0, len(ids) - 1})]


@torch.no_grad()
def measure(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> dict[str, Any]:
    """The type of a model's weights, and the log-probabilities of each row's last tokens, its adapter as it stands."""
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
            output = type(model).forward(model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            scores, read = output.logits[0, -TOKENS - 1 : -1].float().log_softmax(-1), ids[0, 1:][-TOKENS:, None]
            found.append([round(score, 6) for score in scores.gather(-1, read.to(scores.device))[:, 0].tolist()])
    finally:  # a training may go on, after memory gave out
        for module in uncast:
            module.cast_input_dtype_enabled = False
        model.train(training)
    kind = str(max(model.parameters(), key=torch.Tensor.numel).dtype).removeprefix("torch.")
    if quantized := getattr(model.config, "quantization_config", None):
        bits = [f"{bits}-bit" for bits in (8, 4) if getattr(quantized, f"load_in_{bits}bit", False)]
        kind = bits[0] if bits else "quantized"
    return {"type": kind, "log_probs": found}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far two measurements of the same rows differ: the mean difference of a log-probability, in nats."""
    ours, theirs = (torch.tensor(sum(found["log_probs"], [])) for found in (one, other))
    return float((ours - theirs).abs().mean())


def check(folder: str | Path, model: PreTrainedModel | PeftModel, what: str) -> None:
    """Refuse a model ("base", with its adapter off, "tuned" or "merged") that a folder's fingerprint contradicts."""
    if (path := model_file(str(folder), FILE)) is None:
        return
    fix = f"Take base and adapter from where they were trained, or delete {path} to put them together all the same."
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        expected = {"base": kept.get("base"), "tuned": kept["tuned"], "merged": kept["tuned"]}[what]
        if expected is None:  # all weights were trained: the base is another folder's
            return
        difference, kinds = math.inf, [expected["type"]]
        if max(map(max, kept["rows"])) < model.get_input_embeddings().weight.shape[0]:
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
        problem = f"{WRONG[what]}: log-probabilities of some tokens are off by {difference:.3g} from those in {path}, "
        raise ConfigError("checkpoint", f"{problem}where rounding explains {allowed:g} ({', '.join(kinds)})", fix)


def write(folder: Path, model: PreTrainedModel | PeftModel, rows: list[list[int]], ends: list[int]) -> None:
    """Write what a tuned model and its base make of some rows, and the ids that its answers end with."""
    content = {"rows": rows, "tuned": measure(model, rows), "ends": ends}
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            content["base"] = measure(model, rows)
    (folder / FILE).write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
