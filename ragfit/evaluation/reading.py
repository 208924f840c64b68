"""What a row's answer costs a model under other documents: the one measurement that all of grounding is made of."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.data.mask import Masked
from ragfit.data.words import CITATION
from ragfit.evaluation.losses import inference, losses_at

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel
    from trl import SFTTrainer

Text = tuple[str, str]  # prompt and answer


@dataclass(frozen=True)
class Reading:
    """A row's tokens with loss under one set of documents: their texts, their losses in nats, and what each is.

    `kinds` are "answer", "citation" (such as `[2]`) and "end" (of the turn).
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
    """
    prepared, readings = trainer.prepared, []
    rendered = [prepared.renderer.render(query, output) for query, output in texts]
    masked = prepared.encoder.encode(rendered)
    for text, row, losses in zip(rendered, masked, completion_losses(trainer, masked), strict=True):
        spans = prepared.encoder.spans(text.text)[1]
        ahead = len(row.input_ids) - len(spans)  # BOS that is put before the text's own tokens
        cited = [match.span() for match in CITATION.finditer(text.text, *text.output)]
        kinds = [
            "end" if left >= text.output[1]
            else "citation" if any(left < end and right > start for start, end in cited)
            else "answer"
            for left, right in spans[row.start - ahead : row.end - ahead]
        ]  # fmt: skip
        tokens = [prepared.tokenizer.decode([token]) for token in row.input_ids[row.start : row.end]]
        readings.append(Reading(tuple(tokens), tuple(losses), tuple(kinds)))
    return readings


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
    where the longest text has so many tokens that they do.
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
