"""What a run says of itself is so: its dev loss, the figures of the weights it saves, and that a run of NaNs failed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import TrainerCallback

import ragfit
from ragfit.errors import ConfigError, RagfitError
from ragfit.runs.status import read, to_json


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Answers of one word beside long ones: a mean over batches is not one over tokens."""
    found = question_rows(20)
    for number, row in enumerate(found):
        row["answers"] = ["yes"] if number % 3 else [f"The answer is {number}, " + "and no idea " * 20]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def config(tiny_llama, rows, tmp_path):
    """`config(*overrides)`: eleven dev rows of twenty, a step for each row, nothing saved."""
    keys = ("dev_split=11", "train.gradient_accumulation_steps=1", "train.save_strategy=no", "train.max_steps=6",
            "train.learning_rate=0.05", "train.lr_scheduler_type=constant", "train.warmup_ratio=0")  # fmt: skip
    return lambda *overrides: tiny_config(tiny_llama, rows, tmp_path / "out", *keys, *overrides)


EVERY_TWO = ("train.eval_strategy=steps", "train.eval_steps=2", "train.save_strategy=steps", "train.save_steps=2")


# --- Dev loss ------------------------------------------------------------------------------------------------------------


def by_hand(trainer):
    """Sum of the token losses of all dev rows, divided by their number, from all logits of each row by itself."""
    total = count = 0
    trainer.model.eval()
    for row in trainer.prepared.dev:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"])[1:]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).item()
        count += int((labels != -100).sum())
    return total / count


def test_dev_loss_is_one_over_tokens_at_any_batch_size(config):
    for more in ([], ["train.packing=true", "train.max_length=400"], ["train.loss_type=dft"]):
        found = []
        for size in (1, 4, 16):
            trainer = tiny_trainer(config(f"train.per_device_eval_batch_size={size}", *more))
            metrics = trainer.evaluate()
            found.append([metrics[f"eval_{name}"] for name in ("loss", "mean_token_accuracy", "entropy")])
            assert ragfit.dev_loss(trainer) == pytest.approx(found[-1][0], rel=1e-6)
        assert found[0][0] == pytest.approx(by_hand(trainer), rel=1e-5)
        assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == pytest.approx(found[0], rel=1e-5)


def test_figures_are_those_of_the_best_step_where_that_is_saved(config, tmp_path):
    """The best by a metric that is best early, as in any run that overfits; only the best checkpoint is left."""
    best = "load_best_model_at_end=true metric_for_best_model=eval_loss greater_is_better=true save_total_limit=1"
    trainer = tiny_trainer(config(*EVERY_TWO, *(f"train.{key}" for key in best.split())))
    folder = ragfit.train(trainer)
    logged = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    facts, curve = read(tmp_path / "out"), trainer.callback_handler.callbacks[1]
    best = max(logged, key=logged.get)
    assert best == facts["saved_step"] == trainer.weights_step < facts["step"] == 6
    assert facts["dev_loss"] == logged[best] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    assert facts["loss"] == losses(trainer)[best - 1] and facts["last_checkpoint"] == f"{tmp_path}/out/checkpoint-6"
    assert f"the weights kept are the best ones, of step {best}, loss {facts['loss']:.3f}" in curve._sentence()
    saved = load_file(folder / "adapter_model.safetensors")
    kept = load_file(tmp_path / "out" / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_a_figure_that_was_not_measured_is_not_taken_over(config, tmp_path):
    ragfit.train(tiny_trainer(config("train.logging_steps=4")))
    facts = read(tmp_path / "out")
    assert facts["saved_step"] == 6 and "loss" not in facts and "dev_loss" not in facts
    assert "dev loss         not measured at step 6" in repr(ragfit.run_status(tmp_path / "out"))
    measured = {"written": facts["updated"], "dev_loss": {"base": 2.0, "tuned": 1.23456}}
    for written, said in ((facts["updated"], "1.2346"), ("2001-01-01", "not measured")):  # that is an earlier run's
        (tmp_path / "out" / "evaluation.json").write_text(json.dumps(measured | {"written": written}))
        assert f"dev loss         {said}" in repr(ragfit.run_status(tmp_path / "out"))


def test_early_stopping(config, tmp_path):
    patience = ("train.early_stopping_patience=2", "train.early_stopping_threshold=9")
    trainer = tiny_trainer(config(*EVERY_TWO[:2], *patience))
    ragfit.train(trainer)
    assert trainer.state.global_step == 6  # the first evaluation, and two without a gain of 9 nats
    assert trainer.args.load_best_model_at_end and trainer.weights_step == trainer.state.best_global_step
    with pytest.raises(ConfigError, match="^train.early_stopping_patience: .* nothing reads it .*eval_strategy"):
        tiny_trainer(config("train.early_stopping_patience=2"))


class Spoil(TrainerCallback):
    """At the end of a step all weights of the adapter become one value."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.fill_(self.value) if weight.requires_grad else None


def all_json(folder):
    """Every JSON file of a run parses where words such as NaN are no numbers."""

    def refuse(word):
        raise ValueError(word)

    files = [path for path in folder.rglob("*.json") if path.is_file()]
    return len(files) > 2 and [json.loads(path.read_text(), parse_constant=refuse) for path in files]


# When weights are spoilt, with what, and what is said of which step.
SPOILT = {
    "weights that overflow, before a save": (4, 1e30, "the loss after the update of step 4", "checkpoint-2"),
    "weights that are none, before a save": (4, math.nan, "the loss after the update of step 4", "checkpoint-2"),
    "weights that are none, between saves": (3, math.nan, "the loss of step 4", "checkpoint-2"),
    "at the last step": (6, 1e30, "the loss after the update of step 6", "checkpoint-4"),
}


@pytest.mark.parametrize(("step", "value", "said", "healthy"), SPOILT.values(), ids=SPOILT)
def test_what_is_not_finite_ends_the_run_at_that_step(config, tmp_path, step, value, said, healthy):
    out = tmp_path / "out"
    trainer = tiny_trainer(config(*EVERY_TWO[2:], "train.save_total_limit=1"), [Spoil(step, value)])
    with pytest.raises(RagfitError, match=f"{said} is not a finite number. Lower .*{out}/{healthy}, the last healthy"):
        ragfit.train(trainer)
    facts = read(out)
    assert facts["state"] == "failed" and said in facts["reason"]
    assert not (out / "checkpoint").exists() and all_json(out)
    assert all(math.isfinite(loss) for loss in losses(trainer))
    weights = load_file(out / healthy / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    again = tiny_trainer(config(f"resume_checkpoint={out}/{healthy}", "train.learning_rate=0.001"))
    assert ragfit.train(again).is_dir() and read(out)["state"] == "finished"


def test_json_has_no_words_for_numbers():
    found = json.loads(to_json({"a": [math.inf, 1.5, {"b": -math.inf}], "c": math.nan}))
    assert found == {"a": [None, 1.5, {"b": None}], "c": None}


def test_a_number_from_the_environment(config, monkeypatch, tmp_path):
    monkeypatch.setenv("SEED_OF_MINE", "7")
    trainer = tiny_trainer(config("train.seed=${oc.env:SEED_OF_MINE}", "train.max_steps=1"))
    assert trainer.args.seed == 7 and ragfit.train(trainer).is_dir()
    assert "seed: ${oc.env:SEED_OF_MINE}" in (tmp_path / "out" / "checkpoint" / "ragfit.yaml").read_text()
