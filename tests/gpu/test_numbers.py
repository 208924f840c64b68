"""Loss, gradients and answers against plain transformers and peft in float32 on the CPU."""

import json

import pytest
import torch
from tiny_runs import question_rows, tiny_trainer

import ragfit
from gpu.on_device import (
    DEVICE,
    FLOAT32,
    FOUR_BITS,
    ONE_STEP,
    PLAIN,
    check_step,
    on_the_cpu,
    token_costs,
)
from ragfit.evaluation.generate import generate
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.reading import read

# Overrides, and how far loss and gradients may be from float32's, as a share. A label one place off, a row that sees
# another or a lost scale are above 0.3. The quantized models are compared with their own weights, dequantized.
PRECISIONS = {
    "float32": (FLOAT32, 1e-5, 1e-3),
    "bf16 autocast": (
        [*FLOAT32, "train.bf16=true"],
        0.005,
        0.05,
    ),  # bfloat16 rounds to 0.4 %, in each of some 30 products
    "bf16 weights": ([*PLAIN, "model.torch_dtype=bfloat16"], 0.005, 0.05),  # which it holds as they are
    "8 bits": ([], 0.01, 0.1),  # on a GPU LLM.int8 rounds what goes into a product to 8 bits too
    "4 bits": (FOUR_BITS, 0.005, 0.05),
}


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "no checkpointing"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_loss_and_gradients_are_those_of_float32(config, name, checkpointing):
    keys, of_loss, of_gradients = PRECISIONS[name]
    trainer = tiny_trainer(config(*ONE_STEP, *keys, f"train.gradient_checkpointing={checkpointing}"))
    check_step(trainer, of_loss, of_gradients)


@pytest.fixture(scope="module")
def trained(phi3, rows_file, tmp_path_factory):
    """A trainer whose model has learned its rows: its answers are those rows' and not a coin's toss."""
    from gpu.on_device import documented

    out = tmp_path_factory.mktemp("trained")
    keys = ["train.num_train_epochs=25", "train.learning_rate=1e-3", "train.warmup_ratio=0", "train.save_strategy=no"]
    targets = [
        "model.lora.target_modules=all-linear",
        "model.lora.lora_dropout=0",
        "dev_split=3",
        "train.gradient_checkpointing=false",
    ]
    trainer = tiny_trainer(documented(phi3, rows_file, out, *FLOAT32, *keys, *targets))
    trainer.train()
    return trainer


def test_answers_are_those_of_the_cpu(trained):
    """Greedy answers to prompts of different lengths, padded into one batch, against each prompt alone."""
    prepared, model = trained.prepared, on_the_cpu(trained)
    prompts = [prepared.rendered(row).prompt for row in range(len(prepared.train))]
    found = generate(trained, prompts, {"max_new_tokens": 12}, "tuned")
    for prompt, (answer, cut) in zip(prompts, found, strict=True):
        ids = torch.tensor([prepared.encoder.bos + list(prepared.encoder.spans(prompt)[0])])
        ends = [prepared.tokenizer.eos_token_id, prepared.tokenizer.convert_tokens_to_ids("<|end|>")]
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                                eos_token_id=ends, pad_token_id=prepared.tokenizer.pad_token_id)  # fmt: skip
        expected = output[0, ids.shape[1] :].tolist()
        assert answer == prepared.tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert cut == (not set(ends) & set(expected))
    assert len({answer for answer, _ in found}) > 1 and not all(cut for _, cut in found)


def test_token_losses_and_the_dev_loss_are_those_of_the_cpu(trained):
    model, dev = on_the_cpu(trained), trained.prepared.dev
    with torch.no_grad():
        expected = [token_costs(model, row).tolist() for row in dev]
    for index, costs in enumerate(expected):
        found = [loss for loss in token_losses(trained, index, "dev")["tuned"] if loss is not None]
        assert found == pytest.approx(costs, rel=1e-3, abs=1e-3)
    every = [cost for costs in expected for cost in costs]
    assert ragfit.dev_loss(trained) == pytest.approx(sum(every) / len(every), rel=1e-3)


def test_answers_under_other_documents_cost_what_they_cost_alone(trained):
    """Texts that begin alike are read on from one cache."""
    texts = [
        (f"What is {n} times two? " + "no idea. " * more, f"The answer is {2 * n}.")
        for n, more in ((3, 9), (3, 5), (4, 7))
    ]
    together = read(trained, texts)
    for text, reading in zip(texts, together, strict=True):
        [alone] = read(trained, [text])
        assert reading.losses == pytest.approx(alone.losses, rel=1e-3, abs=1e-3) and len(alone.losses) > 3


def test_an_evaluation_and_a_look_at_grounding_run(config, tmp_path):
    """In the documented 8 bits, after a step of training and before another."""
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_documents(6)))
    trainer = tiny_trainer(config(f"data_file={tmp_path / 'documents.jsonl'}", "dev_split=3", "train.max_steps=2"))
    folder = ragfit.train(trainer)
    summary = ragfit.evaluate(trainer, max_new_tokens=4).summary
    assert 0 < summary["dev_loss"]["tuned"] != summary["dev_loss"]["base"] > 0
    again = ragfit.load_checkpoint(folder)
    found = ragfit.grounding(again, rows=3)
    assert len(found.rows) == 3 and {w.device.type for w in again.model.parameters()} == {DEVICE}


def with_documents(count):
    for n, row in enumerate(question_rows(count)):
        documents = "\n".join(f"[{k}] Document {k} says {k * n}." for k in (1, 2, 3))
        yield {"prompt": f"{documents}\n{row['prompt']}", "answers": [f"It is {2 * n} [2]."]}
