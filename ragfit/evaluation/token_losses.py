"""With a model: what each token of a completion costs the base model and the tuned one."""

from typing import TYPE_CHECKING

from ragfit.data.mask import IGNORE_INDEX
from ragfit.models.load import forward_arguments

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import SFTTrainer

Losses = list[float | None]  # one for each token of a row, in nats; None where the token has no loss


def token_losses(trainer: "SFTTrainer", index: int = 0, part: str = "train") -> dict[str, Losses]:
    """The loss of each completion token of a prepared row, for `TokenView(…, losses=…)`.

    The row goes through the trainer's own collator and the model in evaluation mode, so the mean of the values is the
    loss that the trainer reports for the row.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".

    Returns:
        The losses under "base" (the adapter disabled) and "tuned", under "base" alone where both are the same, or under
        "model" where there is no adapter.
    """
    from peft import PeftModel

    from ragfit.evaluation.generate import inference

    model = trainer.model
    batch = trainer.data_collator([trainer.prepared.at(index, part)])
    with inference(model), trainer.compute_loss_context_manager():
        [tuned] = label_losses(model, batch)
        if not isinstance(model, PeftModel):
            return {"model": tuned}
        with model.disable_adapter():
            [base] = label_losses(model, batch)
    return {"base": base} if base == tuned else {"base": base, "tuned": tuned}


def label_losses(model: "PreTrainedModel | PeftModel", batch: dict[str, "torch.Tensor"]) -> list[Losses]:
    """The loss of each label in a batch of rows, from one forward pass.

    The LM head, which over long prompts would take gigabytes, is applied only where one of the rows has a label.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, each of shape (rows, tokens).
    """
    import torch

    labels = batch["labels"]
    # The token at a position is predicted from the position before it; the first one is not predicted at all.
    places = (labels[:, 1:] != IGNORE_INDEX).any(0).nonzero().flatten()
    # An index may stay on the CPU, and must not be on another GPU than a spread model's last layer.
    keep = {"logits_to_keep": places} if "logits_to_keep" in forward_arguments(model) else {}
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False, **keep).logits
    if logits.shape[1] != len(places):
        logits = logits[:, places]
    wanted = labels[:, places + 1].to(logits.device)
    costs = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), wanted, ignore_index=IGNORE_INDEX, reduction="none"
    ).tolist()
    places, losses = places.tolist(), [[None] * labels.shape[1] for _ in labels]
    for row, column in (wanted != IGNORE_INDEX).nonzero().tolist():
        losses[row][places[column] + 1] = costs[row][column]
    return losses
