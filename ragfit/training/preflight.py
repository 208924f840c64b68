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
    """What a run is about to do: a view with a row for each fact and a warning for each doubt."""
    args, report, model, train = trainer.args, trainer.prepared.report, trainer.model, trainer.prepared.report.train
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    steps, (need, parts), have = total_steps(trainer), memory_estimate(trainer), free_memory(trainer)
    what = "packs" if trainer.cfg.train.get("packing") else "rows"
    processes = f" × {args.world_size} processes" if args.world_size > 1 else ""
    accumulated = f"{args.gradient_accumulation_steps} accumulated{processes} a step"
    items = [
        ("device", device_name(trainer), "activation checkpointing" if args.activation_checkpointing else ""),
        ("precision", *precision(trainer)),
        ("parameters", f"{trainable:,} of {total:,} are trained", f"{trainable / total:.2%}"),
        ("rows", f"{len(train.kept):,} train, {len(report.dev.kept):,} dev", packs(trainer)),
        ("tokens", f"{train.tokens:,} read, {train.loss_tokens:,} with loss", f"{train.loss_share:.1%} have loss"),
        ("steps", f"{steps:,}", f"{args.per_device_train_batch_size} {what} × {accumulated}"),
        ("padding", f"{padding(trainer):.1%}", "of the positions of the first epoch"),
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
    if steps == 0:
        warnings.append("There are no steps to take. Check train.max_steps and train.num_train_epochs.")
    return PreflightView(items, warnings)


def total_steps(trainer: "RagfitTrainer") -> int:
    """Optimizer steps of the whole run."""
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def packs(trainer: "RagfitTrainer") -> str:
    """How many rows lie end to end, and how full the packs are; "" where none are packed."""
    from ragfit.training.packing import pack_length

    if not trainer.cfg.train.get("packing"):
        return "each batch end to end" if trainer.cfg.train.get("padding_free") else ""
    rows, found = len(trainer.prepared.report.train.kept), len(trainer.train_dataset)
    length = pack_length(trainer.cfg, trainer.prepared)
    full = trainer.prepared.report.train.tokens / (found * length)
    return f"{found:,} packs, {rows / found:.1f} rows in each of {length:,} tokens, {full:.0%} full"


def padding(trainer: "RagfitTrainer") -> float:
    """The share of the first epoch's positions that are padding, in the order that the trainer's sampler will draw."""
    import torch

    from ragfit.training.packing import is_packed

    lengths, multiple = list(map(sum, trainer.lengths)), trainer.args.pad_to_multiple_of or 1
    with torch.random.fork_rng(devices=[]):  # a look changes nothing
        batches = [[lengths[row] for row in batch] for batch in trainer.get_train_dataloader().batch_sampler]
    if is_packed(trainer.train_dataset):  # a batch is one sequence
        batches = [[sum(batch)] for batch in batches]
    read = sum(-(-max(batch) // multiple) * multiple * len(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / read if read else 0.0


# The machine.


def memory_estimate(trainer: "RagfitTrainer") -> tuple[int, str]:
    """(bytes, explanation) of training: weights as loaded, gradients and optimizer state of the trained, activations.

    Activations are for the longest row, or pack: without checkpointing about 16 values of the hidden size and 3 of the
    MLP's per layer and token (Korthikanti et al., https://arxiv.org/abs/2205.05198, with attention that keeps no
    scores); with it, one value of the hidden size per layer and token, and one layer whole with its gradients. An
    estimate, to a factor of two.
    """
    model, args, text = trainer.model, trainer.args, trainer.model.config.get_text_config()
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    state = 2 if "8bit" in str(args.optim) else 8  # bytes of the optimizer's state for each value
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    rows = args.per_device_train_batch_size
    longest, labelled = max(map(sum, trainer.lengths)), max(completion for _, completion in trainer.lengths)
    # Bytes a value: of float32 weights autocast leaves the norms and the residual stream in float32.
    layer = longest * rows * (16 * hidden + 3 * inner) * (2 if model.dtype.itemsize == 2 else 3)
    kept = longest * rows * hidden * model.dtype.itemsize * layers
    if getattr(model, "is_loaded_in_8bit", False):
        # bitsandbytes keeps what goes into each product where checkpointing does not see it (MatMul8bitLt's `ctx`).
        kept += longest * rows * (3 * hidden + inner) * model.dtype.itemsize * layers
    # TRL projects tiles of at most 4,096 positions and 32,768 ids of the vocabulary, and holds about three of them.
    projected = rows * (labelled if trainer.labelled_head else longest)
    parts = {
        "weights": sum(weight.nbytes for weight in weights),
        "updates": sum(weight.nbytes + state * weight.numel() for weight in trained),
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
    import torch

    device = trainer.args.device
    cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def precision(trainer: "RagfitTrainer") -> tuple[str, str]:
    """(the type that products are computed in, the types of the weights)."""
    args, model = trainer.args, trainer.model
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    bits = next((bits for bits in ("8", "4") if getattr(model, f"is_loaded_in_{bits}bit", False)), None)
    weights = f"{bits}-bit" if bits else str(model.dtype).removeprefix("torch.")
    trained = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad}
    return compute, f"{weights} weights, {' and '.join(sorted(trained))} for those that are trained"


class PreflightView(View):
    """A last look before the run.

    Args:
        items: `(label, value, note)`.
        warnings: sentences.
    """

    title = "Before the run"

    def __init__(self, items: Sequence[tuple[str, object, object]], warnings: Sequence[str] = ()):
        self.items = [(str(label), str(value), str(note or "")) for label, value, note in items]
        self.warnings = [str(warning) for warning in warnings]

    def blocks(self) -> list[Block]:
        return [*map(Callout, self.warnings), Facts(self.items)]
