"""What a model answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.load import resolved
from ragfit.draw.progress import progress_bar

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer

Answer = tuple[str, bool]  # its text without special tokens, and whether `max_new_tokens` cut it


def answer_settings(trainer: "SFTTrainer", part: str, max_new_tokens: int | None = None) -> dict[str, Any]:
    """What a run's answers are generated with: `model.generation`, and the longest answer where that names none.

    That is twice the longest completion, at least 48, and beyond 256 only what that has: a base model answers at
    length, and the answer to find in it may come late.
    """
    settings = resolved(trainer.cfg, "model").get("generation") or {}
    longest = max(completion for _, completion in trainer.prepared.report.part(part).lengths)
    most = max_new_tokens or settings.get("max_new_tokens") or max(longest, min(256, max(48, 2 * longest)))
    return settings | {"max_new_tokens": most}


@explained("Generating answers", LESS_TO_EVALUATE)
def generate(trainer: "SFTTrainer", prompts: Sequence[str], settings: Mapping[str, Any], name: str) -> list[Answer]:
    """Continue inference prompts with the model as it is now, greedily unless the settings of `generate` say otherwise.

    Prompts of similar length are padded on the left and continued together, several times as fast as one by one. In
    16-bit weights padding can change the rounding, and so a word where two were equally likely. `name` is what a
    progress bar calls the model.
    """
    import torch

    model, prepared = trainer.model.eval(), trainer.prepared
    tokenizer, encoder = prepared.tokenizer, prepared.encoder
    # The model was trained to end with these, whatever its generation configuration says.
    ends = set(prepared.report.last_ids) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ends |= _ids(model.generation_config.eos_token_id)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    settings = {"pad_token_id": pad, "eos_token_id": sorted(ends) or None, "do_sample": False, **settings}
    settings |= {"num_return_sequences": 1, "return_dict_in_generate": False, "use_cache": True, "tokenizer": tokenizer}
    ends = _ids(settings["eos_token_id"]) | {settings["pad_token_id"]}
    ids = [torch.tensor(encoder.bos + list(encoder.spans(prompt)[0])) for prompt in prompts]
    order, size = sorted(range(len(ids)), key=lambda i: -len(ids[i])), trainer.args.per_device_eval_batch_size
    answers: dict[int, Answer] = {}
    quiet = not trainer.is_world_process_zero()

    def padded(rows: list["torch.Tensor"], value: int) -> "torch.Tensor":
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
        return rows.to(model.device)

    def alive(new: "torch.Tensor", scores: object, **kwargs: object) -> "torch.Tensor":
        """No criterion to stop, but what `generate` calls at each token: a batch of answers can take minutes."""
        bar.update(0)
        return torch.zeros(len(new), dtype=torch.bool, device=new.device)

    with progress_bar(total=len(ids), desc=f"answers, {name}", unit="answer", miniters=0, disable=quiet) as bar:
        for batch in (order[begin : begin + size] for begin in range(0, len(order), size)):
            inputs, mask = padded([ids[i] for i in batch], pad), padded([torch.ones_like(ids[i]) for i in batch], 0)
            output = model.generate(inputs, attention_mask=mask, stopping_criteria=[alive], **settings)
            for i, new in zip(batch, output[:, inputs.shape[1] :].tolist(), strict=True):
                text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
                answers[i] = text, len(new) >= settings["max_new_tokens"] and not ends & set(new)
            bar.update(len(batch))
    return [answers[i] for i in range(len(ids))]


def _ids(value: int | list[int] | None) -> set[int]:
    """The token ids of a setting that takes one id, several or none."""
    return set() if value is None else {value} if isinstance(value, int) else set(value)
