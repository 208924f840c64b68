"""What a row's answer costs a model under other documents: the one measurement that all of grounding is made of."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ragfit.data.documents import CITATION
from ragfit.data.mask import Masked
from ragfit.data.prompt import Rendered
from ragfit.evaluation.generate import inference

if TYPE_CHECKING:
    from trl import SFTTrainer

FEWEST = 16  # tokens in common with the text before it, from which on a text is worth reading on from there


@dataclass(frozen=True)
class Reading:
    """The loss of a row's answer under one set of documents.

    Attributes:
        tokens: the text of each token with loss.
        losses: what each of them costs, in nats.
        kinds: what each belongs to: "answer", "citation" (such as `[2]`), or "end" (of the turn).
    """

    tokens: tuple[str, ...]
    losses: tuple[float, ...]
    kinds: tuple[str, ...]

    def of(self, kind: str) -> tuple[float, ...]:
        """The losses of one kind of tokens, in nats. How many are of the answer does not change with the documents."""
        return tuple(loss for loss, one in zip(self.losses, self.kinds, strict=True) if one == kind)


def read(trainer: "SFTTrainer", texts: Sequence[tuple[str, str]]) -> list[Reading]:
    """What an answer costs the model as it is now, under each of several prompts of one row.

    The texts go through the renderer and the encoder that made the trainer's rows.

    Args:
        texts: `(query, output)` of each variant; those that begin alike are read faster.

    Raises:
        PromptError: a text that cannot be rendered.
    """
    prepared = trainer.prepared
    rendered = [prepared.renderer.render(query, output) for query, output in texts]
    masked = prepared.encoder.encode(rendered)
    losses = completion_losses(trainer, masked)
    return [_reading(trainer, *one) for one in zip(rendered, masked, losses, strict=True)]


def _reading(trainer: "SFTTrainer", rendered: Rendered, masked: Masked, losses: list[float]) -> Reading:
    prepared = trainer.prepared
    learned = range(masked.start, masked.end)
    tokens = tuple(prepared.tokenizer.decode([masked.input_ids[place]]) for place in learned)
    _, spans = prepared.encoder.spans(rendered.text)
    if spans is None:  # a tokenizer that does not say which characters a token has
        return Reading(tokens, tuple(losses), ("answer",) * len(tokens))
    ahead = len(masked.input_ids) - len(spans)  # BOS that is put before the text's own tokens
    cited = [match.span() for match in CITATION.finditer(rendered.text, *rendered.output)]

    def kind(left: int, right: int) -> str:
        if left >= rendered.output[1]:
            return "end"
        return "citation" if any(left < end and right > start for start, end in cited) else "answer"

    return Reading(tokens, tuple(losses), tuple(kind(*spans[place - ahead]) for place in learned))


def completion_losses(trainer: "SFTTrainer", rows: Sequence[Masked]) -> list[list[float]]:
    """The loss of each token with loss, in nats, for texts that may begin alike.

    The mean of a row's values is the loss that the trainer reports for it. What a text has in common with the one
    before it is not read again, where the model's cache can be cut there; and the LM head is applied where there are
    labels alone.

    Returns:
        For each row a list of `end - start` values.
    """
    import torch
    from peft import PeftModel

    model, found = trainer.model, [[]] * len(rows)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    takes_places = "logits_to_keep" in inspect.signature(base.forward).parameters
    first = rows[0].input_ids
    order = sorted(range(len(rows)), key=lambda i: (i > 0, -_shared(first, rows[i].input_ids)))
    cache, held = None, []
    with inference(model):
        for i in order:
            row = rows[i]
            ids = row.input_ids[: row.end]
            kept = min(_shared(held, ids), row.start - 1) if cache is not None else 0
            if kept < FEWEST:
                cache, kept = None, 0
            else:
                cache.crop(kept - len(held))
            # The token at a position is predicted from the position before it.
            places = torch.arange(row.start - 1, row.end - 1, device=model.device) - kept
            with trainer.compute_loss_context_manager():
                output = model(
                    input_ids=torch.tensor([ids[kept:]], device=model.device),
                    cache=cache,
                    use_cache=True,
                    **({"logits_to_keep": places} if takes_places else {}),
                )
            logits = output.logits[0] if takes_places else output.logits[0, places]
            wanted = torch.tensor(ids[row.start :], device=logits.device)
            found[i] = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none").tolist()
            cache, held = output.get("cache"), ids
            if not _can_be_cut(cache):
                cache = None
    return found


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _can_be_cut(cache: object) -> bool:
    """Whether a cache holds keys and values of every position, unlike those of sliding windows and state spaces."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
