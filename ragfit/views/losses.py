"""With a model: what each token of a completion costs the base model and the tuned one."""

import inspect
from pathlib import Path

from ragfit.config import find_existing, find_path
from ragfit.errors import ConfigError
from ragfit.masking import IGNORE_INDEX

TUNED = "tuned"  # the name under which a trained adapter is loaded


def token_losses(trainer, index=0, part="train"):
    """The loss of each completion token of a prepared row, for `TokenView(…, losses=…)`.

    The row goes through the trainer's own collator and the model in evaluation mode, so the mean of the values is the
    loss that the trainer reports for the row.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".

    Returns:
        A dict of lists with one entry per token, in nats, None where the token has no loss: "base" (the adapter
        disabled) and "tuned", "base" alone where both are the same, or "model" where there is no adapter.
    """
    from ragfit.answers import inference

    row = getattr(trainer.prepared, part)[index]
    batch = trainer.data_collator([row])
    model = trainer.model
    with inference(model):
        tuned = _losses(trainer, model, batch)
        if not hasattr(model, "disable_adapter"):
            return {"model": tuned}
        with model.disable_adapter():
            base = _losses(trainer, model, batch)
    return {"base": base} if base == tuned else {"base": base, "tuned": tuned}


def _losses(trainer, model, batch):
    import torch

    labels = batch["labels"][0]
    # The token at a position is predicted from the position before it; the first one is not predicted at all.
    places = (labels[1:] != IGNORE_INDEX).nonzero().flatten()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # The LM head over a long prompt would take gigabytes that nobody looks at.
    few = "logits_to_keep" in inspect.signature(inner.forward).parameters
    keep = {"logits_to_keep": places.to(model.device)} if few else {}
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with trainer.compute_loss_context_manager():
        logits = model(**inputs, use_cache=False, **keep).logits[0]
    if len(logits) != len(places):
        logits = logits[places.to(logits.device)]
    wanted = labels[places + 1].to(logits.device)
    costs = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist()
    values = [None] * len(labels)
    for place, cost in zip(places.tolist(), costs, strict=True):
        values[place + 1] = cost
    return values


def load_tuned(trainer, checkpoint=None):
    """Give a trainer's model the adapter of a finished run, to compare it with the base model.

    Args:
        trainer: of `ragfit.build_trainer`.
        checkpoint: the adapter's folder; by default `checkpoint` in `train.output_dir`, if there is one.

    Returns:
        A sentence that says what was done.

    Raises:
        ConfigError: there is no adapter in the folder, or the model takes none.
    """
    from ragfit.models.hf import load_adapter

    folder = find_path(checkpoint, "checkpoint") if checkpoint else _last_run(trainer.cfg)
    if folder is None:
        return "There is no trained adapter yet: these are the losses of the base model. Run train.ipynb, or set checkpoint."
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"checkpoint: {folder} holds no adapter. Name the folder checkpoint of a run's train.output_dir.")
    model = trainer.model
    if not hasattr(model, "load_adapter") or not hasattr(model, "disable_adapter"):
        raise ConfigError(f"checkpoint: {folder} is an adapter, but model.lora is empty. Set model.lora, or leave checkpoint empty.")
    if TUNED in model.peft_config:
        model.set_adapter(next(name for name in model.peft_config if name != TUNED))
        model.delete_adapter(TUNED)
    load_adapter(model, folder, lambda reason: (
        f"checkpoint: the adapter in {folder} does not fit {trainer.cfg.model.model_name_or_path}: {reason}. "
        "Name an adapter of this model."
    ), TUNED)  # fmt: skip
    model.set_adapter(TUNED)
    return f"The tuned model is the base model with the adapter in {folder}."


def _last_run(cfg):
    folder = find_existing(Path(cfg.train.output_dir, "checkpoint"))
    return folder if folder and (folder / "adapter_config.json").is_file() else None
