"""What a model answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.load import resolved
from ragfit.draw.progress import progress_bar
from ragfit.evaluation.losses import inference

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import SFTTrainer

    from ragfit.data.report import Prepared

Answer = tuple[str, bool]  # its text without special tokens, and whether `max_new_tokens` ended it


def longest_answer(prepared: "Prepared", part: str) -> int:
    """How many tokens an answer may have: twice the longest completion, at least 48, and beyond 256 only what that has.

    A base model answers at length, and the answer to find in it may come late.
    """
    longest = max(completion for _, completion in prepared.report.part(part).lengths)
    return max(longest, min(256, max(48, 2 * longest)))


def answer_settings(trainer: "SFTTrainer", part: str, max_new_tokens: int | None = None) -> dict[str, Any]:
    """What a run's answers are generated with: `model.generation`, and the longest answer where that names none."""
    settings = resolved(trainer.cfg, "model").get("generation") or {}
    longest = max_new_tokens or settings.get("max_new_tokens") or longest_answer(trainer.prepared, part)
    return settings | {"max_new_tokens": longest}


@explained("Generating answers", LESS_TO_EVALUATE)
def generate(
    model: "PreTrainedModel | PeftModel",
    prepared: "Prepared",
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    batch_size: int = 8,
    doing: str | None = None,
) -> list[Answer]:
    """Continue inference prompts, greedily unless the settings (arguments of `generate`) say otherwise.

    Prompts of similar length are padded on the left and continued together, several times as fast as one by one. In
    16-bit weights padding can change the rounding, and so a word where two were equally likely. `doing` is what a
    progress bar says after two seconds; None for no bar.
    """
    import torch

    tokenizer, encoder = prepared.tokenizer, prepared.encoder
    # The model was trained to end with these, whatever its generation configuration says.
    taught = set(prepared.report.last_ids) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ends = _ids(model.generation_config.eos_token_id) | taught
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    settings = {"pad_token_id": pad, "eos_token_id": sorted(ends) or None, "do_sample": False, **settings}
    settings |= {"num_return_sequences": 1, "return_dict_in_generate": False}
    ends = _ids(settings["eos_token_id"]) | {settings["pad_token_id"]}
    ids = [encoder.bos + list(encoder.spans(prompt)[0]) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    answers: dict[int, Answer] = {}
    bar = progress_bar(total=len(ids), desc=doing, unit="answer", miniters=0, disable=doing is None)

    def alive(new: "torch.Tensor", scores: object, **kwargs: object) -> "torch.Tensor":
        """No criterion to stop, but what `generate` calls at each token: a batch of answers can take minutes."""
        bar.update(0)
        return torch.zeros(len(new), dtype=torch.bool, device=new.device)

    with inference(model), bar:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(ids[batch[0]])
            inputs = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in batch], device=model.device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch], device=model.device)
            how = {"attention_mask": mask, "tokenizer": tokenizer, "stopping_criteria": [alive], **settings}
            output = model.generate(input_ids=inputs, **how)
            for i, new in zip(batch, output[:, width:].tolist(), strict=True):
                text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
                answers[i] = text, len(new) >= settings["max_new_tokens"] and not ends & set(new)
            bar.update(len(batch))
    return [answers[i] for i in range(len(ids))]


def _ids(value: int | list[int] | None) -> set[int]:
    """The token ids of a setting that takes one id, several or none."""
    return set() if value is None else {value} if isinstance(value, int) else set(value)
