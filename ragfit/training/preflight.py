"""A last look before the GPU hours: device, parameters, rows, steps, padding and memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import torch

from ragfit.config.explain import LESS_MEMORY
from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.text import counted
from ragfit.draw.view import View
from ragfit.training.packing import pack_length

if TYPE_CHECKING:
    from ragfit.training.trainer import RagfitTrainer

GIB = 2**30


def preflight(trainer: "RagfitTrainer") -> "PreflightView":
    """What a run is about to do: a view with a row for each fact and a warning for each doubt."""
    args, report, model, train = trainer.args, trainer.prepared.report, trainer.model, trainer.prepared.report.train
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    (need, parts), have = memory_estimate(trainer), free_memory(trainer)
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    batch = f"{args.per_device_train_batch_size} {'packs' if trainer.cfg.train.get('packing') else 'rows'}"
    processes = f" × {args.world_size} processes" if args.world_size > 1 else ""
    cuda = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else ""
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    bits = "".join(f"{n}-bit " for n in (8, 4) if getattr(model, f"is_loaded_in_{n}bit", False))
    types = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
    items = [
        ("device", cuda or f"CPU, {counted(torch.get_num_threads(), 'thread')}", ""),
        ("precision", compute, f"{bits}weights in {' and '.join(sorted(types))}"),
        ("parameters", f"{trainable:,} of {total:,} are trained", f"{trainable / total:.2%}"),
        ("rows", f"{len(train.kept):,} train, {len(report.dev.kept):,} dev", packs(trainer)),
        ("tokens", f"{train.tokens:,} read, {train.loss_tokens:,} with loss", f"{train.loss_share:.1%} have loss"),
        ("steps", f"{steps:,}", f"{batch} × {args.gradient_accumulation_steps} accumulated{processes} a step"),
        ("padding", f"{padding(trainer):.1%}", "of the positions of the first epoch"),
        ("memory", f"about {need / GIB:.1f} GiB of {have / GIB:.1f} GiB free", parts),
        ("output", str(args.output_dir), "adapter, tokenizer, configuration and instruction in checkpoint/"),
    ]
    warnings = [str(finding) for finding in report.findings if finding.severity == "warning"]
    text, longest = model.config.get_text_config(), max(train.longest, report.dev.longest)
    made_for = getattr(text, "max_position_embeddings", None) or longest
    if longest > made_for and "'factor'" not in str(getattr(text, "rope_parameters", None)):
        beyond = f"The longest row has {longest:,} tokens, and the model was made for {made_for:,} positions: beyond "
        warnings.append(f"{beyond}them it reads badly or fails. Set model.max_sequence_len={made_for}.")
    if need > have:
        warnings.append(f"The memory estimate exceeds what is free. {LESS_MEMORY}.")
    return PreflightView(items, warnings)


def packs(trainer: "RagfitTrainer") -> str:
    """How many rows lie end to end, and how full the packs are; "" where none are packed."""
    if not trainer.cfg.train.get("packing"):
        return ""
    train, found = trainer.prepared.report.train, len(trainer.lengths)
    length = pack_length(trainer.cfg, trainer.prepared)
    each, full = len(train.kept) / found, train.tokens / (found * length)
    return f"{found:,} packs, {each:.1f} rows in each of {length:,} tokens, {full:.0%} full"


def padding(trainer: "RagfitTrainer") -> float:
    """The share of the first epoch's positions that are padding, in the order that the trainer's sampler will draw."""
    if trainer.cfg.train.get("packing"):  # a batch is one sequence
        return 0.0
    lengths, multiple = list(map(sum, trainer.lengths)), trainer.args.pad_to_multiple_of or 1
    with torch.random.fork_rng(devices=[]):  # a look changes nothing
        batches = [[lengths[row] for row in batch] for batch in trainer.get_train_dataloader().batch_sampler]
    read = sum(-(-max(batch) // multiple) * multiple * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / read if read else 0.0


def memory_estimate(trainer: "RagfitTrainer") -> tuple[int, str]:
    """(bytes, explanation) of training on the longest row or pack, to a factor of two."""
    model, args, text = trainer.model, trainer.args, trainer.model.config.get_text_config()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    state = 2 if "8bit" in str(args.optim) else 8  # bytes of the optimizer's state for each value
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    longest, labelled = max(map(sum, trainer.lengths)), max(completion for _, completion in trainer.lengths)
    tokens = longest * args.per_device_train_batch_size
    # Of each layer 16 values of the hidden size and 3 of the MLP's (Korthikanti et al., https://arxiv.org/abs/2205.05198);
    # checkpointing keeps one, and a layer with its gradients. Autocast leaves norms and residual stream in float32.
    layer = tokens * (16 * hidden + 3 * inner) * (2 if model.dtype.itemsize == 2 else 3)
    kept = tokens * hidden * model.dtype.itemsize * layers
    if getattr(model, "is_loaded_in_8bit", False):
        # bitsandbytes keeps what goes into each product where checkpointing does not see it (MatMul8bitLt's `ctx`).
        kept += tokens * (3 * hidden + inner) * model.dtype.itemsize * layers
    positions = min(args.per_device_train_batch_size * labelled, 4096)  # TRL's tile of them, and of the vocabulary
    parts = {
        "weights": sum(weight.nbytes for weight in model.parameters()),
        "updates": sum(weight.nbytes + state * weight.numel() for weight in trained),
        "activations": 2 * layer + kept if args.activation_checkpointing else layer * layers,
        "logits": positions * min(text.vocab_size, 32768) * 4 * 3,
    }
    shares = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return sum(parts.values()), f"estimate in GiB: {shares}; longest row {counted(longest, 'token')}"


def free_memory(trainer: "RagfitTrainer") -> int:
    """Bytes that this process can still take of its devices, what it already holds included."""
    if trainer.args.device.type == "cuda":  # `model.device_map` may have used several
        used = {weight.device for weight in trainer.model.parameters() if weight.device.type == "cuda"}
        return sum(torch.cuda.mem_get_info(one)[0] + torch.cuda.memory_reserved(one) for one in used)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


class PreflightView(View):
    """A last look before the run: `(label, value, note)` of each fact, and sentences that warn."""

    title = "Before the run"

    def __init__(self, items: Sequence[tuple[str, str, str]], warnings: Sequence[str] = ()):
        self.items, self.warnings = list(items), list(warnings)

    def blocks(self) -> list[Block]:
        return [*map(Callout, self.warnings), Facts(self.items)]
