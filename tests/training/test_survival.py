"""Runs that are killed, interrupted or run out of disk, in processes of their own, and what comes of resuming them."""

import contextlib
import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from killed_runs import SETTINGS, adapter, logged, process, run
from tiny_runs import MARKER, notebook_parameters, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import TrainerCallback

import ragfit
from ragfit.config.overrides import override
from ragfit.errors import ConfigError, RagfitError
from ragfit.runs.status import read, run_state
from ragfit.training.checkpoints import RECORD, newest, why_not_resumable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows(14)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def overrides(tiny_llama, rows):
    """`overrides(output_dir, *more)`: twelve of fourteen shuffled rows, twelve steps, a checkpoint and a log every three."""

    def make(output_dir, *more):
        return [
            override("model.model_name_or_path", str(tiny_llama)),
            override("model.completion_start", MARKER),
            override("data_file", str(rows)),
            override("train.output_dir", str(output_dir)),
            "model.lora.target_modules=[q_proj, v_proj]", "output_key=answers", "model.load_in_8bit=false", "train.optim=adamw_torch",
            *SETTINGS, *more,
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


def ended(target, *args):
    """The exit code of `target(*args)` in a process; less than 0 for the signal that killed it."""
    started = process(target, *args)
    started.join(300)
    started.kill()  # one that does not end has no exit code
    return started.exitcode


def assert_same(out, whole, logs=True):
    if logs:
        assert logged(out) == logged(whole)
    expected = adapter(whole)
    assert expected and all(torch.equal(tensor, expected[name]) for name, tensor in adapter(out).items())
    assert any(tensor.abs().max() > 1e-3 for name, tensor in expected.items() if "lora_B" in name)  # it has learned


# --- Killed --------------------------------------------------------------------------------------------------------------

# When a run is killed: an audit event of Python, the end of the path it is about, and how many more such events to
# let pass. The step of the checkpoint that is left to go on from.
MOMENTS = [
    ("before the first checkpoint", ("open", ".saving/checkpoint-3/adapter_config.json"), None),
    ("while weights are written", ("open", ".saving/checkpoint-6/adapter_config.json"), 3),
    ("before the state is written", ("open", ".saving/checkpoint-6/trainer_state.json"), 3),
    ("before the record is written", ("open", f".saving/checkpoint-6/{RECORD}"), 3),
    ("before it has its name", ("os.rename", "out/checkpoint-6"), 3),
    ("before the older one is deleted", ("shutil.rmtree", "out/checkpoint-3"), 6),
    ("while the older one is deleted", ("os.remove", "trainer_state.json", 0), 6),
    ("between checkpoints", ("open", ".saving/checkpoint-9/adapter_config.json"), 6),
    ("while the adapter is saved", ("open", "checkpoint.part-*", 3), 12),
    ("before the adapter has its name", ("os.rename", "out/checkpoint"), 12),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "left"), [m[1:] for m in MOMENTS], ids=[m[0] for m in MOMENTS])
def test_a_killed_run_that_is_resumed_equals_one_that_ran_through(overrides, out, through, moment, left):
    log = out.parent / "log"
    assert ended(run, overrides(out), (), moment, log) == -signal.SIGKILL
    state, sentence = run_state(read(out))
    assert state == "killed" and f"process {read(out)['pid']} is gone" in sentence
    found, skipped = newest(out)
    assert (found and found.name) == (left and f"checkpoint-{left}") and skipped == []
    assert ended(run, overrides(out, "resume_checkpoint=true"), (), None, log) == 0
    assert_same(out, through())
    assert run_state(read(out)) == ("finished", f"finished: step 12 of 12, the adapter is in {out}/checkpoint")
    said = log.read_text()
    if ".saving" in moment[1] or "out/checkpoint-6" in moment[1]:
        assert "was half-written when an earlier run ended; it is removed" in said
    if left:
        assert f"going on from {found}. The run before was killed" in said
    assert not (out / ".saving").exists()


BY_EPOCH = ("dev_split=3", "train.eval_strategy=epoch")
BEST = ("dev_split=3", "train.eval_strategy=steps", "train.eval_steps=3", "train.save_strategy=best",
        "train.metric_for_best_model=eval_loss")  # fmt: skip
BY_LENGTH = ("train.group_by_length=true", "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
CHANGED_BY_RESUMING = [
    ("packs", ("train.packing=true", "train.max_length=400", "train.num_train_epochs=3"), 3),
    ("order by length", (*BY_LENGTH, "train.save_steps=6"), 6),
    ("after the last step", ("train.max_steps=7",), 7),
    ("a bfloat16 adapter", ("train.optim=paged_adamw_8bit", "model.load_in_4bit=true", "train.bf16=true"), 3),
    ("saved because it is the best", BEST, 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "step"), [c[1:] for c in CHANGED_BY_RESUMING], ids=[c[0] for c in CHANGED_BY_RESUMING]
)
def test_what_resuming_could_change(overrides, out, through, more, step):
    """Killed right after the checkpoint of that step."""
    assert ended(run, overrides(out, *more), [("on_save", step, signal.SIGKILL)]) == -signal.SIGKILL
    assert newest(out)[0].name == f"checkpoint-{step}"
    assert ended(run, overrides(out, *more, "resume_checkpoint=true")) == 0
    assert_same(out, through(*more))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "step"), [(("train.logging_steps=2",), 3), (BY_EPOCH, 6)], ids=["a log", "an evaluation"]
)
def test_what_was_due_may_be_lost_and_the_adapter_is_the_same(overrides, out, through, more, step):
    """The losses since the last log and the evaluation of an epoch that ended with the process are not made up for."""
    assert ended(run, overrides(out, *more), [("on_save", step, signal.SIGKILL)]) == -signal.SIGKILL
    assert ended(run, overrides(out, *more, "resume_checkpoint=true")) == 0
    assert_same(out, through(*more), logs=False)


# --- Asked to stop -------------------------------------------------------------------------------------------------------

EVALUATING = ("dev_split=2", "train.eval_strategy=steps", "train.eval_steps=2")
STOPS = [
    ("SIGTERM in the middle of a step", [("on_substep_end", 4, signal.SIGTERM)], (), 5),
    ("SIGINT at the end of a step", [("on_step_end", 5, signal.SIGINT)], (), 5),
    ("SIGTERM at the end of an epoch", [("on_step_end", 6, signal.SIGTERM)], (), 6),
    ("SIGTERM at an epoch's evaluation", [("on_step_end", 6, signal.SIGTERM)], (*BY_EPOCH, "train.save_strategy=epoch"), 6),
    ("SIGHUP where an evaluation is due", [("on_step_end", 4, signal.SIGHUP)], EVALUATING, 4),
    ("SIGTERM in the first step", [("on_substep_end", 0, signal.SIGTERM)], (), 1),
    ("SIGTERM at the last step", [("on_step_end", 12, signal.SIGTERM)], (), 12),
    ("SIGTERM twice", [("on_step_begin", 4, signal.SIGTERM)] * 2, ("train.save_strategy=no",), 5),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "more", "step"), [s[1:] for s in STOPS], ids=[s[0] for s in STOPS])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(overrides, out, through, signals, more, step):
    log = out.parent / "log"
    number = signals[0][2]
    assert ended(run, overrides(out, *more), signals, None, log) == 128 + number
    state, sentence = run_state(read(out))
    assert state == "interrupted" and f"stopped by {number.name}" in sentence
    found, _ = newest(out)
    assert found.name == f"checkpoint-{step}" and not (out / "checkpoint").exists()
    assert f"{found} holds all of it; go on with resume_checkpoint=true" in log.read_text()
    assert ended(run, overrides(out, *more, "resume_checkpoint=true"), (), None, log) == 0
    assert_same(out, through(*more), logs=step % 3 == 0)


def test_a_ctrl_c_that_arrives_twice_at_once_is_one(overrides, out):
    started = process(
        run, overrides(out, "train.max_steps=100000", "train.save_steps=100000", "train.per_device_train_batch_size=12")
    )
    wait_for(lambda: (read(out) or {}).get("total_steps"), started.is_alive)
    os.kill(started.pid, signal.SIGINT)
    time.sleep(0.01)
    os.kill(started.pid, signal.SIGINT)
    started.join(30)
    assert started.exitcode == 130 and newest(out)[0]


def test_the_handlers_are_put_back(overrides, out):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    cfg = ragfit.load_config("training", overrides(out, "train.max_steps=1"))
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with pytest.raises(RagfitError, match="^trainer: it has trained already, .* Make a new one"):
        ragfit.train(trainer)


def test_handlers_of_stop_signals():
    from ragfit.training.stop import StopSignals

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with StopSignals() as stop:
        assert stop.asked() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked() == signal.SIGINT and stop.why == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's, after a person's: already stopping
        time.sleep(0.6)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


@pytest.mark.slow
def test_exit_codes_of_the_command_line(overrides, out):
    words = overrides(out, "train.max_steps=100000", "train.save_steps=20", "train.logging_steps=1000")
    command = subprocess.Popen(
        [sys.executable, "-m", "ragfit.training", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (read(out) or {}).get("last_checkpoint"), lambda: command.poll() is None)
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 143 and "stopped: Stopped by SIGTERM at step" in errors and "Traceback" not in errors
    status = subprocess.run([sys.executable, "-m", "ragfit.status", str(out)], capture_output=True, text=True)
    assert status.returncode == 1 and "interrupted, step" in status.stdout and "resume_checkpoint=true" in status.stdout


def wait_for(condition, alive, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert alive() and time.monotonic() < end
        time.sleep(0.02)


# --- Under papermill -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_papermill_whose_kernel_is_killed_or_interrupted(tiny_llama, rows, tmp_path):
    """The notebook of the first reads as completed, the status does not. The kernel of the second saves before it goes."""
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")),
    }
    runs = {}
    for name in ("killed", "interrupted"):
        parameters = notebook_parameters(tiny_llama, rows, tmp_path / name)
        del parameters["dev_split"]
        parameters |= {
            "model.lora.target_modules": "[q_proj]",
            "model.completion_start": MARKER,
            "train.save_steps": 20,
        }
        parameters |= {
            "train.max_steps": 100000,
            "train.logging_steps": 1000,
            "config": str(ROOT / "configs" / "training.yaml"),
        }
        words = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(ROOT / "notebooks" / "train.ipynb"),
            str(tmp_path / f"{name}.ipynb"),
            *words,
        ]
        runs[name] = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def trains(name):
        return (read(tmp_path / name) or {}).get("last_checkpoint")

    for name, command in runs.items():
        wait_for(lambda: trains(name), lambda: command.poll() is None)  # noqa: B023
    kernel = {name: read(tmp_path / name)["pid"] for name in runs}
    os.kill(kernel["killed"], signal.SIGKILL)
    os.kill(kernel["interrupted"], signal.SIGINT)
    codes = {name: command.wait(60) for name, command in runs.items()}
    state, sentence = run_state(read(tmp_path / "killed"))
    assert codes["killed"] != 0 and state == "killed" and "is gone and said nothing" in sentence
    assert codes["interrupted"] == 1 and "Stopped by SIGINT at step" in (tmp_path / "interrupted.ipynb").read_text()
    facts = read(tmp_path / "interrupted")
    assert facts["state"] == "interrupted" and "stopped by SIGINT" in facts["reason"]
    checkpoint = tmp_path / "interrupted" / f"checkpoint-{facts['step']}"
    assert newest(tmp_path / "interrupted")[0] == Path(facts["last_checkpoint"]) == checkpoint
    for command in runs.values():
        command.stdout.close()


# --- Checkpoints that are not whole, or not to be trusted ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(overrides, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "out"
    cfg = ragfit.load_config(
        "training", overrides(out, "train.max_steps=6", "train.save_total_limit=2", "train.hub_token=hf_secret12345678")
    )
    tiny_trainer(cfg).train()
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    return out


class Evil:
    """What it does when it is unpickled shows in a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def cut(name, share=0.5):
    def spoil(folder, evil):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def without(*names):
    return lambda folder, evil: [(folder / name).unlink() for name in names]


def poison(name, how):
    def spoil(folder, evil):
        if how == "pickle":
            (folder / name).write_bytes(pickle.dumps(Evil(evil)))
        else:
            torch.save({"state": Evil(evil)}, folder / name)

    return spoil


SPOILT = [
    (cut("trainer_state.json"), "trainer_state.json or ragfit_checkpoint.json is cut short", "trainer_state.json"),
    (without("trainer_state.json"), "it has no trainer_state.json", "no trainer_state.json"),
    (
        cut("adapter_model.safetensors"),
        "adapter_model.safetensors has [0-9,]+ of [0-9,]+ bytes",
        "adapter_model.safetensors cannot be read",
    ),
    (cut("optimizer.pt"), "optimizer.pt has", "optimizer.pt cannot be read"),
    (cut("scheduler.pt", 0), "scheduler.pt has 0 of", "scheduler.pt cannot be read"),
    (cut("rng_state.pth", 0.9), "rng_state.pth has", "rng_state.pth cannot be read"),
    (without("adapter_model.safetensors"), "adapter_model.safetensors is missing", "it has no weights"),
    (without("optimizer.pt"), "optimizer.pt is missing", "it has no optimizer.pt and scheduler.pt"),
    (
        poison("optimizer.pt", "torch"),
        "optimizer.pt has",
        "optimizer.pt cannot be read as tensors alone, and was not loaded",
    ),
    (poison("rng_state.pth", "torch"), "rng_state.pth has", "rng_state.pth cannot be read as tensors alone"),
    (poison("scheduler.pt", "pickle"), "scheduler.pt has", "scheduler.pt cannot be read as tensors alone"),
]


@pytest.mark.parametrize(("spoil", "recorded", "plain"), SPOILT, ids=[s[2] for s in SPOILT])
def test_a_checkpoint_that_is_not_whole_is_skipped_and_refused(
    overrides, two_checkpoints, tmp_path, spoil, recorded, plain, caplog
):
    out, evil = shutil.copytree(two_checkpoints, tmp_path / "out"), tmp_path / "evil"
    spoil(out / "checkpoint-6", evil)
    for record, reason in ((True, recorded), (False, plain)):
        if not record:  # as plain transformers writes them
            (out / "checkpoint-6" / RECORD).unlink()
        cfg = ragfit.load_config("training", overrides(out, "resume_checkpoint=true"))
        caplog.clear()
        assert ragfit.training.checkpoints.resume_path(cfg) == str(out / "checkpoint-3")
        with pytest.raises(ConfigError, match=f"a run cannot go on from {out}/checkpoint-6: .*{reason}"):
            ragfit.training.checkpoints.resume_path(
                ragfit.load_config("training", overrides(out, override("resume_checkpoint", str(out / "checkpoint-6"))))
            )
        assert re.search(f"{out}/checkpoint-6 is skipped: .*{reason}", caplog.text)
    shutil.rmtree(out / "checkpoint-3")
    with pytest.raises(
        ConfigError, match="^resume_checkpoint: .* holds no checkpoint that is whole .*checkpoint-6 is skipped"
    ):
        ragfit.training.checkpoints.resume_path(cfg)
    assert not evil.exists()


def test_a_poisoned_file_of_the_right_size_is_refused_too(two_checkpoints, tmp_path):
    folder, evil = shutil.copytree(two_checkpoints / "checkpoint-6", tmp_path / "checkpoint-6"), tmp_path / "evil"
    poison("optimizer.pt", "torch")(folder, evil)
    facts = json.loads((folder / RECORD).read_text())
    facts["files"]["optimizer.pt"] = (folder / "optimizer.pt").stat().st_size
    (folder / RECORD).write_text(json.dumps(facts))
    assert why_not_resumable(folder).startswith("optimizer.pt cannot be read as tensors alone, and was not loaded")
    assert not evil.exists()


def test_training_args_bin_holds_no_token_and_is_never_read(overrides, two_checkpoints, tmp_path):
    everything = [path for path in two_checkpoints.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in everything)
    assert not [path for path in everything if b"hf_secret" in path.read_bytes()]
    out, evil = shutil.copytree(two_checkpoints, tmp_path / "out"), tmp_path / "evil"
    poison("training_args.bin", "pickle")(out / "checkpoint-6", evil)
    (out / "checkpoint-6" / RECORD).unlink()
    trainer = tiny_trainer(
        ragfit.load_config("training", overrides(out, "resume_checkpoint=true", "train.max_steps=7"))
    )
    ragfit.train(trainer)
    assert trainer.state.global_step == 7 and not evil.exists()


def test_a_checkpoint_of_plain_transformers_is_taken(overrides, two_checkpoints, tmp_path):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    for folder in out.glob("checkpoint-*"):
        (folder / RECORD).unlink()
    assert why_not_resumable(out / "checkpoint-6") is None
    trainer = tiny_trainer(
        ragfit.load_config("training", overrides(out, "resume_checkpoint=true", "train.max_steps=8"))
    )
    ragfit.train(trainer)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6]


def test_transformers_own_way_of_resuming_skips_it_too(overrides, two_checkpoints, tmp_path):
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    cut("optimizer.pt")(out / "checkpoint-6", None)
    trainer = tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=7")))
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 3 and trainer.state.global_step == 7
    assert (out / "earlier.1" / "checkpoint-6").is_dir() and why_not_resumable(out / "checkpoint-7") is None


# --- Another run than the one that wrote the checkpoint ------------------------------------------------------------------


def resumed(overrides, out, *more):
    cfg = ragfit.load_config("training", overrides(out, "resume_checkpoint=true", "train.max_steps=6", *more))
    return tiny_trainer(cfg)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["shuffle=6"], "made from other rows"),
        (["limit=11"], "made from other rows"),
        (["model.max_sequence_len=200"], "made from other rows"),
        (
            ["model.lora.r=8"],
            "^resume_checkpoint: model.lora.r, .* differs .* would not fit this run. Set it as it was",
        ),
        (["model.lora.lora_alpha=64"], "model.lora.lora_alpha, .* differs"),
        (["model.lora.target_modules=[q_proj]"], "model.lora.target_modules, .* differs"),
        (["model.lora=null"], "model.lora.r, .* differs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_gone_on_with_is_refused_before_the_model_is_loaded(overrides, two_checkpoints, more, message):
    """There is no such model, and the run does not get as far as to find out."""
    cfg = ragfit.load_config("training", overrides(two_checkpoints, "resume_checkpoint=true", *more))
    prepared = ragfit.prepare(cfg)
    cfg.model.model_name_or_path = "no/such-model"
    with pytest.raises(ConfigError, match=message):
        ragfit.build_trainer(cfg, prepared)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], None),
        (["train.save_steps=2", "train.logging_steps=1", "experiment=other", "train.hub_token=hf_other12345678"], None),
        (
            ["train.learning_rate=0.02", "train.lr_scheduler_type=linear"],
            "train.learning_rate, train.lr_scheduler_type differs",
        ),
        (["train.gradient_accumulation_steps=4"], "a step takes 4 rows, in the run that wrote .* it took 2"),
    ],
)
def test_what_changes_the_run_is_warned_of(overrides, two_checkpoints, more, message, caplog):
    cfg = ragfit.load_config(
        "training", overrides(two_checkpoints, "resume_checkpoint=true", "train.max_steps=6", *more)
    )
    tiny_trainer(cfg)
    said = [record.getMessage() for record in caplog.records if "resume_checkpoint" in record.getMessage()]
    assert any(re.search(message, text) for text in said) if message else said == []


# --- Nothing is lost -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_run_sets_an_earlier_one_s_checkpoints_aside(overrides, two_checkpoints, tmp_path):
    """Else rotation would delete the new run's, and resuming would take the old run's."""
    out = shutil.copytree(two_checkpoints, tmp_path / "out")
    (out / "checkpoint.part-left").mkdir()  # a kill kept it from its name
    new = tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=2", "train.save_steps=1")))
    ragfit.train(new)
    assert sorted(path.name for path in out.glob("checkpoint*")) == ["checkpoint", "checkpoint-2"]
    assert sorted(path.name for path in (out / "earlier.1").iterdir()) == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint.part-left",
    ]
    assert why_not_resumable(out / "earlier.1" / "checkpoint-6") is None
    older = str(out / "earlier.1" / "checkpoint-3")  # and it can still be gone on from
    again = tiny_trainer(
        ragfit.load_config("training", overrides(out, override("resume_checkpoint", older), "train.max_steps=4"))
    )
    ragfit.train(again)
    assert sorted(path.name for path in out.glob("checkpoint*")) == ["checkpoint", "checkpoint-4", "checkpoint.1"]
    assert [path.name for path in (out / "earlier.2").iterdir()] == ["checkpoint-2"]


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(overrides, tmp_path, through):
    out = shutil.copytree(through(), tmp_path / "out")
    before = {path: path.read_bytes() for path in (out / "checkpoint").iterdir()}
    trainer = tiny_trainer(ragfit.load_config("training", overrides(out, "resume_checkpoint=true")))
    assert ragfit.train(trainer) == out / "checkpoint"
    assert {path: path.read_bytes() for path in (out / "checkpoint").iterdir()} == before and not (
        out / "checkpoint.1"
    ).exists()


@pytest.mark.slow
def test_a_full_disk(overrides, out, through):
    """No file may grow over 6,000 bytes once the second checkpoint's adapter is written: the optimizer's state does not go through."""
    log = out.parent / "log"
    more = ("model.lora.r=64",)
    assert ended(run_on_a_small_disk, overrides(out, *more), log) == 1
    state, sentence = run_state(read(out))
    assert (
        state == "failed"
        and f"checkpoint-6 could not be saved in {out}" in sentence
        and "older checkpoints are whole" in sentence
    )
    assert "Make room there" in log.read_text()
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["checkpoint-3"]
    assert ended(run, overrides(out, *more, "resume_checkpoint=true")) == 0
    assert_same(out, through(*more))


def run_on_a_small_disk(overrides, log):
    import resource

    from transformers import Trainer

    save, limit = Trainer._save_optimizer_and_scheduler, resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def small(self, folder):
        if self.state.global_step > 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limit))
        save(self, folder)

    Trainer._save_optimizer_and_scheduler = small
    run(overrides, (), None, log)


# --- The status ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_that_another_process_trains_into_is_refused(overrides, out):
    other = process(run, overrides(out, "train.max_steps=100000", "train.save_strategy=no", "train.logging_steps=1000"))
    wait_for(lambda: (read(out) or {}).get("doing") == "training", other.is_alive)
    cfg = ragfit.load_config("training", overrides(out, "train.max_steps=1"))
    with pytest.raises(
        ConfigError, match=f"train.output_dir: process {other.pid} on .* is training into {out}. Wait for it"
    ):
        tiny_trainer(cfg)
    assert run_state(read(out))[0] == "running"
    other.kill()
    other.join()
    ragfit.train(tiny_trainer(cfg))
    assert run_state(read(out))[0] == "finished"


@pytest.mark.slow
def test_of_two_runs_that_begin_together_one_trains(overrides, out):
    """Both have loaded their models, and begin at the same moment."""
    go, both = out.parent / "go", []
    for _ in range(2):
        both.append(process(train_on, overrides(out, "train.max_steps=100000", "train.save_strategy=no"), go))
        wait_for(lambda: go.with_name(f"loaded-{both[-1].pid}").exists(), both[-1].is_alive)
    go.touch()
    wait_for(lambda: not all(one.is_alive() for one in both), lambda: True)
    refused, trains = sorted(both, key=lambda one: one.is_alive())
    refused.join()
    assert refused.exitcode == 3
    wait_for(lambda: (read(out) or {}).get("step"), trains.is_alive)
    assert read(out)["pid"] == trains.pid and run_state(read(out))[0] == "running"
    trains.kill()


def train_on(overrides, go):
    trainer = tiny_trainer(ragfit.load_config("training", overrides))
    go.with_name(f"loaded-{os.getpid()}").touch()
    while not go.exists():
        pass
    try:
        ragfit.train(trainer)
    except ConfigError as error:
        sys.exit(3 if "is training into" in str(error) else 1)


def test_a_trainer_that_waited_while_another_run_took_its_folder(overrides, out):
    """It is refused, and leaves the other's files as they are; it trains once the other is gone, which it tells."""
    trainer = tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=1")))
    other = process(hold, out)
    wait_for(lambda: (read(out) or {}).get("pid") == other.pid, other.is_alive)
    before = (out / "status.json").read_bytes()
    with pytest.raises(ConfigError, match=f"process {other.pid} on .* is training into {out}"):
        ragfit.train(trainer)
    assert (out / "status.json").read_bytes() == before and not (out / "ragfit.yaml").exists()
    other.kill()  # the lock goes with the process
    other.join()
    assert ragfit.train(trainer) == out / "checkpoint"


def hold(out):
    from ragfit.runs.status import RunStatus

    with RunStatus(out).loading():
        time.sleep(300)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_locks_nothing_is_told_and_trained_on(overrides, out, number, monkeypatch, recwarn, caplog):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        ragfit.train(tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=1"))))
    said = [*caplog.messages, *(str(warning.message) for warning in recwarn)]
    assert any(f"{out} cannot be locked" in text or "flock not supported" in text for text in said)


def test_a_full_disk_to_the_last_byte(overrides, out):
    """Nothing new can be written, and the status says so all the same: over its own file."""
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes rights that are not given here")
    try:
        trainer = tiny_trainer(ragfit.load_config("training", overrides(out)), [Fills(out / "full")])
        with pytest.raises(RagfitError, match=f"checkpoint-3 could not be saved in {out}.*No space left"):
            ragfit.train(trainer)
        assert shutil.disk_usage(out).free == 0
        state, sentence = run_state(read(out))
        assert state == "failed" and "checkpoint-3 could not be saved" in sentence and "step 3 of" in sentence
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


class Fills(TrainerCallback):
    """Fills the disk before the third step."""

    def __init__(self, path):
        self.path = path

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            with contextlib.suppress(OSError), self.path.open("ab", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass


def test_home_in_output_dir_is_one_place_throughout(overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cfg = ragfit.load_config("training", overrides("~/out", "train.max_steps=3"))
    assert cfg.train.output_dir == str(tmp_path / "out")
    assert ragfit.train(tiny_trainer(cfg)) == tmp_path / "out" / "checkpoint"
    again = ragfit.load_config("training", overrides("~/out", "train.max_steps=4", "resume_checkpoint=true"))
    assert ragfit.training.checkpoints.resume_path(again) == str(tmp_path / "out" / "checkpoint-3")
    assert ragfit.run_status("~/out").state == "finished" and ragfit.table_of_runs("~/out").index.tolist() == ["out"]
    assert not (tmp_path / "~").exists()
    assert (
        ragfit.load_config("training", ["data_file=x", "train.output_dir=null"]).train.output_dir == "./trained_models"
    )


@pytest.mark.slow
def test_a_status_through_a_failure(overrides, out):
    cfg = ragfit.load_config("training", overrides(out, "train.max_steps=2", "train.hub_token=hf_secret12345678"))
    assert read(out) is None
    with pytest.raises(ConfigError, match="has no status.json"):
        ragfit.run_status(out)
    ragfit.train(tiny_trainer(cfg))
    finished = read(out)
    assert finished["state"] == "finished" and finished["step"] == finished["total_steps"] == 2

    with pytest.raises(ConfigError):  # known before the model is loaded: the finished run's status stays
        tiny_trainer(ragfit.load_config("training", overrides(out, "train.eval_strategy=steps")))
    assert read(out) == finished

    trainer = tiny_trainer(cfg)
    trainer.compute_loss = lambda *args, **kwargs: (
        1 / 0 if trainer.state.global_step else cause(f"hf_secret12345678 and hf_{'a' * 34}")
    )
    with pytest.raises(RagfitError, match="The run failed: hf_secret"):
        ragfit.train(trainer)
    view = ragfit.run_status(out)
    assert (
        view.state == "failed"
        and "The run failed: ••• and •••" in str(view)
        and "hf_" not in (out / "status.json").read_text()
    )
    assert f"its adapter was saved in {out}/checkpoint" in str(view) and "start it again" in str(view)
    assert "failed" in view._repr_html_()
    ragfit.train(tiny_trainer(cfg))  # the failed one holds the folder no longer
    assert read(out)["state"] == "finished"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_where_no_checkpoint_is_wanted(overrides, out, moment, monkeypatch):
    """Before the first step the status says interrupted; after the adapter is saved, in a push, it stays finished."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *(
            ("ragfit.training.run.keep_config", interrupted)
            if moment == "before"
            else ("ragfit.training.run.push", interrupted)
        )
    )
    trainer = tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=1", "hfhub_tag=org/name")))
    with pytest.raises(KeyboardInterrupt):
        ragfit.train(trainer)
    assert run_state(read(out))[0] == ("interrupted" if moment == "before" else "finished")
    assert (out / "checkpoint").exists() == (moment == "after")


def cause(text):
    raise ValueError(f"{text}\nsecond line")


@pytest.mark.slow
def test_a_trainer_that_never_trains_leaves_the_status_as_it_was(overrides, out):
    tiny_trainer(ragfit.load_config("training", overrides(out)))
    assert read(out) is None
    ragfit.train(tiny_trainer(ragfit.load_config("training", overrides(out, "train.max_steps=1"))))
    before = read(out)
    tiny_trainer(ragfit.load_config("training", overrides(out)))
    assert read(out) == before and before["state"] == "finished"


VERDICTS = [
    (
        {"host": "elsewhere", "updated": "2026-01-01T00:00:00+00:00", "doing": "training", "step": 3, "total_steps": 9},
        60,
        "running",
    ),
    (
        {"host": "elsewhere", "updated": "2026-01-01T00:00:00+00:00", "doing": "training", "step": 3, "total_steps": 9},
        7200,
        "silent",
    ),
    ({"host": "elsewhere", "updated": "2026-01-01T00:00:00+00:00", "seconds_per_step": 600}, 7200, "running"),
    ({"host": "here", "pid": os.getpid(), "process_started": round(psutil.Process().create_time())}, 9999, "running"),
    ({"host": "here", "pid": os.getpid(), "process_started": 12345}, 0, "killed"),  # its number was given again
    ({"host": "here", "pid": 2**22 + 1, "process_started": 12345}, 0, "killed"),
]


@pytest.mark.parametrize(("facts", "later", "expected"), VERDICTS)
def test_verdicts(facts, later, expected, monkeypatch):
    from datetime import datetime, timedelta

    monkeypatch.setattr("socket.gethostname", lambda: "here")
    now = datetime.fromisoformat("2026-01-01T00:00:00+00:00") + timedelta(seconds=later)
    assert run_state({"state": "running", **facts}, now)[0] == expected
