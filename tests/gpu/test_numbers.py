"""Loss, gradients and answers against plain transformers and peft in float32 on the CPU."""

import json

import pytest
import torch
from tiny_runs import question_rows, tiny_trainer

import ragfit
from gpu.on_device import (
    BF16,
    DEVICE,
    EXACT,
    FLOAT32,
    FOUR_BITS,
    IN_8_BITS,
    ONE_STEP,
    ROUNDED,
    check_step,
    documented,
    on_the_cpu,
    token_costs,
)  # fmt: skip
from ragfit.evaluation.generate import generate
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.reading import read

PRECISIONS = {  # overrides, and how far loss and gradients may be from float32's
    "float32": (FLOAT32, EXACT),
    "bf16 autocast": ([*FLOAT32, "train.bf16=true"], ROUNDED),
    "bf16 weights": (BF16, ROUNDED),
    "8 bits": ([], IN_8_BITS),
    "4 bits": (FOUR_BITS, ROUNDED),
}


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "no checkpointing"])
@pytest.mark.parametrize(("keys", "far"), PRECISIONS.values(), ids=PRECISIONS)
def test_loss_and_gradients_are_those_of_float32(config, keys, far, checkpointing):
    check_step(tiny_trainer(config(*ONE_STEP, *keys, f"train.gradient_checkpointing={checkpointing}")), *far)


@pytest.fixture(scope="module")
def trained(phi3, rows_file, tmp_path_factory):
    """A trainer whose model has learned its rows: its answers are those rows' and not a coin's toss."""
    keys = ["train.num_train_epochs=25", "train.learning_rate=1e-3", "train.warmup_ratio=0", "train.save_strategy=no"]
    keys += ["model.lora.target_modules=all-linear", "model.lora.lora_dropout=0", "train.gradient_checkpointing=false"]
    trainer = tiny_trainer(
        documented(phi3, rows_file, tmp_path_factory.mktemp("trained"), *FLOAT32, *keys, "dev_split=3")
    )
    trainer.train()
    return trainer


def test_answers_are_those_of_the_cpu(trained):
    """Greedy answers to prompts of different lengths, padded into one batch, against each prompt alone."""
    prepared, model = trained.prepared, on_the_cpu(trained)
    tokenizer = prepared.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    prompts = [prepared.rendered(row).prompt for row in range(len(prepared.train))]
    found = generate(trained, prompts, {"max_new_tokens": 12}, "tuned")
    for prompt, (answer, cut) in zip(prompts, found, strict=True):
        ids = torch.tensor([prepared.encoder.bos + list(prepared.encoder.spans(prompt)[0])])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                                eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        expected = output[0, ids.shape[1] :].tolist()
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert cut == (not set(ends) & set(expected))
    assert len({answer for answer, _ in found}) > 1 and not all(cut for _, cut in found)


def test_token_losses_and_the_dev_loss_are_those_of_the_cpu(trained):
    model, dev = on_the_cpu(trained), trained.prepared.dev
    with torch.no_grad():
        expected = [token_costs(model, row).tolist() for row in dev]
    for index, costs in enumerate(expected):
        found = [loss for loss in token_losses(trained, index, "dev")["tuned"] if loss is not None]
        assert found == pytest.approx(costs, rel=1e-3, abs=1e-3)
    every = sum(expected, [])
    assert ragfit.dev_loss(trained) == pytest.approx(sum(every) / len(every), rel=1e-3)
    # Under other documents too: texts that begin alike are read on from one cache.
    lengths = ((3, 9), (3, 5), (4, 7))
    texts = [(f"What is {n} times two? " + "no idea. " * more, f"The answer is {2 * n}.") for n, more in lengths]
    for text, reading in zip(texts, read(trained, texts), strict=True):
        [alone] = read(trained, [text])
        assert reading.losses == pytest.approx(alone.losses, rel=1e-3, abs=1e-3) and len(alone.losses) > 3


def test_an_evaluation_and_a_look_at_grounding_run(config, tmp_path):
    """In the documented 8 bits, after a step of training and before another."""
    documents = "\n".join(f"[{k}] Document {k} says {k}." for k in (1, 2, 3))
    rows = [row | {"prompt": f"{documents}\n{row['prompt']}", "answers": ["It is [2]."]} for row in question_rows(6)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = tiny_trainer(config(f"data_file={tmp_path / 'documents.jsonl'}", "dev_split=3", "train.max_steps=2"))
    folder = ragfit.train(trainer)
    summary = ragfit.evaluate(trainer, max_new_tokens=4).summary
    assert 0 < summary["dev_loss"]["tuned"] != summary["dev_loss"]["base"] > 0
    again = ragfit.load_checkpoint(folder)
    found = ragfit.grounding(again, rows=3)
    assert len(found.rows) == 3 and {w.device.type for w in again.model.parameters()} == {DEVICE}
