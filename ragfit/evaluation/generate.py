"""What a model answers, and its dev loss."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import SFTTrainer

    from ragfit.data.report import Prepared


Answer = tuple[str, bool]  # its text, and whether it was cut


@explained("The dev loss", LESS_TO_EVALUATE)
def dev_loss(trainer: "SFTTrainer") -> float | None:
    """The mean loss per completion token on the dev set in nats, as Trainer reports it, without logging it.

    None where there is no dev set.
    """
    if trainer.prepared.dev is None:
        return None
    training = trainer.model.training
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "dev loss", prediction_loss_only=True)
    trainer.model.train(training)
    return loop.metrics["eval_loss"]


def longest_answer(prepared: "Prepared", part: str = "dev") -> int:
    """How many tokens an answer may have: twice the longest completion, at least 48, and beyond 256 only what that has.

    A base model answers at length, and the answer to find in it may come late.
    """
    longest = max(completion for _, completion in prepared.report.part(part).lengths)
    return max(longest, min(256, max(48, 2 * longest)))


def answer_settings(trainer: "SFTTrainer", part: str, max_new_tokens: int | None = None) -> dict[str, Any]:
    """What a run's answers are generated with: `model.generation`, and the longest answer where that names none."""
    from omegaconf import OmegaConf

    # transformers asks for plain lists and dicts.
    settings = OmegaConf.to_container(trainer.cfg.model, resolve=True).get("generation") or {}
    longest = max_new_tokens or settings.get("max_new_tokens") or longest_answer(trainer.prepared, part)
    return settings | {"max_new_tokens": longest}


@explained("Generating answers", LESS_TO_EVALUATE)
def generate(
    model: "PreTrainedModel | PeftModel",
    prepared: "Prepared",
    prompts: Sequence[str],
    max_new_tokens: int,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    keep: Callable[[dict[int, Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """Continue prompts, greedily unless the settings say otherwise.

    Prompts of similar length are padded on the left and continued together, several times as fast as one by one. In
    16-bit weights padding can change the rounding, and so a word where two were equally likely.

    Args:
        prompts: inference prompts as text, as `prepared.rendered(…).prompt`.
        settings: keyword arguments of `generate` that go before the greedy default, as plain lists and dicts.
        batch_size: how many to continue together.
        keep: is given the answers of each batch as soon as they are there, by the number of their prompt.

    Returns:
        For each prompt `(answer, cut)`: text without special tokens, and whether `max_new_tokens` ended it.
    """
    import torch

    tokenizer, encoder = prepared.tokenizer, prepared.encoder
    ends = _ids(model.generation_config.eos_token_id)
    # The model was trained to end with these, whatever its generation configuration says.
    ends |= set(prepared.report.last_ids) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    defaults = {"pad_token_id": pad, "eos_token_id": sorted(ends) or None, "do_sample": False}
    settings = {**defaults, "max_new_tokens": max_new_tokens, **(settings or {})}
    settings |= {"num_return_sequences": 1, "return_dict_in_generate": False}
    ends = _ids(settings["eos_token_id"]) | {settings["pad_token_id"]}
    ids = [encoder.bos + list(encoder.spans(prompt)[0]) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    answers: dict[int, Answer] = {}
    with inference(model):
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(ids[batch[0]])
            padding = [width - len(ids[i]) for i in batch]
            inputs = torch.tensor([[pad] * left + ids[i] for i, left in zip(batch, padding, strict=True)])
            mask = torch.tensor([[0] * left + [1] * (width - left) for left in padding])
            output = model.generate(
                input_ids=inputs.to(model.device), attention_mask=mask.to(model.device), tokenizer=tokenizer, **settings
            )
            given = {}
            for i, new in zip(batch, output[:, width:].tolist(), strict=True):
                text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
                given[i] = text, len(new) >= settings["max_new_tokens"] and not ends & set(new)
            answers |= given
            keep(given)
    return [answers[i] for i in range(len(ids))]


def _ids(value: int | list[int] | None) -> set[int]:
    """The token ids of a setting that takes one id, several or none."""
    return set() if value is None else set(value) if isinstance(value, list | tuple) else {value}


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
