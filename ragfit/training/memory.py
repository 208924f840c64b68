"""The memory that a run needs, and that there is."""

import bisect
from collections.abc import Mapping, Sequence

import psutil
import torch
from peft import PeftModel
from transformers.cache_utils import DynamicLayer

from ragfit.evaluation.generate import inference, longest_answer
from ragfit.models.hf import bf16_is_fast
from ragfit.training.cpu import is_sharded
from ragfit.training.trainer import RagfitTrainer

HALVES = (torch.bfloat16, torch.float16)


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; a 4-bit weight holds two of them in a byte."""
    return model.num_parameters(), model.num_parameters(only_trainable=True)


def memory_estimate(trainer: RagfitTrainer) -> tuple[int, str]:
    """(bytes, explanation) of training: weights as loaded, gradients and optimizer state of the trained, activations.

    Activations are for the longest row, or pack: without checkpointing about 16 values of the hidden size and 3 of the
    MLP's per layer and token (Korthikanti et al., https://arxiv.org/abs/2205.05198, with attention that keeps no
    scores); with it, one value of the hidden size per layer and token, and one layer whole with its gradients. An
    estimate, to a factor of two.
    """
    model, args, lengths = trainer.model, trainer.args, trainer.lengths
    rows, longest, labelled = args.per_device_train_batch_size, *_longest(lengths)
    weights, trained, state = _held(trainer)
    hidden, inner, layers = _sizes(model)
    # Bytes a value: of float32 weights autocast leaves the norms and the residual stream in float32.
    width = 2 if model.dtype in HALVES else 3
    layer = longest * rows * (16 * hidden + 3 * inner) * width
    kept = longest * rows * hidden * model.dtype.itemsize * layers
    if getattr(model, "is_loaded_in_8bit", False):
        # bitsandbytes keeps what goes into each product where checkpointing does not see it (MatMul8bitLt's `ctx`).
        kept += longest * rows * (3 * hidden + inner) * model.dtype.itemsize * layers
    activations = 2 * layer + kept if args.activation_checkpointing else layer * layers
    logits = _logits(trainer, rows * (labelled if trainer.labelled_head else longest))
    parts = {"weights": weights, "updates": trained + state, "activations": activations, "logits": logits}
    return sum(parts.values()), f"{_in_gib(parts)}; longest row {longest:,} tokens"


def evaluation_estimate(trainer: RagfitTrainer, batch: int | None = None) -> tuple[int, str]:
    """(bytes, explanation) of a dev loss and of answers, whichever takes more: what training leaves, and a batch.

    Args:
        batch: rows together; by default `train.per_device_eval_batch_size`, or as many as there are.
    """
    part = "train" if trainer.prepared.dev is None else "dev"
    lengths = trainer.prepared.report.part(part).lengths
    rows = min(batch or trainer.args.per_device_eval_batch_size, len(lengths))
    longest, labelled = _longest(lengths)
    prompt = max(pair[0] for pair in lengths)
    generation = trainer.cfg.model.get("generation") or {}
    answer = generation.get("max_new_tokens") or longest_answer(trainer.prepared, part)
    weights, _, state = _held(trainer)
    hidden, inner, _ = _sizes(trainer.model)
    width, vocabulary = trainer.model.dtype.itemsize, trainer.model.config.get_text_config().vocab_size
    # A CPU's product of 16-bit numbers copies the LM head for each row whose next token is wanted.
    copied = trainer.args.device.type == "cpu" and trainer.model.dtype in HALVES
    next_token = rows * vocabulary * (width * hidden if copied else 4)
    # Nothing is kept for a backward pass: one layer's values, and attention's mask where rows are padded.
    layer = rows * longest * (6 * hidden + 3 * inner) * width + (rows > 1) * rows * longest**2 * (1 + width)
    parts = {
        "weights": weights,
        "optimizer": state,
        "keys and values": cache_size(trainer.model, rows, prompt + answer),
        "activations": layer,
        "logits": max(next_token, _logits(trainer, rows * (labelled if trainer.labelled_head else longest))),
    }
    return sum(parts.values()), f"{_in_gib(parts)}; {rows:,} × (prompt {prompt:,} + answer {answer:,} tokens)"


def batch_that_fits(trainer: RagfitTrainer, free: int) -> int:
    """The largest `train.per_device_eval_batch_size` whose estimate is at most so many bytes; 0 where there is none."""
    batches = range(1, trainer.args.per_device_eval_batch_size + 1)
    return bisect.bisect(batches, free, key=lambda batch: evaluation_estimate(trainer, batch)[0])


def cache_size(model: torch.nn.Module, rows: int, positions: int) -> int:
    """Bytes of the keys and values of so many positions, where the model keeps any.

    Read off the cache of a short pass: the number, the width and the type of the heads, and which layers have some,
    stand under other names in each architecture's configuration. A sliding window bounds its layer's positions.
    """
    if is_sharded(model):
        return 0
    weight = model.get_input_embeddings().weight
    few = 4
    with inference(model):
        cache = model(input_ids=torch.ones((1, few), dtype=torch.int64, device=weight.device), use_cache=True).get(
            "cache"
        )
    size = 0
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, DynamicLayer) and layer.keys is not None:
            window = layer.get_max_length()  # -1 without one
            kept = min(positions, window) if window > 0 else positions
            size += (layer.keys.nbytes + layer.values.nbytes) * rows * kept // few
    return size


def _held(trainer: RagfitTrainer) -> tuple[int, int, int]:
    """Bytes of (weights, gradients of the trained ones, state of the optimizer)."""
    weights = list(trainer.model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    state = 2 if "8bit" in trainer.args.optim.value else 8
    return sum(w.nbytes for w in weights), sum(w.nbytes for w in trained), state * sum(w.numel() for w in trained)


def _sizes(model: torch.nn.Module) -> tuple[int, int, int]:
    """(hidden size, the MLP's, layers)."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return config.hidden_size, inner, config.num_hidden_layers


def _logits(trainer: RagfitTrainer, positions: int) -> int:
    """TRL projects tiles of at most 4,096 positions and 32,768 ids of the vocabulary, and holds about three of them."""
    return min(positions, 4096) * min(trainer.model.config.get_text_config().vocab_size, 32768) * 4 * 3


def _longest(lengths: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(tokens of the longest row, labels of the row with most)."""
    return max(map(sum, lengths)), max(completion for _, completion in lengths)


def _in_gib(parts: Mapping[str, int]) -> str:
    return "estimate in GiB: " + ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())


def devices_of(trainer: RagfitTrainer) -> set[torch.device]:
    """The process's device, and the others that `model.device_map` has put weights on."""
    main = trainer.args.device
    return {main, *(weight.device for weight in trainer.model.parameters() if weight.device.type == main.type)}


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take of a device, what it already holds included."""
    if device.type == "cuda":  # what torch has reserved, it can fill again
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def device_name(trainer: RagfitTrainer) -> str:
    """The device by name."""
    device = trainer.args.device
    if device.type == "cuda":
        used = len(devices_of(trainer))
        more = torch.cuda.device_count() - used
        name = torch.cuda.get_device_name(device) + f" and {used - 1} more" * (used > 1)
        return name + f" ({more} more not used by this process)" * (more > 0)
    threads = torch.get_num_threads()
    return f"{device.type.upper()}, {threads} thread{'s' * (threads != 1)}"


def precision(trainer: RagfitTrainer) -> tuple[str, str]:
    """(the type that products are computed in, why it is that one and the types of weights)."""
    args, model, asked = trainer.args, trainer.model, trainer.cfg.train.get("bf16")
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    machine = "GPU" if args.device.type == "cuda" else "processor"
    does = f"this {machine} {'multiplies' if bf16_is_fast() else 'does not multiply'} bfloat16 in hardware"
    if asked is not None:
        why = f"train.bf16 is {str(asked).lower()}"
        if bf16_is_fast() and not (args.bf16 or args.fp16):
            why += f", though {does}"
    elif args.fp16:
        why = "train.fp16 is true"
    else:
        why = f"chosen because {does} and train.bf16 is empty"
    quantized = [bits for bits in ("8bit", "4bit") if getattr(model, f"is_loaded_in_{bits}", False)]
    weights = f"{quantized[0].replace('bit', '-bit') if quantized else name_of(model.dtype)} weights"
    if isinstance(model, PeftModel):
        adapter = {name_of(parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
        weights += f", {' and '.join(sorted(adapter))} adapter"
    return compute, f"{why}; {weights}"


def name_of(dtype: torch.dtype) -> str:
    """A torch type's name: `float32`."""
    return str(dtype).removeprefix("torch.")
