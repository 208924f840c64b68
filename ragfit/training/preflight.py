"""A last look before the GPU hours: device, parameters, rows, steps and memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.text import counted
from ragfit.draw.view import View

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ragfit.training.trainer import RagfitTrainer

GROUPED = ("group_by_length", "batch_rebalance")
LARGE_SHARE = 0.2  # of padding, above which a preflight says what would help


def preflight(trainer: "RagfitTrainer") -> "PreflightView":
    """What a run is about to do: a view with a row for each fact and a warning for each doubt."""
    from peft import PeftModel

    from ragfit.training import memory
    from ragfit.training.packing import is_packed
    from ragfit.training.resume import rows_per_step

    args, report, model = trainer.args, trainer.prepared.report, trainer.model
    total, trainable = memory.parameters(model)
    steps, (need, parts) = total_steps(trainer), memory.memory_estimate(trainer)
    have = sum(map(memory.free_memory, memory.devices_of(trainer)))
    to_evaluate, evaluated = memory.evaluation_estimate(trainer)
    share, note, hint = padding(trainer)
    with_loss = report.train.loss_tokens / max(report.train.tokens, 1)
    checkpointing = "with" if args.activation_checkpointing else "without"
    processes = f" × {args.world_size} processes" if args.world_size > 1 else ""
    packs = trainer.cfg.train.get("packing")
    what = "packs" if packs else "rows"
    a_step = (
        f"{args.per_device_train_batch_size} {what} × {args.gradient_accumulation_steps} accumulated{processes} a step"
    )
    if packs:
        a_step += f", about {round(len(report.train.kept) / len(trainer.train_dataset) * rows_per_step(args)):,} rows"
    tokens = f"{report.train.tokens:,} read, {report.train.loss_tokens:,} with loss"
    items = [
        ("device", memory.device_name(trainer), f"{checkpointing} activation checkpointing"),
        ("precision", *memory.precision(trainer)),
        ("parameters", f"{trainable:,} of {total:,} are trained", f"{trainable / total:.2%}"),
        ("rows", f"{len(report.train.kept):,} train, {len(report.dev.kept):,} dev", ""),
        ("tokens", tokens, f"{with_loss:.1%} of the training tokens"),
        ("steps", f"{steps:,}", a_step),
        *([("packing", *packing(trainer))] if is_packed(trainer.train_dataset) else []),
        ("padding", share, note),
        ("memory", f"about {need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB free", parts),
        ("evaluation", f"about {to_evaluate / 2**30:.1f} GiB", evaluated),
        ("output", str(args.output_dir), "adapter, tokenizer, configuration and instruction in checkpoint/"),
    ]
    warnings = [str(finding) for finding in report.findings if finding.severity == "warning"]
    warnings += [hint] if hint else []
    longest = max(report.train.longest, report.dev.longest)
    made_for = positions(model.config)
    if made_for and longest > made_for:
        warnings.append(
            f"The longest row has {longest:,} tokens, and the model was made for {made_for:,} positions: beyond them "
            f"it reads badly, without an error. Set model.max_sequence_len={made_for}, or scale its positions "
            "(rope_parameters in its config.json)."
        )
    if model.dtype in memory.HALVES and not isinstance(model, PeftModel):
        warnings.append(
            f"All weights are trained, and they are {memory.name_of(model.dtype)}: an update much smaller than its "
            "weight is lost in rounding. Set model.dtype=float32; train.bf16=true still multiplies in bfloat16."
        )
    if need > have:
        warnings.append(
            "The memory estimate exceeds what is free. Lower train.per_device_train_batch_size or "
            "model.max_sequence_len, set train.gradient_checkpointing=true, or load the model in 4 bits."
        )
    if to_evaluate > max(need, have):
        warnings.append(
            f"Dev loss and answers take about {to_evaluate / 2**30:.1f} GiB with {args.per_device_eval_batch_size} "
            "rows together, more than is free. Lower train.per_device_eval_batch_size or model.max_sequence_len."
        )
    if steps == 0:
        warnings.append("There are no steps to take. Check train.max_steps and train.num_train_epochs.")
    return PreflightView(items, warnings)


def positions(config: "PreTrainedConfig") -> int | None:
    """The positions that a model was made for, with its scaling of rotary ones; None where config.json is silent."""
    text = config.get_text_config()
    most, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    scaled = [
        int(one["factor"] * (one.get("original_max_position_embeddings") or most))
        for one in (rope, *rope.values())  # some models have one for each kind of layer
        if isinstance(one, dict) and one.get("factor") and most
    ]
    return max([most, *scaled]) if most else None


def total_steps(trainer: "RagfitTrainer") -> int:
    """Optimizer steps of the whole run."""
    return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def packing(trainer: "RagfitTrainer") -> tuple[str, str]:
    """How many rows lie end to end, and how full the packs are."""
    from ragfit.training.packing import pack_length

    if not trainer.cfg.train.get("packing"):
        return "each batch end to end", "train.padding_free"
    rows, packs = len(trainer.prepared.report.train.kept), len(trainer.train_dataset)
    length = pack_length(trainer.cfg, trainer.prepared)
    full = trainer.prepared.report.train.tokens / (packs * length)
    return f"{rows:,} rows in {packs:,} packs", f"{rows / packs:.1f} a pack of {length:,} tokens, {full:.0%} full"


def padding(trainer: "RagfitTrainer") -> tuple[str, str, str | None]:
    """What of the first epoch's batches is padding.

    Read off the sampler that the trainer will use, in the order that it will draw, and the rows' lengths: the share
    and a note, as texts for the preflight, and a warning where another order has much less padding.
    """
    import torch

    from ragfit.training.packing import is_packed

    args = trainer.args
    lengths = [sum(pair) for pair in trainer.prepared.report.train.lengths]
    with torch.random.fork_rng(devices=[]):  # a look changes nothing
        batches = list(trainer.get_train_dataloader().batch_sampler)
    multiple = args.pad_to_multiple_of or 1
    if is_packed(trainer.train_dataset):
        ends = [sum(sum(trainer.lengths[row]) for row in batch) for batch in batches]
        share = padded_share([[batch] for batch in range(len(batches))], ends, multiple)
        return f"{share:.1%}", "rows lie end to end", None
    share = padded_share(batches, lengths, multiple)
    rows = max(map(len, batches), default=0)
    note = f"of the positions in batches of {counted(rows, 'row')}, first epoch"
    if args.train_sampling_strategy in GROUPED:
        return f"{share:.1%}", f"{note}; rows of similar length share a batch", None
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    least = padded_share([order[i : i + rows] for i in range(0, len(order), rows)], lengths, multiple)
    hint = None
    if share > LARGE_SHARE and least <= share / 2:
        hint = (
            f"{share:.0%} of what is computed is padding, because rows of different lengths share batches. "
            f"Set train.group_by_length=true: about {least:.0%} would be, or train.packing=true: none."
        )
    return f"{share:.1%}", note, hint


def padded_share(batches: list[list[int]], lengths: list[int], multiple: int = 1) -> float:
    """The share of positions that are padding.

    Args:
        batches: lists of row indices.
        lengths: tokens of each row.
        multiple: what a batch's length is rounded up to a multiple of.
    """
    real = sum(lengths[row] for batch in batches for row in batch)
    read = sum(-(-max(lengths[row] for row in batch) // multiple) * multiple * len(batch) for batch in batches)
    return 1 - real / read if read else 0.0


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
