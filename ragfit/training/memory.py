"""The memory that a run needs, and that there is."""

import psutil
import torch
from peft import PeftModel
from transformers import TrainingArguments

from ragfit.models.hf import bf16_is_fast
from ragfit.training.trainer import RagfitTrainer

HALVES = (torch.bfloat16, torch.float16)


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; a 4-bit weight holds two of them in a byte."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
        return total, trainable
    return model.num_parameters(), model.num_parameters(only_trainable=True)


def memory_estimate(trainer: RagfitTrainer) -> tuple[int, str]:
    """(bytes, explanation): weights as loaded, the trained parameters' gradients and optimizer state, activations.

    Activations are for the longest row: without checkpointing about 16 values of the hidden size and 3 of the MLP's
    per layer and token (Korthikanti et al., https://arxiv.org/abs/2205.05198, with attention that keeps no scores);
    with it, one value of the hidden size per layer and token, and one layer whole with its gradients. An estimate, to
    a factor of two.
    """
    model, args, lengths = trainer.model, trainer.args, trainer.lengths
    rows, longest = args.per_device_train_batch_size, max(sum(pair) for pair in lengths)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    state = 2 if "8bit" in args.optim.value else 8
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    update = sum(parameter.numel() * (parameter.element_size() + state) for parameter in trained)
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = 2 if args.bf16 or args.fp16 or model.dtype in HALVES else 4
    layer = longest * rows * (16 * hidden + 3 * inner) * width
    kept = longest * rows * hidden * width * layers
    activations = 2 * layer + kept if args.activation_checkpointing else layer * layers
    projected = rows * (max(pair[1] for pair in lengths) if trainer.labelled_head else longest)
    # TRL projects tiles of at most 4,096 positions and 32,768 ids of the vocabulary, and holds about three of them.
    logits = min(projected, 4096) * min(config.vocab_size, 32768) * 4 * 3
    parts = {"weights": weights, "updates": update, "activations": activations, "logits": logits}
    explanation = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
    return sum(parts.values()), f"estimate in GiB: {explanation}; longest row {longest:,} tokens"


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take, what it already holds included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def device_name(args: TrainingArguments) -> str:
    """The device by name."""
    if args.device.type == "cuda":
        more = torch.cuda.device_count() - 1
        return torch.cuda.get_device_name(args.device) + f" ({more} more not used by this process)" * (more > 0)
    threads = torch.get_num_threads()
    return f"{args.device.type.upper()}, {threads} thread{'s' * (threads != 1)}"


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
