"""A last look before the GPU hours: device, parameters, rows, steps and memory."""

import math


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
    items = [
        ("device", device_name(args), precision(args, model)),
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
        ("memory", f"about {need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB free", parts),
        ("output", str(args.output_dir), "adapter, tokenizer, configuration and instruction in checkpoint/"),
    ]
    warnings = [str(finding) for finding in report.findings if finding.severity == "warning"]
    if need > have:
        warnings.append(
            "The memory estimate exceeds what is free. Lower train.per_device_train_batch_size or model.max_sequence_len, "
            "set train.gradient_checkpointing=true, or load the model in 4 bits."
        )
    if steps == 0:
        warnings.append("There are no steps to take. Check train.max_steps and train.num_train_epochs.")
    return PreflightView(items, warnings)


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
    width = 2 if args.bf16 or args.fp16 or str(model.dtype) in ("torch.bfloat16", "torch.float16") else 4
    longest = max(sum(pair) for pair in report.train.lengths)
    tokens = longest * args.per_device_train_batch_size
    layer = tokens * (16 * hidden + 3 * inner) * width
    activations = layer + tokens * hidden * width * layers if args.gradient_checkpointing else layer * layers
    with_loss = max(pair[1] for pair in report.train.lengths) * args.per_device_train_batch_size
    # TRL projects only positions with loss on CUDA; on a CPU it projects all of them, in float32, with a gradient.
    projected = with_loss if args.device.type == "cuda" else tokens
    logits = projected * config.vocab_size * 4 * 2
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
    return f"{args.device.type.upper()}, {torch.get_num_threads()} threads"


def precision(args, model):
    """The types that weights and products have."""
    compute = "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "no autocast"
    loaded = "8-bit" if getattr(model, "is_loaded_in_8bit", False) else "4-bit" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    checkpointing = "with" if args.gradient_checkpointing else "without"
    return f"{loaded} weights, {compute}, {checkpointing} activation checkpointing"
