"""What a row's answer costs a model under other documents: the one measurement that all of grounding is made of."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ragfit.data.mask import Masked
from ragfit.data.words import CITATION
from ragfit.evaluation.losses import losses_at

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel
    from trl import SFTTrainer

Text = tuple[str, str]  # prompt and answer


class Reading(NamedTuple):
    """The losses, in nats, of a row's tokens with loss under one set of documents; their number stays the same.

    `answer` has (text, loss) of those that are neither of a citation such as `[2]` nor the end of the turn.
    """

    losses: list[float]
    answer: list[tuple[str, float]]


def read(trainer: "SFTTrainer", texts: Sequence[Text]) -> list[Reading]:
    """What an answer costs the model as it is now, under each of several prompts of one row.

    The texts go through the renderer and the encoder that made the trainer's rows.
    """
    prepared = trainer.prepared
    rendered = [prepared.renderer.render(query, output) for query, output in texts]
    masked = prepared.encoder.encode(rendered)
    readings = []
    for text, row, losses in zip(rendered, masked, completion_losses(trainer, masked), strict=True):
        _, spans = prepared.encoder.spans(text.text)
        spans = spans[row.start - len(row.input_ids) :]  # from the end, as BOS may be put before the text's own tokens
        cited = [match.span() for match in CITATION.finditer(text.text, *text.output)]
        tokens = zip(row.input_ids[row.start : row.end], losses, spans, strict=False)
        answer = [
            (prepared.tokenizer.decode([token]), loss)
            for token, loss, (left, right) in tokens
            if left < text.output[1] and not any(left < end and right > start for start, end in cited)
        ]
        readings.append(Reading(losses, answer))
    return readings


def completion_losses(trainer: "SFTTrainer", rows: Sequence[Masked]) -> list[list[float]]:
    """The loss of each token with loss, in nats, for texts that may begin alike.

    They are read in the order of their ids, so that each begins as the one before it for as long as any of them does;
    of that beginning the cache still holds what it made.
    """
    found, held = {}, []
    cache = _cache_to_read_on_from(trainer.model, max(row.end for row in rows))
    for number in sorted(range(len(rows)), key=lambda number: rows[number].input_ids):
        row, inputs, kept = rows[number], {}, 0
        ids = row.input_ids[: row.end]
        if cache is not None:
            # The token before the completion is read again: it predicts the first one that has loss.
            kept = min(len(os.path.commonprefix([held, ids])), row.start - 1)
            cache.crop(kept - len(held))
            inputs, held = {"cache": cache, "use_cache": True}, ids
        found[number] = losses_at(trainer, ids[kept:], range(row.start - kept, row.end - kept), **inputs)
    return [found[number] for number in range(len(rows))]


def _cache_to_read_on_from(model: "PreTrainedModel", longest: int) -> "DynamicCache | None":
    """An empty cache, where what it holds is the same whatever follows, in texts of up to so many tokens.

    None for sliding windows and state spaces, which forget, and for rotary embeddings that change with a text's length.
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
