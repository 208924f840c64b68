"""What a row's answer costs a model under other documents: the one measurement that all of grounding is made of."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ragfit.data.mask import IGNORE_INDEX, Masked
from ragfit.data.prompt import Rendered
from ragfit.data.words import CITATION
from ragfit.evaluation.generate import inference
from ragfit.evaluation.losses import losses_at
from ragfit.models.load import forward_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel
    from trl import SFTTrainer

    from ragfit.data.report import Prepared

TOGETHER = 512  # tokens that are read on in one forward pass, several texts or one longer one


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
        texts: `(query, output)` of each variant; those that begin as the first one does are read faster.

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

    places = learned(masked)
    return Reading(
        tuple(prepared.tokenizer.decode([masked.input_ids[place]]) for place in places),
        tuple(losses),
        tuple(kind(*spans[place - ahead]) for place in places),
    )


def learned(row: Masked) -> list[int]:
    """The positions of a row's tokens with loss."""
    return [place for place, label in enumerate(row.labels()) if label != IGNORE_INDEX]


def completion_losses(trainer: "SFTTrainer", rows: Sequence[Masked]) -> list[list[float]]:
    """The loss of each token with loss, in nats, for texts that may begin alike.

    The first text is read whole; of the others only what follows their beginning in common with it, several in one
    forward pass, in which each sees that beginning and itself alone. Where the model does not allow that
    (`_cache_to_read_on_from`), each text is read by itself.

    Returns:
        For each row a value for each place of `learned`.
    """
    first, *others = rows
    places = {id(row): learned(row) for row in rows}
    ends = {id(row): places[id(row)][-1] + 1 for row in rows}  # what follows the last token with loss is not read
    with inference(trainer.model):
        cache = _cache_to_read_on_from(trainer.model, max(ends.values()))

        def go_on(rows: Sequence[Masked], kept: Sequence[int]) -> list[list[float]]:
            texts = [(row.input_ids[: ends[id(row)]], places[id(row)]) for row in rows]
            return _read_on(trainer, texts, kept, cache)

        found = go_on([first], [0])
        if cache is None:
            return found + [losses for row in others for losses in go_on([row], [0])]
        held = first.input_ids[: ends[id(first)]]
        # The token before the completion is read again: it predicts the first one that has loss.
        kept = [min(len(os.path.commonprefix([held, row.input_ids])), places[id(row)][0] - 1) for row in others]
        while others:
            tokens = list(accumulate(ends[id(row)] - there for row, there in zip(others, kept, strict=True)))
            fit = max(1, bisect_right(tokens, TOGETHER))
            found += go_on(others[:fit], kept[:fit])
            cache.crop(-tokens[fit - 1])
            others, kept = others[fit:], kept[fit:]
    return found


def _read_on(
    trainer: "SFTTrainer",
    texts: Sequence[tuple[list[int], list[int]]],
    kept: Sequence[int],
    cache: "DynamicCache | None",
) -> list[list[float]]:
    """The losses of texts in one forward pass, each read on from its first `kept` tokens, which the cache holds.

    Args:
        texts: the ids of each text, and its places with loss.
    """
    import torch

    model, held = trainer.model, cache.get_seq_length() if cache is not None else 0
    ids, positions, before, spans = [], [], [], []
    for (text, places), there in zip(texts, kept, strict=True):
        left = len(ids)
        ids += text[there:]
        positions += range(there, len(text))
        before += [left + place - 1 - there for place in places]  # the token at a place is predicted before it
        spans.append((left, len(ids), there))
    inputs = {} if cache is None else {"cache": cache, "use_cache": True}
    if held:
        seen = torch.zeros(len(ids), held + len(ids), dtype=torch.bool)
        for left, right, there in spans:
            seen[left:right, :there] = True
            seen[left:right, held + left : held + right] = torch.ones(right - left, right - left).tril()
        hidden = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
        inputs["attention_mask"] = hidden[None, None].to(model.device)
        inputs["position_ids"] = torch.tensor([positions], device=model.device)
    wanted = [text[place] for text, places in texts for place in places]
    losses = iter(losses_at(trainer, ids, before, wanted, **inputs))
    return [[next(losses) for _ in places] for _, places in texts]


def _cache_to_read_on_from(model: "PreTrainedModel | PeftModel", longest: int) -> "DynamicCache | None":
    """An empty cache, where what it holds is the same whatever follows, and several texts can follow it at once.

    None for sliding windows and state spaces, which forget; for rotary embeddings that change with a text's length, in
    texts for which they do; and for attention that knows no masks or places of one's own (flash attention, ALiBi).

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
    masks = model.config._attn_implementation in ("sdpa", "eager")  # there is no public name for it
    if not masks or "position_ids" not in forward_arguments(model) or getattr(config, "alibi", False):
        return None
    cache = DynamicCache(config=model.config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None
