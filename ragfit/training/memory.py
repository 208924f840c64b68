"""The memory that a run needs, and that there is."""

import math

HALVES = ("torch.bfloat16", "torch.float16")


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
        return torch.cuda.get_device_name(args.device) + (
            f" ({more} more not used by this process)" if more > 0 else ""
        )
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
    quantized = (
        "8-bit"
        if getattr(model, "is_loaded_in_8bit", False)
        else "4-bit"
        if getattr(model, "is_loaded_in_4bit", False)
        else ""
    )
    weights = f"{quantized or name_of(model.dtype)} weights"
    if hasattr(model, "peft_config"):
        adapter = {name_of(parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
        weights += f", {' and '.join(sorted(adapter))} adapter"
    return compute, f"{why}; {weights}"


def name_of(dtype):
    """A torch type's name: `float32`."""
    return str(dtype).removeprefix("torch.")
