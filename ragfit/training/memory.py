"""The memory that a run needs, and that there is."""

from collections.abc import Mapping, Sequence

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedConfig

from ragfit.evaluation.generate import longest_answer
from ragfit.models.hf import bf16_is_fast
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


def evaluation_estimate(trainer: RagfitTrainer) -> tuple[int, str]:
    """(bytes, explanation) of the longest dev rows, as many as are read together: what training leaves, and a batch.

    The most of it are the keys and values that are kept of each token of an answer and its prompt.
    """
    part = "train" if trainer.prepared.dev is None else "dev"
    lengths = trainer.prepared.report.part(part).lengths
    rows, prompt = min(trainer.args.per_device_eval_batch_size, len(lengths)), max(pair[0] for pair in lengths)
    longest, labelled = _longest(lengths)
    generation = trainer.cfg.model.get("generation") or {}
    answer = generation.get("max_new_tokens") or longest_answer(trainer.prepared, part)
    weights, _, state = _held(trainer)
    hidden, inner, _ = _sizes(trainer.model)
    width, vocabulary = trainer.model.dtype.itemsize, trainer.model.config.get_text_config().vocab_size
    # A CPU's product of 16-bit numbers copies the LM head for each row whose next token is wanted.
    copied = trainer.args.device.type == "cpu" and trainer.model.dtype in HALVES
    parts = {
        "weights": weights,
        "optimizer": state,
        "keys and values": rows * (prompt + answer) * width * cached_values(trainer.model.config),
        "activations": rows * longest * (6 * hidden + 3 * inner) * width,  # of one layer: none is kept
        "logits": max(
            copied * rows * vocabulary * width * hidden,
            _logits(trainer, rows * (labelled if trainer.labelled_head else longest)),
        ),
    }
    return sum(parts.values()), f"{_in_gib(parts)}; {rows:,} × (prompt {prompt:,} + answer {answer:,} tokens)"


def cached_values(config: PreTrainedConfig) -> int:
    """The numbers that attention keeps of a token: a key and a value for each head and layer. 0 without attention."""
    text = config.get_text_config()
    if not (heads := getattr(text, "num_attention_heads", 0)):
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width


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
        return torch.cuda.get_device_name(device) + f", {used} of {torch.cuda.device_count()} GPUs"
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
