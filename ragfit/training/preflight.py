"""A last look before the GPU hours: device, parameters, rows, steps, padding and memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.text import counted
from ragfit.draw.view import View

if TYPE_CHECKING:
    from ragfit.training.trainer import RagfitTrainer

GIB = 2**30


def preflight(trainer: "RagfitTrainer") -> "PreflightView":
    """What a run is about to do: a view with a row for each fact and a warning for each doubt.

    Args:
        trainer: of `ragfit.build_trainer`.
    """
    args, report, model, train = trainer.args, trainer.prepared.report, trainer.model, trainer.prepared.report.train
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    steps, (need, parts), have = total_steps(trainer), memory_estimate(trainer), free_memory(trainer)
    padded, packs = padding(trainer)
    processes = f" × {args.world_size} processes" if args.world_size > 1 else ""
    batch = f"{args.per_device_train_batch_size} {'packs' if packs else 'rows'} × {args.gradient_accumulation_steps}"
    items = [
        ("device", device_name(trainer), "activation checkpointing" if args.activation_checkpointing else ""),
        ("precision", *precision(trainer)),
        ("parameters", f"{trainable:,} of {total:,} are trained", f"{trainable / total:.2%}"),
        ("rows", f"{len(train.kept):,} train, {len(report.dev.kept):,} dev", packs),
        ("tokens", f"{train.tokens:,} read, {train.loss_tokens:,} with loss", f"{train.loss_share:.1%} have loss"),
        ("steps", f"{steps:,}", f"{batch} accumulated{processes} a step"),
        ("padding", f"{padded:.1%}", "of the positions of the first epoch"),
        ("memory", f"about {need / GIB:.1f} GiB of {have / GIB:.1f} GiB free", parts),
        ("output", str(args.output_dir), "adapter, tokenizer, configuration and instruction in checkpoint/"),
    ]
    warnings = [str(finding) for finding in report.findings if finding.severity == "warning"]
    text = model.config.get_text_config()
    longest, made_for = max(train.longest, report.dev.longest), getattr(text, "max_position_embeddings", None)
    if made_for and longest > made_for and "'factor'" not in str(getattr(text, "rope_parameters", None)):
        warnings.append(
            f"The longest row has {longest:,} tokens, and the model was made for {made_for:,} positions: beyond them "
            f"it reads badly or fails. Set model.max_sequence_len={made_for}."
        )
    if need > have:
        warnings.append(
            "The memory estimate exceeds what is free. Lower train.per_device_train_batch_size or "
            "model.max_sequence_len, set train.gradient_checkpointing=true, or load the model in 4 bits."
        )
    return PreflightView(items, warnings)


def total_steps(trainer: "RagfitTrainer") -> int:
    """Optimizer steps of the whole run."""
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def padding(trainer: "RagfitTrainer") -> tuple[float, str]:
    """The share of padding in the first epoch, in the order of the trainer's sampler; and what packs there are."""
    import torch

    from ragfit.training.packing import pack_length

    lengths, multiple = list(map(sum, trainer.lengths)), trainer.args.pad_to_multiple_of or 1
    with torch.random.fork_rng(devices=[]):  # a look changes nothing
        batches = [[lengths[row] for row in batch] for batch in trainer.get_train_dataloader().batch_sampler]
    packs = ""
    if trainer.cfg.train.get("packing"):  # a batch is one sequence
        batches = [[sum(batch)] for batch in batches]
        count, most = len(lengths), pack_length(trainer.cfg, trainer.prepared)
        full = f"{len(trainer.prepared.report.train.kept) / count:.1f} rows in each of {most:,} tokens"
        packs = f"{count:,} packs, {full}, {sum(lengths) / (count * most):.0%} full"
    read = sum(-(-max(batch) // multiple) * multiple * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / max(read, 1), packs


def memory_estimate(trainer: "RagfitTrainer") -> tuple[int, str]:
    """(bytes, explanation) of training: weights as loaded, gradients and optimizer state of the trained, activations.

    Activations are for the longest row, or pack: without checkpointing about 16 values of the hidden size and 3 of the
    MLP's per layer and token (Korthikanti et al., https://arxiv.org/abs/2205.05198, with attention that keeps no
    scores); with it, one value of the hidden size per layer and token, and one layer whole with its gradients. An
    estimate, to a factor of two.
    """
    model, args, text = trainer.model, trainer.args, trainer.model.config.get_text_config()
    weights, rows, bytes_each = list(model.parameters()), args.per_device_train_batch_size, model.dtype.itemsize
    state = 2 if "8bit" in str(args.optim) else 8  # bytes of the optimizer's state for each value
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    longest, labelled = max(map(sum, trainer.lengths)), max(completion for _, completion in trainer.lengths)
    # Of float32 weights autocast leaves the norms and the residual stream in float32: three bytes a value.
    layer = longest * rows * (16 * hidden + 3 * inner) * (2 if bytes_each == 2 else 3)
    kept = longest * rows * hidden * bytes_each * layers
    if getattr(model, "is_loaded_in_8bit", False):
        # bitsandbytes keeps what goes into each product where checkpointing does not see it (MatMul8bitLt's `ctx`).
        kept += longest * rows * (3 * hidden + inner) * bytes_each * layers
    # TRL projects tiles of at most 4,096 positions and 32,768 ids of the vocabulary, and holds about three of them.
    projected = rows * (labelled if trainer.labelled_head else longest)
    parts = {
        "weights": sum(weight.nbytes for weight in weights),
        "updates": sum(weight.nbytes + state * weight.numel() for weight in weights if weight.requires_grad),
        "activations": 2 * layer + kept if args.activation_checkpointing else layer * layers,
        "logits": min(projected, 4096) * min(text.vocab_size, 32768) * 4 * 3,
    }
    shares = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return sum(parts.values()), f"estimate in GiB: {shares}; longest row {counted(longest, 'token')}"


def free_memory(trainer: "RagfitTrainer") -> int:
    """Bytes that this process can still take of its devices, what it already holds included."""
    import psutil
    import torch

    main = trainer.args.device
    if main.type == "cuda":  # `model.device_map` may have used several; what torch has reserved, it can fill again
        used = {main, *(weight.device for weight in trainer.model.parameters() if weight.device.type == "cuda")}
        return sum(torch.cuda.mem_get_info(one)[0] + torch.cuda.memory_reserved(one) for one in used)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def device_name(trainer: "RagfitTrainer") -> str:
    """The GPU, or the CPU with its threads."""
    import torch

    device, threads = trainer.args.device, counted(torch.get_num_threads(), "thread")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads}"


def precision(trainer: "RagfitTrainer") -> tuple[str, str]:
    """(the type that products are computed in, the types of the weights)."""
    args, model = trainer.args, trainer.model
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    bits = next((bits for bits in ("8", "4") if getattr(model, f"is_loaded_in_{bits}bit", False)), None)
    weights = f"{bits}-bit" if bits else str(model.dtype).removeprefix("torch.")
    trained = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad}
    return compute, f"{weights} weights, {' and '.join(sorted(trained))} for those that are trained"


class PreflightView(View):
    """A last look before the run: `items` of (label, value, note), and `warnings`, which are sentences."""

    title = "Before the run"

    def __init__(self, items: Sequence[tuple[str, object, object]], warnings: Sequence[str] = ()):
        self.items = [(str(label), str(value), str(note or "")) for label, value, note in items]
        self.warnings = [str(warning) for warning in warnings]

    def blocks(self) -> list[Block]:
        return [*map(Callout, self.warnings), Facts(self.items)]
