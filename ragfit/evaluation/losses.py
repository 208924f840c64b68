"""What each token of a completion costs a model, in nats: of one row, and of the whole dev set."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.data.mask import IGNORE_INDEX
from ragfit.draw.progress import progress_bar
from ragfit.models.load import forward_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import SFTTrainer

Losses = list[float | None]  # one for each token of a row, in nats; None where the token has no loss


@explained("The dev loss", LESS_TO_EVALUATE)
def dev_loss(trainer: "SFTTrainer", model: str = "the model") -> float | None:
    """The loss of all completion tokens of the dev set by their number, in nats; None where there is no dev set.

    Each row is read by itself, so the figure is the same at any batch size, and in every process. `model` is what the
    trainer's model is at present, for the progress bar.
    """
    rows, first = trainer.prepared.dev, trainer.is_world_process_zero()
    if rows is None:
        return None
    with inference(trainer.model):
        bar = progress_bar(rows, desc=f"dev loss of {model}", unit="row", disable=not first)
        losses = [loss for row in bar for loss in label_losses(trainer, row) if loss is not None]
    return math.fsum(losses) / len(losses)


def token_losses(trainer: "SFTTrainer", index: int = 0, part: str = "train") -> dict[str, Losses]:
    """The loss of each completion token of a prepared row, for `TokenView(…, losses=…)`.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".

    Returns:
        The losses under "base" (the adapter disabled) and "tuned", under "base" alone where both are the same, or under
        "model" where there is no adapter.
    """
    from peft import PeftModel

    row, model = trainer.prepared.at(index, part), trainer.model
    with inference(model):
        tuned = label_losses(trainer, row)
        if not isinstance(model, PeftModel):
            return {"model": tuned}
        with model.disable_adapter():
            base = label_losses(trainer, row)
    return {"base": base} if base == tuned else {"base": base, "tuned": tuned}


def label_losses(trainer: "SFTTrainer", row: Mapping[str, Sequence[int]]) -> Losses:
    """The loss of each label of a row with `input_ids` and `labels`, from one forward pass."""
    # The token at a position is predicted from the position before it; the first one is not predicted at all.
    wanted = {n: label for n, label in enumerate(row["labels"]) if n and label != IGNORE_INDEX}
    losses = losses_at(trainer, row["input_ids"], [n - 1 for n in wanted], list(wanted.values()))
    found = dict(zip(wanted, losses, strict=True))
    return [found.get(n) for n in range(len(row["labels"]))]


def losses_at(
    trainer: "SFTTrainer", ids: Sequence[int], places: Sequence[int], wanted: Sequence[int], **inputs: Any
) -> list[float]:
    """The cross-entropy, in nats, of the `wanted` ids, each predicted at its place in one text of ids.

    It is as precise as the trainer's own passes. The LM head, which over long prompts would take gigabytes, is applied
    at the places alone. `inputs` are further arguments of the model.
    """
    import torch

    model = trainer.model
    few = "logits_to_keep" in forward_arguments(model)
    if few:
        inputs["logits_to_keep"] = torch.tensor(places)  # on the CPU, as a spread model's last layer is on another GPU
    with trainer.compute_loss_context_manager():
        logits = model(input_ids=torch.tensor([ids], device=model.device), **{"use_cache": False, **inputs}).logits[0]
    logits = logits if few else logits[places]
    wanted = torch.tensor(wanted, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist()


@contextlib.contextmanager
def inference(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Evaluation mode with the cache on, and back."""
    import torch

    training, cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with torch.inference_mode():
            yield
    finally:
        model.config.use_cache = cache
        model.train(training)
