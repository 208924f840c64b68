"""After the run: dev loss, and the base model's answers beside the tuned model's."""

import contextlib


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


def compare_answers(trainer, rows=4, max_new_tokens=None):
    """Answers of the base model and the tuned model to the same prompts, drawn greedily.

    The prompts are those of the dev set, or of the training set where there is none (which the view says).

    Args:
        trainer: of `ragfit.build_trainer`, trained or not.
        rows: how many rows to answer, from the first.
        max_new_tokens: the longest answer, in tokens; twice the longest completion, at most 256, by default.

    Returns:
        AnswersView
    """
    from ragfit.views import AnswersView

    prepared = trainer.prepared
    part = "dev" if prepared.dev is not None else "train"
    lengths = getattr(prepared.report, part).lengths
    count = min(rows, len(lengths))
    if max_new_tokens is None:
        max_new_tokens = min(256, 2 * max(completion for _, completion in lengths))
    table = []
    rendered = [prepared.rendered(index, part) for index in range(count)]
    texts = [row.prompt for row in rendered]
    tuned = generate(trainer.model, prepared, texts, max_new_tokens, trainer.cfg.model.get("generation"))
    base = [None] * count
    if hasattr(trainer.model, "disable_adapter"):
        with trainer.model.disable_adapter():
            base = generate(trainer.model, prepared, texts, max_new_tokens, trainer.cfg.model.get("generation"))
    for index in range(count):
        number = getattr(prepared.report, part).kept[index]
        query, output, source = prepared.row(number, part)
        question = source.get("query") if isinstance(source.get("query"), str) else query
        table.append({"question": question, "expected": output, "base": base[index], "tuned": tuned[index]})
    return AnswersView(table, part)


def generate(model, prepared, prompts, max_new_tokens, settings=None):
    """Continue prompts, one at a time.

    Args:
        prompts: a list of inference prompts as text.
        settings: keyword arguments of `generate` that go before the greedy default.

    Returns:
        A list of answers without special tokens.
    """
    import torch

    tokenizer, encoder = prepared.tokenizer, prepared.encoder
    settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **(settings or {})}
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends] if ends is not None else [])
    # The model was trained to end with these, whatever its generation configuration says.
    ends |= set(prepared.report.last_ids) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    answers = []
    with inference(model):
        for prompt in prompts:
            ids = encoder.bos + list(encoder.spans(prompt)[0])
            inputs = torch.tensor([ids], device=model.device)
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                **{"pad_token_id": tokenizer.pad_token_id, "eos_token_id": sorted(ends) or None, **settings},
            )
            answers.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip())
    return answers


@contextlib.contextmanager
def inference(model):
    """Evaluation mode with the cache on, and back."""
    import torch

    training, cache = model.training, model.config.use_cache
    checkpointing = getattr(model, "is_gradient_checkpointing", False)
    model.eval()
    model.config.use_cache = True
    if checkpointing:
        model.gradient_checkpointing_disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.config.use_cache = cache
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train(training)
