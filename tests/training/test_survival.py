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
from killed_runs import SETTINGS, adapter, logged, process, run
from safetensors.torch import load_file, save_file
from tiny_runs import MARKER, notebook_parameters, one_thread, question_rows, tiny_trainer  # noqa: F401
from transformers import TrainerCallback

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


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def through(overrides, tmp_path_factory):
    """`through(*more)`: the output folder of a run with these settings that nobody stopped."""
    made = {}

    def make(*more):
        if more not in made:
            made[more] = tmp_path_factory.mktemp("through") / "out"
            assert ended(run, overrides(made[more], *more)) == 0
        return made[more]

    return make


@pytest.fixture(scope="module")
def two_checkpoints(overrides, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "out"
    more = ("train.max_steps=6", "train.save_total_limit=2", "train.hub_token=hf_secret12345678")
    trainer_of(overrides, out, *more).train()
    assert names(out, "checkpoint-*") == ["checkpoint-3", "checkpoint-6"]
    return out


def trainer_of(overrides, out, *more, callbacks=()):
    return tiny_trainer(ragfit.load_config("training", overrides(out, *more)), callbacks)


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def ended(target, *args):
    """The exit code of `target(*args)` in a process; less than 0 for the signal that killed it."""
    started = process(target, *args)
    started.join(600)
    started.kill()  # one that does not end has no exit code
    return started.exitcode


def wait_for(condition, alive=lambda: True, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert alive() and time.monotonic() < end
        time.sleep(0.02)


def assert_same(out, whole, logs=True):
    if logs:
        assert logged(out) == logged(whole)
    expected = adapter(whole)
    assert expected and all(torch.equal(tensor, expected[name]) for name, tensor in adapter(out).items())
    assert any(tensor.abs().max() > 1e-3 for name, tensor in expected.items() if "lora_B" in name)  # it has learned


# --- Killed --------------------------------------------------------------------------------------------------------------

# When a run is killed: an audit event of Python, the end of the path it is about, and how many more such events to
# let pass. The step of the checkpoint that is left to go on from.
MOMENTS = {
    "before the first checkpoint": (("open", ".saving/checkpoint-3/adapter_config.json"), 0),
    "before the record is written": (("open", f".saving/checkpoint-6/{RECORD}"), 3),
    "before it has its name": (("os.rename", "out/checkpoint-6"), 3),
    "before the older one is deleted": (("shutil.rmtree", "out/checkpoint-3"), 6),
    "while the older one is deleted": (("os.remove", "trainer_state.json", 0), 6),
    "while the adapter is saved": (("open", "checkpoint.part-*", 3), 12),
    "before the adapter has its name": (("os.rename", "out/checkpoint"), 12),
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "left"), MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_that_is_resumed_equals_one_that_ran_through(overrides, out, through, moment, left):
    log = out.parent / "log"
    assert ended(run, overrides(out), (), moment, log) == -signal.SIGKILL
    state, sentence = run_state(read(out))
    assert state == "killed" and f"process {read(out)['pid']} on" in sentence and "is gone" in sentence
    assert (newest(out) and newest(out).name) == (f"checkpoint-{left}" if left else None)
    assert ended(run, overrides(out, "resume_checkpoint=true"), (), None, log) == 0
    assert_same(out, through())
    assert run_state(read(out)) == ("finished", f"finished, step 12 of 12: {out}/checkpoint")
    if left:
        assert f"going on from {out}/checkpoint-{left}. The run before was killed" in log.read_text()
    assert not (out / ".saving").exists() and names(out, "checkpoint-*") == ["checkpoint-12"]


BY_EPOCH = ("dev_split=3", "train.eval_strategy=epoch")
BEST = ("dev_split=3", "train.eval_strategy=steps", "train.eval_steps=3", "train.save_strategy=best",
        "train.metric_for_best_model=eval_loss")  # fmt: skip
EARLY = ("dev_split=3", "train.eval_strategy=steps", "train.eval_steps=3", "train.early_stopping_patience=2",
         "train.greater_is_better=true")  # fmt: skip
BY_LENGTH = ("train.group_by_length=true", "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
IN_4_BITS = ("train.optim=paged_adamw_8bit", "model.load_in_4bit=true", "train.bf16=true")
CHANGED_BY_RESUMING = {
    "packs": (("train.packing=true", "train.max_length=400", "train.num_train_epochs=3"), 3, True),
    "order by length": ((*BY_LENGTH, "train.save_steps=6"), 6, True),
    "after the last step": (("train.max_steps=7",), 7, True),
    "a bfloat16 adapter": (IN_4_BITS, 3, True),
    "saved because it is the best": (BEST, 3, True),
    "patience": (EARLY, 6, True),
    # What was due is not made up for: the losses since the last log, the evaluation of an epoch that ended there.
    "a log": (("train.logging_steps=2",), 3, False),
    "an evaluation": (BY_EPOCH, 6, False),
}


@pytest.mark.slow
@pytest.mark.parametrize(("more", "step", "logs"), CHANGED_BY_RESUMING.values(), ids=CHANGED_BY_RESUMING)
def test_what_resuming_could_change(overrides, out, through, more, step, logs):
    """Killed right after the checkpoint of that step."""
    assert ended(run, overrides(out, *more), [("on_save", step, signal.SIGKILL)]) == -signal.SIGKILL
    assert newest(out).name == f"checkpoint-{step}"
    assert ended(run, overrides(out, *more, "resume_checkpoint=true")) == 0
    assert_same(out, through(*more), logs)


# --- Asked to stop -------------------------------------------------------------------------------------------------------

EVALUATING = ("dev_split=2", "train.eval_strategy=steps", "train.eval_steps=2")
STOPS = {
    "SIGTERM in the middle of a step": ([("on_substep_end", 4, signal.SIGTERM)], (), 5),
    "SIGTERM at the end of an epoch": ([("on_step_end", 6, signal.SIGTERM)], (*BY_EPOCH, "train.save_strategy=epoch"), 6),
    "SIGHUP where an evaluation is due": ([("on_step_end", 4, signal.SIGHUP)], EVALUATING, 4),
    "SIGINT in the first step": ([("on_substep_end", 0, signal.SIGINT)], (), 1),
    "SIGTERM twice, nothing to be saved": ([("on_step_begin", 4, signal.SIGTERM)] * 2, ("train.save_strategy=no",), 5),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "more", "step"), STOPS.values(), ids=STOPS)
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(overrides, out, through, signals, more, step):
    log, number = out.parent / "log", signals[0][2]
    assert ended(run, overrides(out, *more), signals, None, log) == 128 + number
    state, sentence = run_state(read(out))
    assert state == "interrupted" and f"stopped by {number.name}" in sentence
    assert newest(out).name == f"checkpoint-{step}" and not (out / "checkpoint").exists()
    assert f"{newest(out)} holds all of it; go on with resume_checkpoint=true" in log.read_text()
    assert ended(run, overrides(out, *more, "resume_checkpoint=true"), (), None, log) == 0
    assert_same(out, through(*more), logs=step % 3 == 0)


@pytest.mark.slow
def test_a_signal_at_the_last_step_leaves_a_finished_run(overrides, out, through):
    assert ended(run, overrides(out), [("on_step_end", 12, signal.SIGTERM)]) == 143
    assert run_state(read(out))[0] == "finished"
    assert_same(out, through(), logs=False)


@pytest.mark.slow
def test_a_terminal_that_is_closed(overrides, out):
    """The system sends SIGHUP, and nothing can be printed any more; the checkpoint is saved all the same."""
    words = overrides(out, "train.max_steps=100000", "train.save_steps=100000", "train.logging_steps=1")
    child, terminal = pty.fork()
    if child == 0:  # leads a session of its own, on this terminal
        os.execv(sys.executable, [sys.executable, "-m", "ragfit.training", *words])
    seen = b""
    while b"step 1/" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    _, code = os.waitpid(child, 0)
    facts = read(out)
    assert os.waitstatus_to_exitcode(code) == 128 + signal.SIGHUP, facts
    assert facts["state"] == "interrupted" and facts["last_checkpoint"] == f"{out}/checkpoint-{facts['step']}"


def test_stopped_and_gone_on_with_in_one_process(overrides, out, through):
    """The handlers are put back, and a later `trainer.train` of transformers' own trains to the end."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in NUMBERS]
    trainer = trainer_of(overrides, out, callbacks=[Stop()])
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 4 of 12"):
        ragfit.train(trainer)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(RagfitError, match="^trainer: it has trained already, .* Make a new one"):
        ragfit.train(trainer)
    trainer.remove_callback(Stop)
    trainer.train(resume_from_checkpoint=True)
    expected = adapter(through())
    weights = {name.replace(".default", ""): weight for name, weight in trainer.model.named_parameters()}
    assert trainer.state.global_step == 12 and all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("notebook", [False, True])
def test_stop_signals(monkeypatch, capfd, notebook):
    monkeypatch.setattr("ragfit.training.callback.in_notebook", lambda: notebook)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked == signal.SIGINT and stop.why == "SIGINT"
            signal.raise_signal(signal.SIGTERM)  # a scheduler's, after a person's: already stopping
            signal.raise_signal(signal.SIGINT)  # and the same one to a process and its group
            time.sleep(0.6)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    said, other = capfd.readouterr() if notebook else capfd.readouterr()[::-1]
    assert "SIGINT: stopping as soon as this step is done" in said and other == ""
    assert ("Ctrl-C again" in said) is not notebook


@pytest.mark.slow
def test_exit_codes_of_the_command_line(overrides, out):
    words = overrides(out, "train.max_steps=100000", "train.save_steps=20", "train.logging_steps=1000")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = subprocess.Popen([sys.executable, "-m", "ragfit.training", *words], **pipes)
    wait_for(lambda: (read(out) or {}).get("last_checkpoint"), lambda: command.poll() is None)
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=600)
    assert command.returncode == 143 and "stopped: stopped by SIGTERM at step" in errors and "Traceback" not in errors
    view = ragfit.run_status(out)
    assert view.state == "interrupted" and "resume_checkpoint=true" in repr(view)


@pytest.mark.slow
def test_papermill_whose_kernel_is_killed_or_interrupted(tiny_llama, rows, tmp_path):
    """The notebook of the first reads as completed, the status does not. The kernel of the second saves before it goes."""
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")),
    }
    runs, notebook = {}, str(ROOT / "notebooks" / "train.ipynb")
    for name in ("killed", "interrupted"):
        parameters = notebook_parameters(tiny_llama, rows, tmp_path / name) | {
            "dev_split": None, "model.lora.target_modules": "[q_proj]", "train.save_steps": 20,
            "train.max_steps": 100000, "train.logging_steps": 1000, "config": str(ROOT / "configs" / "training.yaml"),
        }  # fmt: skip
        words = [word for key, value in parameters.items() if value is not None for word in ("-p", key, str(value))]
        command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / f"{name}.ipynb"), *words]
        with (tmp_path / f"{name}.log").open("w") as log:
            runs[name] = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    for name, command in runs.items():
        wait_for(lambda: (read(tmp_path / name) or {}).get("last_checkpoint"), lambda: command.poll() is None)  # noqa: B023
    os.kill(read(tmp_path / "killed")["pid"], signal.SIGKILL)
    os.kill(read(tmp_path / "interrupted")["pid"], signal.SIGINT)
    codes = {name: command.wait(600) for name, command in runs.items()}
    state, sentence = run_state(read(tmp_path / "killed"))
    assert codes["killed"] != 0 and state == "killed" and "is gone and said nothing" in sentence
    assert codes["interrupted"] == 1 and "stopped by SIGINT at step" in (tmp_path / "interrupted.ipynb").read_text()
    facts = read(tmp_path / "interrupted")
    assert facts["state"] == "interrupted" and Path(facts["last_checkpoint"]).name == f"checkpoint-{facts['step']}"


# --- Another run than the one that wrote the checkpoint ------------------------------------------------------------------

REFUSED = {
    "shuffle=6": "rows", "limit=11": "rows", "model.max_sequence_len=200": "rows",
    "train.gradient_accumulation_steps=4": "rows_per_step", "model.lora.r=8": "model.lora.r",
    "model.lora.lora_alpha=64": "model.lora.lora_alpha", "model.lora.target_modules=[q_proj]": "model.lora.target_modules",
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


def test_another_base_or_adapter_under_the_same_name_is_not_gone_on_with(
    overrides, two_checkpoints, tiny_llama, tmp_path
):
    """By what they compute: the weights of a folder are others now, or those of the checkpoint are."""
    model, out = (shutil.copytree(folder, tmp_path / folder.name) for folder in (tiny_llama, two_checkpoints))
    here = (override("model.model_name_or_path", str(model)), "resume_checkpoint=true", "train.max_steps=7")
    trainer_of(overrides, out, *here).train(resume_from_checkpoint=True)  # a copy is the same model
    for path, said in (
        (model / "model.safetensors", "the base model is not the one that it was trained on"),
        (out / "checkpoint-7" / "adapter_model.safetensors", "the base model with this adapter is not the model that"),
    ):
        weights, before = load_file(path), path.read_bytes()
        save_file({name: weight * 1.5 for name, weight in weights.items()}, path, {"format": "pt"})
        with pytest.raises(RagfitError, match=f"{said}.*off by"):
            ragfit.train(trainer_of(overrides, out, *here[:2], "train.max_steps=8"))
        path.write_bytes(before)
    assert read(out)["state"] == "failed"


def test_changed_settings_hold_from_the_step_on(overrides, two_checkpoints, tmp_path):
    """Twice changed: the rates that were logged, the optimizer's groups, and what is told of it."""
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    constant = ("train.lr_scheduler_type=constant", "train.logging_steps=1", "train.save_total_limit=9")

    def rates(trainer):
        return [None] * 2 + [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]

    first = trainer_of(
        overrides, out, override("resume_checkpoint", str(out / "checkpoint-3")), *constant, "train.learning_rate=0.5",
        "train.weight_decay=0.25", "train.max_steps=5",
    )  # fmt: skip
    ragfit.train(first)
    assert rates(first)[3:] == [0.5, 0.5]
    assert {group["weight_decay"] for group in first.optimizer.param_groups} == {0.25, 0.0}
    assert first.changed["train.learning_rate"] == [(0, 0.01), (3, 0.5)]
    again = trainer_of(
        overrides, out, "resume_checkpoint=true", *constant, "train.learning_rate=0.125", "train.max_steps=7"
    )
    ragfit.train(again)
    assert again.changed["train.learning_rate"] == [(0, 0.01), (3, 0.5), (5, 0.125)]
    assert rates(again)[3:] == [0.5, 0.5, 0.125, 0.125]
    assert read(out)["changed"]["train.learning_rate"] == [[0, 0.01], [3, 0.5], [5, 0.125]]


@pytest.mark.parametrize(
    "more", [[], ["train.save_steps=2", "train.logging_steps=1", "experiment=x", "train.hub_token=hf_other12345678"]]
)
def test_what_changes_nothing_is_not_told(overrides, two_checkpoints, tmp_path, more):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    trainer = trainer_of(overrides, out, "resume_checkpoint=true", "train.max_steps=6", *more)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.changed == {}


def test_a_checkpoint_of_plain_transformers_is_taken_and_one_without_an_optimizer_is_not(
    overrides, two_checkpoints, tmp_path
):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    everything = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in everything if b"hf_secret" in path.read_bytes()]
    for folder in out.glob("checkpoint-*"):
        (folder / RECORD).unlink()
        (folder / "training_args.bin").write_bytes(b"a pickle that nobody reads")
    trainer = trainer_of(overrides, out, "resume_checkpoint=true", "train.max_steps=8")
    ragfit.train(trainer)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6]
    (out / "checkpoint-8" / "optimizer.pt").unlink()
    with pytest.raises(ConfigError, match="checkpoint-8 lacks .*optimizer.pt"):
        resume_path(trainer.cfg)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        resume_path(ragfit.load_config("training", overrides(tmp_path / "none", "resume_checkpoint=true")))


# --- Nothing is lost -----------------------------------------------------------------------------------------------------


def test_a_new_run_sets_an_earlier_one_s_checkpoints_aside(overrides, two_checkpoints, tmp_path):
    """Else rotation would delete the new run's, and resuming would take the old run's."""
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    (out / "checkpoint.part-left").mkdir()  # a kill kept it from its name
    ragfit.train(trainer_of(overrides, out, "train.max_steps=2", "train.save_steps=1"))
    assert names(out, "checkpoint*") == ["checkpoint", "checkpoint-2"]
    assert names(out / "earlier.1") == ["checkpoint-3", "checkpoint-6", "checkpoint.part-left"]
    older = override("resume_checkpoint", str(out / "earlier.1" / "checkpoint-3"))  # it can still be gone on from
    ragfit.train(trainer_of(overrides, out, older, "train.max_steps=4"))
    assert names(out, "checkpoint*") == ["checkpoint", "checkpoint-4", "checkpoint.1"]
    assert names(out / "earlier.2") == ["checkpoint-2"]


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(overrides, tmp_path, through):
    out = shutil.copytree(through(), tmp_path / "out")
    before = {path: path.read_bytes() for path in (out / "checkpoint").iterdir()}
    assert ragfit.train(trainer_of(overrides, out, "resume_checkpoint=true")) == out / "checkpoint"
    assert {path: path.read_bytes() for path in (out / "checkpoint").iterdir()} == before
    assert not (out / "checkpoint.1").exists()


# --- The folder is one run's ---------------------------------------------------------------------------------------------


def test_a_folder_that_another_run_has_is_refused_before_the_model_is_loaded(overrides, out, monkeypatch):
    monkeypatch.setattr("ragfit.training.run.load_model", lambda cfg: pytest.fail("the model was loaded"))
    with RunStatus(out).kept(), pytest.raises(ConfigError, match=f"^train.output_dir: .* is training into {out}. Wait"):
        trainer_of(overrides, out)
