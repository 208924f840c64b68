"""A last look before the GPU hours: device, parameters, rows, steps and memory."""

import math

HALVES = ("torch.bfloat16", "torch.float16")
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
        ("device", device_name(args), f"{'with' if args.gradient_checkpointing else 'without'} activation checkpointing"),
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
    longest, made_for = max(sum(pair) for part in (report.train, report.dev) for pair in part.lengths), positions(model.config)
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


def parameters(model):
    """(all, trainable) parameters; a 4-bit weight holds two of them in a byte."""
    total = trainable = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count = math.prod(parameter.quant_state.shape) if parameter.quant_state is not None else count * 2
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def total_steps(trainer):
    """Optimizer steps of the whole run."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = len(trainer.get_train_dataloader())
    return math.ceil(max(math.ceil(batches / args.gradient_accumulation_steps), 1) * args.num_train_epochs)


def memory_estimate(trainer):
    """(bytes, explanation): weights as loaded, the trained parameters' gradients and optimizer state, activations.

    Activations are for the longest row: without checkpointing about 16 values of the hidden size and 3 of the MLP's
    per layer and token (Korthikanti et al., https://arxiv.org/abs/2205.05198, with attention that keeps no scores);
    with it, one value of the hidden size per layer and token and one layer whole. An estimate, to a factor of two.
    """
    model, args, report = trainer.model, trainer.args, trainer.prepared.report
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = 2 if "8bit" in args.optim.value else 8
    update = sum(parameter.numel() * (parameter.element_size() + state) for parameter in trained)
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = 2 if args.bf16 or args.fp16 or str(model.dtype) in HALVES else 4
    longest = max(sum(pair) for pair in report.train.lengths)
    tokens = longest * args.per_device_train_batch_size
    layer = tokens * (16 * hidden + 3 * inner) * width
    activations = layer + tokens * hidden * width * layers if args.gradient_checkpointing else layer * layers
    with_loss = max(pair[1] for pair in report.train.lengths) * args.per_device_train_batch_size
    projected = with_loss if getattr(trainer, "labelled_head", args.device.type == "cuda") else tokens
    # TRL projects tiles of at most 4,096 positions and 32,768 ids of the vocabulary, and holds about three of them.
    logits = min(projected, 4096) * min(config.vocab_size, 32768) * 4 * 3
    explanation = ", ".join(
        f"{name} {size / 2**30:.1f}"
        for name, size in (("weights", weights), ("updates", update), ("activations", activations), ("logits", logits))
    )
    return weights + update + activations + logits, f"estimate in GiB: {explanation}; longest row {longest:,} tokens"


def free_memory(device):
    """Bytes that this process can still take, what it already holds included."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def device_name(args):
    """The device by name."""
    import torch

    if args.device.type == "cuda":
        more = torch.cuda.device_count() - 1
        return torch.cuda.get_device_name(args.device) + (f" ({more} more not used by this process)" if more > 0 else "")
    threads = torch.get_num_threads()
    return f"{args.device.type.upper()}, {threads} thread{'s' * (threads != 1)}"


def precision(trainer):
    """(the type that products are computed in, why it is that one and the types of weights)."""
    from ragfit.models.hf import bf16_is_fast

    args, model, given = trainer.args, trainer.model, trainer.cfg.train
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    machine = "GPU" if args.device.type == "cuda" else "processor"
    if given.get("bf16") is not None:
        why = f"train.bf16 is {str(given.bf16).lower()}"
        if not (args.bf16 or args.fp16) and bf16_is_fast():
            why += f", though this {machine} multiplies bfloat16 in hardware"
    elif args.bf16:
        why = f"chosen because this {machine} multiplies bfloat16 in hardware and train.bf16 is empty"
    elif args.fp16:
        why = "train.fp16 is true"
    else:
        why = f"chosen because this {machine} does not multiply bfloat16 in hardware and train.bf16 is empty"
    quantized = "8-bit" if getattr(model, "is_loaded_in_8bit", False) else "4-bit" if getattr(model, "is_loaded_in_4bit", False) else ""
    weights = f"{quantized or name_of(model.dtype)} weights"
    if hasattr(model, "peft_config"):
        adapter = {name_of(parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
        weights += f", {' and '.join(sorted(adapter))} adapter"
    return compute, f"{why}; {weights}"


def name_of(dtype):
    """A torch type's name: `float32`."""
    return str(dtype).removeprefix("torch.")


def padding(trainer):
    """What of the first epoch's batches is padding.

    Read off the sampler that the trainer will use, in the order that it will draw, and the rows' lengths.

    Returns:
        ((share, note), warnings): texts for the preflight.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from ragfit.resumable import random_state, set_random_state

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
    grouped = LengthGroupedSampler(rows * args.gradient_accumulation_steps, lengths=lengths, generator=torch.Generator().manual_seed(0))
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
