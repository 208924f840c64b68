"""With a model: what each token of a completion costs the base model and the tuned one."""

import inspect

from ragfit.data.mask import IGNORE_INDEX


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
    from ragfit.evaluation.generate import inference

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
