"""What a row's answer costs a model under other documents: the one measurement that all of grounding is made of."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.data.mask import Masked
from ragfit.data.prompt import Rendered
from ragfit.data.words import CITATION
from ragfit.evaluation.losses import inference, losses_at

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel
    from trl import SFTTrainer

    from ragfit.data.report import Prepared

Text = tuple[str, str]  # prompt and answer


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

    def answer(self) -> list[tuple[str, float]]:
        """(text, loss) of the answer's tokens. How many they are does not change with the documents."""
        every = zip(self.tokens, self.losses, self.kinds, strict=True)
        return [(text, loss) for text, loss, kind in every if kind == "answer"]


def read(trainer: "SFTTrainer", texts: Sequence[Text]) -> list[Reading]:
    """What an answer costs the model as it is now, under each of several prompts of one row.

    The texts go through the renderer and the encoder that made the trainer's rows.

    Raises:
        PromptError: a text that cannot be rendered.
    """
    prepared = trainer.prepared
    rendered = [prepared.renderer.render(query, output) for query, output in texts]
    masked = prepared.encoder.encode(rendered)
    losses = completion_losses(trainer, masked)
    return [_reading(prepared, *one) for one in zip(rendered, masked, losses, strict=True)]


def _reading(prepared: "Prepared", rendered: Rendered, masked: Masked, losses: list[float]) -> Reading:
    _, spans = prepared.encoder.spans(rendered.text)
    ahead = len(masked.input_ids) - len(spans)  # BOS that is put before the text's own tokens
    cited = [match.span() for match in CITATION.finditer(rendered.text, *rendered.output)]

    def kind(left: int, right: int) -> str:
        if left >= rendered.output[1]:
            return "end"
        return "citation" if any(left < end and right > start for start, end in cited) else "answer"

    tokens = tuple(prepared.tokenizer.decode([token]) for token in masked.input_ids[masked.start : masked.end])
    kinds = tuple(kind(*span) for span in spans[masked.start - ahead : masked.end - ahead])
    return Reading(tokens, tuple(losses), kinds)


def completion_losses(trainer: "SFTTrainer", rows: Sequence[Masked]) -> list[list[float]]:
    """The loss of each token with loss, in nats, for texts that may begin alike.

    They are read in the order of their ids, so that each begins as the one before it for as long as any of them does;
    of that beginning the cache still holds what it made (`_cache_to_read_on_from`).
    """
    found: dict[int, list[float]] = {}
    with inference(trainer.model):
        cache = _cache_to_read_on_from(trainer.model, max(row.end for row in rows))
        held: list[int] = []
        for number in sorted(range(len(rows)), key=lambda number: rows[number].input_ids):
            row, inputs, kept = rows[number], {}, 0
            ids = row.input_ids[: row.end]
            if cache is not None:
                # The token before the completion is read again: it predicts the first one that has loss.
                kept = min(len(os.path.commonprefix([held, ids])), row.start - 1)
                cache.crop(kept - len(held))
                inputs, held = {"cache": cache, "use_cache": True}, ids
            before = [place - 1 - kept for place in range(row.start, row.end)]
            found[number] = losses_at(trainer, ids[kept:], before, ids[row.start :], **inputs)
    return [found[number] for number in range(len(rows))]


def _cache_to_read_on_from(model: "PreTrainedModel | PeftModel", longest: int) -> "DynamicCache | None":
    """An empty cache, where what it holds is the same whatever follows.

    None for sliding windows and state spaces, which forget, and for rotary embeddings that change with a text's length,
    in texts for which they do.

    Args:
        longest: tokens of the longest text.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    changes = any(kind in str(rope) for kind in ("longrope", "dynamic"))  # of all layers, or of each kind of layers
    if changes and longest > rope.get("original_max_position_embeddings", config.max_position_embeddings):
        return None
    cache = DynamicCache(config=model.config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None
