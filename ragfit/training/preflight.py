"""A last look before the GPU hours: device, parameters, rows, steps and memory."""

import math
from collections.abc import Sequence

from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.view import View
from ragfit.training.memory import HALVES, device_name, free_memory, memory_estimate, name_of, parameters, precision

GROUPED = ("group_by_length", "batch_rebalance")
LARGE_SHARE = 0.2  # of padding, above which a preflight says what would help


def preflight(trainer):
    """What a run is about to do, as a view.

    Args:
        trainer: of `ragfit.build_trainer`.

    Returns:
        PreflightView with a row for each fact and a warning for each doubt.
    """
    from ragfit.views import PreflightView

    args, report, model = trainer.args, trainer.prepared.report, trainer.model
    total, trainable = parameters(model)
    steps = total_steps(trainer)
    need, parts = memory_estimate(trainer)
    have = free_memory(args.device)
    share, hint = padding(trainer)
    items = [
        (
            "device",
            device_name(args),
            f"{'with' if args.gradient_checkpointing else 'without'} activation checkpointing",
        ),
        ("precision", *precision(trainer)),
        ("parameters", f"{trainable:,} of {total:,} are trained", f"{trainable / total:.2%}"),
        ("rows", f"{len(report.train.kept):,} train, {len(report.dev.kept):,} dev", ""),
        (
            "tokens",
            f"{report.train.tokens:,} read, {report.train.loss_tokens:,} with loss",
            f"{report.train.loss_tokens / max(report.train.tokens, 1):.1%} of the training tokens",
        ),
        (
            "steps",
            f"{steps:,}",
            f"{args.per_device_train_batch_size} rows × {args.gradient_accumulation_steps} accumulated"
            f"{f' × {args.world_size} processes' if args.world_size > 1 else ''} a step",
        ),
        ("padding", *share),
        ("memory", f"about {need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB free", parts),
        ("output", str(args.output_dir), "adapter, tokenizer, configuration and instruction in checkpoint/"),
    ]
    warnings = [str(finding) for finding in report.findings if finding.severity == "warning"]
    warnings += hint
    longest, made_for = (
        max(sum(pair) for part in (report.train, report.dev) for pair in part.lengths),
        positions(model.config),
    )
    if made_for and longest > made_for:
        warnings.append(
            f"The longest row has {longest:,} tokens, and the model was made for {made_for:,} positions: beyond them it reads badly, "
            f"without an error. Set model.max_sequence_len={made_for}, or scale its positions (rope_parameters in its config.json)."
        )
    if str(model.dtype) in HALVES and not hasattr(model, "peft_config"):
        warnings.append(
            f"All weights are trained, and they are {name_of(model.dtype)}: an update much smaller than its weight is lost in rounding. "
            "Set model.dtype=float32; train.bf16=true still multiplies in bfloat16."
        )
    if need > have:
        warnings.append(
            "The memory estimate exceeds what is free. Lower train.per_device_train_batch_size or model.max_sequence_len, "
            "set train.gradient_checkpointing=true, or load the model in 4 bits."
        )
    if steps == 0:
        warnings.append("There are no steps to take. Check train.max_steps and train.num_train_epochs.")
    return PreflightView(items, warnings)


def positions(config):
    """How many positions a model was made for, its scaling of rotary ones included; None where its configuration is silent."""
    text = config.get_text_config()
    most, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    scaled = [
        int(one["factor"] * (one.get("original_max_position_embeddings") or most))
        for one in (rope, *rope.values())  # some models have one for each kind of layer
        if isinstance(one, dict) and one.get("factor") and most
    ]
    return max([most, *scaled]) if most else None


def total_steps(trainer):
    """Optimizer steps of the whole run."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = len(trainer.get_train_dataloader())
    return math.ceil(max(math.ceil(batches / args.gradient_accumulation_steps), 1) * args.num_train_epochs)


def padding(trainer):
    """What of the first epoch's batches is padding.

    Read off the sampler that the trainer will use, in the order that it will draw, and the rows' lengths.

    Returns:
        ((share, note), warnings): texts for the preflight.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from ragfit.training.resume import random_state, set_random_state

    args = trainer.args
    lengths = [sum(pair) for pair in trainer.prepared.report.train.lengths]
    state = random_state()
    try:
        batches = list(trainer.get_train_dataloader().batch_sampler)
    finally:
        set_random_state(state)  # a look changes nothing
    multiple = args.pad_to_multiple_of or 1
    share = padded_share(batches, lengths, multiple)
    strategy = args.train_sampling_strategy
    rows = max(map(len, batches), default=0)
    note = f"of the positions in batches of {rows:,} row{'s' * (rows != 1)}, first epoch"
    if strategy in GROUPED:
        return (f"{share:.1%}", f"{note}; rows of similar length share a batch"), []
    grouped = LengthGroupedSampler(
        rows * args.gradient_accumulation_steps, lengths=lengths, generator=torch.Generator().manual_seed(0)
    )
    order = list(grouped)
    least = padded_share([order[i : i + rows] for i in range(0, len(order), rows)], lengths, multiple)
    if share <= LARGE_SHARE or least > share / 2:
        return (f"{share:.1%}", note), []
    return (f"{share:.1%}", note), [
        f"{share:.0%} of what is computed is padding, because rows of different lengths share batches. "
        f"Set train.group_by_length=true: about {least:.0%} would be."
    ]


def padded_share(batches, lengths, multiple=1):
    """The share of positions that are padding.

    Args:
        batches: lists of row indices.
        lengths: tokens of each row.
        multiple: what a batch's length is rounded up to a multiple of.
    """
    real = all_positions = 0
    for batch in batches:
        batch = [lengths[i] for i in batch]
        real += sum(batch)
        all_positions += -(-max(batch) // multiple) * multiple * len(batch)
    return 1 - real / all_positions if all_positions else 0.0


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
