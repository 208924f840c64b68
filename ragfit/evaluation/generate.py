"""What a model answers, and its dev loss."""

import contextlib

from ragfit.config.explain import explained


@explained("The dev loss")
def dev_loss(trainer):
    """The mean loss per completion token on the dev set, as Trainer reports it, without logging it.

    Returns:
        float (nats per token), or None where there is no dev set.
    """
    if trainer.prepared.dev is None:
        return None
    training = trainer.model.training
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "dev loss", prediction_loss_only=True)
    trainer.model.train(training)
    return loop.metrics["eval_loss"]


def longest_answer(prepared, part="dev"):
    """How many tokens an answer may have: twice the longest completion, at least 48, and beyond 256 only what that has.

    A base model answers at length, and the answer to find in it may come late.
    """
    longest = max(completion for _, completion in getattr(prepared.report, part).lengths)
    return max(longest, min(256, max(48, 2 * longest)))


def generate(model, prepared, prompts, max_new_tokens, settings=None, batch_size=8):
    """Continue prompts, greedily unless the settings say otherwise.

    Prompts of similar length are padded on the left and continued together, several times as fast as one by one. In
    16-bit weights padding can change the rounding, and so a word where two were equally likely.

    Args:
        prompts: a list of inference prompts as text.
        settings: keyword arguments of `generate` that go before the greedy default, as plain lists and dicts.
        batch_size: how many to continue together.

    Returns:
        A list of `(answer, cut)`: text without special tokens, and whether `max_new_tokens` ended it.
    """
    import torch

    tokenizer, encoder = prepared.tokenizer, prepared.encoder
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends] if ends is not None else [])
    # The model was trained to end with these, whatever its generation configuration says.
    ends |= set(prepared.report.last_ids) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    given = {"pad_token_id": pad, "eos_token_id": sorted(ends) or None}
    settings = {**given, "do_sample": False, "max_new_tokens": max_new_tokens, **(settings or {})}
    settings |= {"num_return_sequences": 1, "return_dict_in_generate": False}
    ends = settings["eos_token_id"] or []
    ends = {settings["pad_token_id"], *(ends if isinstance(ends, list | tuple) else [ends])}
    ids = [encoder.bos + list(encoder.spans(prompt)[0]) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    answers = [None] * len(ids)
    with inference(model):
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            width = len(ids[batch[0]])
            padding = [width - len(ids[i]) for i in batch]
            inputs = torch.tensor(
                [[pad] * left + ids[i] for i, left in zip(batch, padding, strict=True)], device=model.device
            )
            mask = torch.tensor([[0] * left + [1] * (width - left) for left in padding], device=model.device)
            output = model.generate(input_ids=inputs, attention_mask=mask, tokenizer=tokenizer, **settings)
            for i, new in zip(batch, output[:, width:].tolist(), strict=True):
                text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
                answers[i] = text, len(new) >= settings["max_new_tokens"] and not ends & set(new)
    return answers


@contextlib.contextmanager
def inference(model):
    """Evaluation mode with the cache on, and back."""
    import torch

    training, cache = model.training, model.config.use_cache
    checkpointing = getattr(model, "is_activation_checkpointing", False)
    model.eval()
    model.config.use_cache = True
    if checkpointing:
        model.activation_checkpointing_disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.config.use_cache = cache
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train(training)
