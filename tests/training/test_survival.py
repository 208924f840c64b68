"""Runs that are killed, stopped or run out of disk, in processes of their own, and what comes of resuming them."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_runs import SETTINGS, adapter, logged, process, run, sender
from safetensors.torch import load_file, save_file
from tiny_runs import MARKER, notebook_parameters, one_thread, question_rows, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config.overrides import override
from ragfit.errors import ConfigError, Interrupted, RagfitError
from ragfit.runs.status import RunStatus, read, run_state
from ragfit.training.callback import StopSignals
from ragfit.training.checkpoints import RECORD, newest, resume_path

ROOT = Path(__file__).parents[2]
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows(14)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def overrides(tiny_llama, rows):
    """`overrides(output_dir, *more)`: twelve of fourteen shuffled rows, twelve steps, a checkpoint and a log every three."""

    def make(output_dir, *more):
        other = any(word.startswith("train.save_strategy") for word in more)  # beside which nothing reads save_steps
        settings = [word for word in SETTINGS if not (other and word.startswith("train.save_steps"))]
        return [
            override("model.model_name_or_path", str(tiny_llama)),
            override("model.completion_start", MARKER),
            override("data_file", str(rows)),
            override("train.output_dir", str(output_dir)),
            "model.lora.target_modules=[q_proj, v_proj]", "output_key=answers", "model.load_in_8bit=false",
            "train.optim=adamw_torch", *settings, *more,
        ]  # fmt: skip

    return make


@pytest.fixture(scope="module")
def through(overrides, tmp_path_factory):
    """`through(*more)`: the output folder of a run with these settings that nobody stopped."""
    made = {}

    def make(*more):
        if more not in made:
            made[more] = tmp_path_factory.mktemp("through") / "out"
            assert ended(overrides(made[more], *more)) == 0
        return made[more]

    return make


@pytest.fixture(scope="module")
def two_checkpoints(overrides, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "out"
    more = ("train.max_steps=6", "train.save_total_limit=2", "train.hub_token=hf_secret12345678")
    trainer_of(overrides, out, *more).train()
    assert names(out, "checkpoint-*") == ["checkpoint-3", "checkpoint-6"]
    assert "trained using [TRL]" not in (out / "checkpoint-6" / "README.md").read_text()
    return out


def trainer_of(overrides, out, *more, callbacks=()):
    return tiny_trainer(ragfit.load_config("training", overrides(out, *more)), callbacks)


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def ended(*args):
    """The exit code of `run(*args)` in a process; less than 0 for the signal that killed it."""
    started = process(run, *args)
    started.join(600)
    started.kill()  # one that does not end has no exit code
    return started.exitcode


def assert_same(out, whole, logs):
    assert not logs or logged(out) == logged(whole)
    expected = adapter(whole)
    assert expected and all(torch.equal(tensor, expected[name]) for name, tensor in adapter(out).items())
    assert any(tensor.abs().max() > 1e-3 for name, tensor in expected.items() if "lora_B" in name)  # it has learned


# --- Killed or stopped ---------------------------------------------------------------------------------------------------

BY_EPOCH = ("dev_split=3", "train.eval_strategy=epoch")
EVALUATING = ("dev_split=3", "train.eval_strategy=steps", "train.eval_steps=3")
BEST = (*EVALUATING, "train.save_strategy=best", "train.metric_for_best_model=eval_loss")
EARLY = (*EVALUATING, "train.early_stopping_patience=2", "train.greater_is_better=true")
BY_LENGTH = ("train.group_by_length=true", "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
IN_4_BITS = ("train.optim=paged_adamw_8bit", "model.load_in_4bit=true", "train.bf16=true")
KILL, TERM = signal.SIGKILL, signal.SIGTERM
# How a run ends early: at an audit event of Python, of which the path it is about ends so, after so many more such
# events it is killed; or at an event of a callback, at a step, it gets a signal. Then its settings, the step of the
# checkpoint that is left, and whether all of the log is the same.
ENDS = {
    "killed before the first checkpoint": (("open", ".saving/checkpoint-3/adapter_config.json"), (), 0, True),
    "killed before the record is written": (("open", f".saving/checkpoint-6/{RECORD}"), (), 3, True),
    "killed before it has its name": (("os.rename", "out/checkpoint-6"), (), 3, True),
    "killed while the older one is deleted": (("os.remove", "trainer_state.json", 0), (), 6, True),
    "killed while the adapter is saved": (("open", "checkpoint.part-*", 3), (), 12, True),
    "killed before the adapter has its name": (("os.rename", "out/checkpoint"), (), 12, True),
    # Right after a checkpoint: what resuming could change.
    "packs": ([("on_save", 3, KILL)], ("train.packing=true", "train.max_length=400", "train.num_train_epochs=3"), 3, True),
    "order by length": ([("on_save", 6, KILL)], (*BY_LENGTH, "train.save_steps=6"), 6, True),
    "after the last step": ([("on_save", 7, KILL)], ("train.max_steps=7",), 7, True),
    "a bfloat16 adapter": ([("on_save", 3, KILL)], IN_4_BITS, 3, True),
    "saved because it is the best": ([("on_save", 3, KILL)], BEST, 3, True),
    "patience": ([("on_save", 6, KILL)], EARLY, 6, True),
    # What was due is not made up for: the losses since the last log, the evaluation of an epoch that ended there.
    "a log": ([("on_save", 3, KILL)], ("train.logging_steps=2",), 3, False),
    "an evaluation": ([("on_save", 6, KILL)], BY_EPOCH, 6, False),
    # Asked to stop, it finishes its step and saves.
    "SIGTERM in the middle of a step": ([("on_substep_end", 4, TERM)], (), 5, False),
    "SIGTERM at the end of an epoch": ([("on_step_end", 6, TERM)], ("train.save_strategy=epoch",), 6, True),
    "SIGHUP where an evaluation is due": ([("on_step_end", 3, signal.SIGHUP)], EVALUATING, 3, True),
    "SIGINT in the first step": ([("on_substep_end", 0, signal.SIGINT)], (), 1, False),
    "SIGTERM twice": ([("on_step_begin", 4, TERM)] * 2, ("train.save_strategy=no",), 5, False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("end", "more", "left", "logs"), ENDS.values(), ids=ENDS)
def test_a_resumed_run_equals_one_that_ran_through(overrides, tmp_path, through, end, more, left, logs):
    out, log = tmp_path / "out", tmp_path / "log"
    signals, moment = (end, None) if isinstance(end, list) else ((), end)
    number = signals[0][2] if signals else KILL
    state, code = ("killed", -KILL) if number == KILL else ("interrupted", 128 + number)
    assert ended(overrides(out, *more), signals, moment, log) == code
    found, sentence = run_state(read(out))
    assert found == state and ("is gone" if state == "killed" else f"stopped by {number.name}") in sentence
    assert (newest(out) and newest(out).name) == (f"checkpoint-{left}" if left else None)
    assert not (out / "checkpoint").exists()
    assert ended(overrides(out, *more, "resume_checkpoint=true"), (), None, log) == 0
    assert_same(out, through(*more), logs)
    assert run_state(read(out))[0] == "finished" and f"steps from step {left} on" in log.read_text()
    assert not (out / ".saving").exists()


@pytest.mark.slow
def test_a_terminal_that_is_closed(overrides, tmp_path):
    """The system sends SIGHUP, and nothing can be printed any more; the checkpoint is saved all the same."""
    out, endless = tmp_path / "out", ("train.max_steps=100000", "train.save_steps=100000", "train.logging_steps=1")
    words = overrides(out, *endless)
    child, terminal = pty.fork()
    if child == 0:  # leads a session of its own, on this terminal
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run under nohup hands on that it is ignored
        os.execv(sys.executable, [sys.executable, "-m", "ragfit.training", *words])
    seen = b""
    while b"step 1/" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    _, code = os.waitpid(child, 0)
    facts = read(out)
    assert os.waitstatus_to_exitcode(code) == 128 + signal.SIGHUP, facts
    assert facts["state"] == "interrupted" and facts["last_checkpoint"] == f"{out}/checkpoint-{facts['step']}"


def test_stopped_and_gone_on_with_in_one_process(overrides, tmp_path, through):
    """The handlers are put back, and a later `trainer.train` of transformers' own trains to the end."""

    before, stop = [signal.getsignal(number) for number in NUMBERS], sender([("on_step_end", 4, TERM)])
    trainer = trainer_of(overrides, tmp_path / "out", callbacks=[stop])
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 4 of 12"):
        ragfit.train(trainer)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(RagfitError, match="^trainer: it has trained already, .* Make a new one"):
        ragfit.train(trainer)
    trainer.remove_callback(stop)
    trainer.train(resume_from_checkpoint=True)
    expected = adapter(through())
    weights = {name.replace(".default", ""): weight for name, weight in trainer.model.named_parameters()}
    assert trainer.state.global_step == 12 and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_stop_signals(capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)  # a scheduler's, after a person's
            signal.raise_signal(signal.SIGINT)  # and the same one to a process and its group
            assert stop.asked == signal.SIGINT
            time.sleep(0.6)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.count("stopping after this step, and saving") == 1


@pytest.mark.slow
def test_papermill_whose_kernel_is_killed_or_interrupted(tiny_llama, rows, tmp_path):
    """The notebook of the first reads as completed, the status does not. The kernel of the second saves before it goes."""
    environment = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    runs, codes, facts = {}, {}, {}
    for name in ("killed", "interrupted"):
        parameters = notebook_parameters(tiny_llama, rows, tmp_path / name) | {
            "dev_split": 0.2, "train.save_steps": 20, "train.max_steps": 100000, "train.logging_steps": 1000,
            "config": str(ROOT / "configs" / "training.yaml"),
        }  # fmt: skip
        words = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
        command = ["papermill", str(ROOT / "notebooks" / "train.ipynb"), str(tmp_path / f"{name}.ipynb"), *words]
        here = {"cwd": tmp_path, "env": os.environ | environment, "stdout": subprocess.DEVNULL}
        runs[name] = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL, **here)
    for name, number in (("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        while not (read(tmp_path / name) or {}).get("last_checkpoint"):
            assert runs[name].poll() is None
            time.sleep(0.1)
        os.kill(read(tmp_path / name)["pid"], number)
        codes[name], facts[name] = runs[name].wait(600), read(tmp_path / name)
    assert codes["killed"] != 0 and run_state(facts["killed"])[0] == "killed"
    assert codes["interrupted"] == 1 and "stopped by SIGINT at step" in (tmp_path / "interrupted.ipynb").read_text()
    assert facts["interrupted"]["state"] == "interrupted"
    assert facts["interrupted"]["last_checkpoint"].endswith(f"/checkpoint-{facts['interrupted']['step']}")


REFUSED = {
    "shuffle=6": "rows", "model.max_sequence_len=200": "rows", "model.lora.r=8": "model.lora.r",
    "train.gradient_accumulation_steps=4": "rows_per_step",
    "train.optim=adafactor": "train.optim", "train.lr_scheduler_type=reduce_lr_on_plateau": "train.lr_scheduler_type",
}  # fmt: skip


@pytest.mark.parametrize(("more", "named"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_gone_on_with_is_refused_before_the_model_is_loaded(overrides, two_checkpoints, more, named):
    """There is no such model, and the run does not get as far as to find out."""
    plateau = ("dev_split=2", "train.eval_strategy=steps") if "plateau" in more else ()
    cfg = ragfit.load_config("training", overrides(two_checkpoints, "resume_checkpoint=true", more, *plateau))
    prepared = ragfit.prepare(cfg)
    cfg.model.model_name_or_path = str(two_checkpoints.parent / Path(cfg.model.model_name_or_path).name)
    with pytest.raises(ConfigError, match=f"^resume_checkpoint: .*{named}.* differs from the run .* Set it as it was"):
        ragfit.build_trainer(cfg, prepared)


def test_another_base_or_adapter_of_the_same_name_is_refused(overrides, two_checkpoints, tiny_llama, tmp_path):
    """By what they compute: the weights of a folder are others now, or those of the checkpoint are."""
    model, out = (shutil.copytree(folder, tmp_path / folder.name) for folder in (tiny_llama, two_checkpoints))
    here = (override("model.model_name_or_path", str(model)), "resume_checkpoint=true")
    copied = trainer_of(overrides, out, *here, "train.max_steps=7")  # a copy is the same model
    copied.train(resume_from_checkpoint=True)
    for path, said in (
        (model / "model.safetensors", "the base model is not the one that it was trained on"),
        (out / "checkpoint-7" / "adapter_model.safetensors", "the base model with this adapter is not the model that"),
    ):
        weights, before = load_file(path), path.read_bytes()
        save_file({name: weight * 1.5 for name, weight in weights.items()}, path, {"format": "pt"})
        with pytest.raises(RagfitError, match=f"{said}.*off by"):
            ragfit.train(trainer_of(overrides, out, *here, "train.max_steps=8"))
        path.write_bytes(before)
    assert read(out)["state"] == "failed"


def test_changed_settings_hold_from_the_step_on(overrides, two_checkpoints, tmp_path):
    """Twice changed: the rates that were logged, the optimizer's groups, and what is told of it."""
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    constant = ("train.lr_scheduler_type=constant", "train.logging_steps=1", "train.save_total_limit=9")

    def trained(resume, *more):
        trainer = trainer_of(overrides, out, override("resume_checkpoint", str(resume)), *constant, *more)
        ragfit.train(trainer)
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        return rates[1:], {group["weight_decay"] for group in trainer.optimizer.param_groups}

    decay = "train.weight_decay=0.25"
    first = trained(out / "checkpoint-3", "train.learning_rate=0.5", decay, "train.max_steps=5")
    assert first == ([0.5, 0.5], {0.25, 0.0})
    again = trained("true", "train.learning_rate=0.125", decay, "train.max_steps=7")
    assert again[0] == [0.5, 0.5, 0.125, 0.125]
    changed = read(out)["changed"]  # and nothing of what a run saves and logs
    assert {key[6:] for key in changed} == {"learning_rate", "lr_scheduler_type", "max_steps", "weight_decay"}
    assert changed["train.learning_rate"] == [[0, 0.01], [3, 0.5], [5, 0.125]]


def test_what_a_checkpoint_must_hold(overrides, two_checkpoints, tmp_path, capfd):
    assert not [path for path in two_checkpoints.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    for name in (RECORD, "optimizer.pt"):
        folder = shutil.copytree(two_checkpoints / "checkpoint-6", tmp_path / name / "checkpoint-6")
        (folder / "training_args.bin").write_bytes(b"a pickle that nobody reads")
        cfg = ragfit.load_config("training", overrides(folder.parent, "resume_checkpoint=true"))
        assert resume_path(cfg) == str(folder)
        (folder / name).unlink()
        with pytest.raises(ConfigError, match="checkpoint-6 lacks .* the optimizer's state"):
            resume_path(cfg)
    assert resume_path(ragfit.load_config("training", overrides(tmp_path / "none", "resume_checkpoint=true"))) is None
    assert "none holds no checkpoint, so the run starts anew" in capfd.readouterr().err


def test_a_new_run_sets_an_earlier_one_s_checkpoints_aside(overrides, two_checkpoints, tmp_path):
    """Else rotation would delete the new run's, and resuming would take the old run's."""
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    ragfit.train(trainer_of(overrides, out, "train.max_steps=2", "train.save_steps=1"))
    assert names(out, "checkpoint*") == ["checkpoint", "checkpoint-2"]
    assert names(out / "earlier.1") == ["checkpoint-3", "checkpoint-6"]
    older = override("resume_checkpoint", str(out / "earlier.1" / "checkpoint-3"))  # it can still be gone on from
    ragfit.train(trainer_of(overrides, out, older, "train.max_steps=4"))
    assert names(out, "checkpoint*") == ["checkpoint", "checkpoint-4", "checkpoint.1"]
    assert names(out / "earlier.2") == ["checkpoint-2"]


def test_a_folder_that_another_run_has_is_refused_and_a_finished_run_stays_as_it_is(overrides, tmp_path, through):
    out = shutil.copytree(through(), tmp_path / "out")
    trainer = trainer_of(overrides, out, "resume_checkpoint=true")
    with RunStatus(out).kept(), pytest.raises(ConfigError, match=f"^train.output_dir: .* is training into {out}. Wait"):
        ragfit.train(trainer)
    files = {path: path.read_bytes() for path in (out / "checkpoint").iterdir()}
    assert ragfit.train(trainer) == out / "checkpoint" and names(out, "checkpoint.*") == []
    assert {path: path.read_bytes() for path in (out / "checkpoint").iterdir()} == files
