"""What each token of a completion costs a model, in nats: of one row, and of the whole dev set."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.data.mask import IGNORE_INDEX
from ragfit.draw.progress import progress_bar
from ragfit.models.load import forward_arguments

if TYPE_CHECKING:
    from trl import SFTTrainer

Losses = list[float | None]  # one for each token of a row, in nats; None where the token has no loss


@explained("The dev loss", LESS_TO_EVALUATE)
def dev_loss(trainer: "SFTTrainer", model: str = "the model") -> float | None:
    """The loss of all completion tokens of the dev set by their number, in nats; None where there is no dev set.

    Each row is read by itself, so the figure is the same at any batch size, and in every process. `model` says in the
    progress bar what is measured.
    """
    if (rows := trainer.prepared.dev) is None:
        return None
    bar = progress_bar(rows, desc=f"dev loss of {model}", unit="row", disable=not trainer.is_world_process_zero())
    losses = [loss for row in bar for loss in _row_losses(trainer, row) if loss is not None]
    return math.fsum(losses) / len(losses)


def token_losses(trainer: "SFTTrainer", index: int = 0, part: str = "train") -> dict[str, Losses]:
    """The losses of the tokens of a prepared row of a part ("train" or "dev"), for `TokenView(…, losses=…)`.

    Returns:
        Under "base" (the adapter disabled) and "tuned" a loss in nats for each token, None where it has none; under
        "base" alone where both are the same, or under "model" where there is no adapter.
    """
    from peft import PeftModel

    row, model = trainer.prepared.at(index, part), trainer.model
    tuned = _row_losses(trainer, row)
    if not isinstance(model, PeftModel):
        return {"model": tuned}
    with model.disable_adapter():
        base = _row_losses(trainer, row)
    return {"base": base} if base == tuned else {"base": base, "tuned": tuned}


def _row_losses(trainer: "SFTTrainer", row: dict[str, list[int]]) -> Losses:
    # Nothing predicts a row's first token.
    places = [place for place, label in enumerate(row["labels"]) if place and label != IGNORE_INDEX]
    losses = dict(zip(places, losses_at(trainer, row["input_ids"], places), strict=True))
    return [losses.get(place) for place in range(len(row["labels"]))]


def losses_at(trainer: "SFTTrainer", ids: Sequence[int], places: Sequence[int], **inputs: Any) -> list[float]:
    """The losses of the tokens at these places of a text, in evaluation mode, which a training step leaves again."""
    import torch

    model, before = trainer.model.eval(), torch.tensor(places) - 1  # a token is predicted from the place before it
    # Logits of a whole long prompt would take gigabytes. (The places stay on the CPU: a spread model's head is
    # on another GPU than its first layer.)
    few = {"logits_to_keep": before} if "logits_to_keep" in forward_arguments(model) else {}
    with torch.inference_mode(), trainer.compute_loss_context_manager():  # as precise as the trainer's own passes
        output = model(input_ids=torch.tensor([ids], device=model.device), **{"use_cache": False} | few | inputs)
    logits = output.logits[0] if few else output.logits[0, before]
    wanted = torch.tensor([ids[place] for place in places], device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist()
