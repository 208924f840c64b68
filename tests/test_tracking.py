"""Weights & Biases: the real client in offline mode, and the file it leaves, read back."""

import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from tiny_runs import losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config import PROJECT_ROOT, save_config

wandb = pytest.importorskip("wandb")

SECRETS = {"MY_API_KEY": "sk-secret123", "HF_TOKEN": "hf_secret456", "DATABASE_URL": "postgres://me:pass789@db/x"}
SIMPLE = {"train.save_strategy": "no", "train.max_steps": "3", "limit": "6"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nobody is logged in, nothing is sent, and the client starts anew for each test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    yield
    wandb.teardown()


@pytest.fixture
def config(tiny_phi3, write_rows, tmp_path):
    rows = write_rows(question_rows(12))
    simple = [f"{key}={value}" for key, value in SIMPLE.items()]
    return lambda *overrides: tiny_config(tiny_phi3, rows, tmp_path / "out", *simple, *overrides)


def records(path):
    """The records of a `.wandb` file: protobufs in LevelDB's log format, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:  # the rest of a block is padding
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def values(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_run(folder):
    """(run, config, history, summary, exit code) of the one offline run in a folder."""
    wandb.teardown()  # its service may still be writing
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    run, config, history, summary, code = None, {}, [], {}, None
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= values(run.config.update)
        elif kind == "config":
            config |= values(record.config.update)
        elif kind == "history":
            history.append(values(record.history.item))
        elif kind == "summary":
            summary |= values(record.summary.update)
        elif kind == "exit":
            code = record.exit.exit_code
    return run, config, history, summary, code


def test_a_run_is_tracked(config, tmp_path):
    cfg = config("use_wandb=true", "experiment=my group", "wandb_entity=my-team", "train.learning_rate=0.01")
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    assert wandb.run is None  # finished
    run, settings, history, summary, code = read_run(tmp_path / "out")
    assert (run.run_group, run.entity, run.project, run.job_type, list(run.tags)) == ("my group", "my-team", "ragfit", "train", ["train"])
    assert settings["data_file"] == cfg.data_file and settings["model"]["lora"]["r"] == 16
    assert settings["train"]["learning_rate"] == 0.01 and settings["translated"]["train.warmup_ratio"] == "0.03 -> train.warmup_steps"
    assert [entry["train/loss"] for entry in history if "train/loss" in entry] == losses(trainer)
    assert summary["rows"] == 6 and summary["loss_tokens"] == trainer.prepared.report.train.loss_tokens
    assert code == 0


def test_evaluation_during_the_run_is_tracked_and_after_it_is_not_a_crash(config, tmp_path, capsys):
    cfg = config("use_wandb=true", "dev_split=2", "train.eval_strategy=steps", "train.eval_steps=1", "train.max_steps=2")
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    _, _, history, _, _ = read_run(tmp_path / "out")
    assert [entry["eval/loss"] for entry in history if "eval/loss" in entry] == evaluated and len(evaluated) == 2
    assert ragfit.dev_loss(trainer) == pytest.approx(evaluated[-1])


def test_the_command_line_s_dev_loss_after_a_tracked_run(config, capsys):
    ragfit.run(config("use_wandb=true", "dev_split=2", "train.max_steps=1"))
    assert "dev loss " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "environment", "project"),
    [
        (["train.project=mine"], {}, "mine"),
        ([], {"WANDB_PROJECT": "theirs"}, "theirs"),
        (["train.project=mine"], {"WANDB_PROJECT": "theirs"}, "mine"),
        (["use_wandb=null", "train.report_to=wandb"], {}, "ragfit"),
    ],
)
def test_the_project(config, tmp_path, monkeypatch, keys, environment, project):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ragfit.train(tiny_trainer(config("use_wandb=true", "train.max_steps=1", *keys)))
    assert read_run(tmp_path / "out")[0].project == project


def test_a_failing_run_is_marked_as_failed(config, tmp_path):
    from transformers import TrainerCallback

    class Fail(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("out of memory, say")

    with pytest.raises(RuntimeError, match="say"):
        ragfit.train(tiny_trainer(config("use_wandb=true"), [Fail()]))
    assert read_run(tmp_path / "out")[-1] == 1 and wandb.run is None


def test_a_run_of_the_user_s_own_is_used_and_left_open(config, tmp_path):
    with wandb.init(project="own", dir=tmp_path) as own:
        ragfit.train(tiny_trainer(config("use_wandb=true", "train.max_steps=1")))
        assert wandb.run is own
    run, _, history, _, _ = read_run(tmp_path)
    assert run.project == "own" and any("train/loss" in entry for entry in history)
    assert not (tmp_path / "out" / "wandb").exists()


def test_tracking_is_off_unless_asked_for(config, tmp_path):
    ragfit.train(tiny_trainer(config("train.max_steps=1", "experiment=group")))
    assert not (tmp_path / "out" / "wandb").exists()


def test_no_secret_is_written_and_nobody_is_asked_to_log_in(config, tmp_path):
    """A process of its own, with secrets in its environment, WANDB_MODE unset, and nobody at the keyboard."""
    save_config(config("use_wandb=true", "train.hub_token=hf_secret000"), tmp_path / "run.yaml")
    secrets = {**SECRETS, "PYTHONPATH": str(PROJECT_ROOT)}
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | secrets
    code = "import sys, ragfit; ragfit.run(ragfit.load_config(sys.argv[1]))"
    command = [sys.executable, "-c", code, tmp_path / "run.yaml"]
    result = subprocess.run(command, env=env, cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "not logged in to wandb, so the run is kept offline" in result.stderr
    assert any("train/loss" in entry for entry in read_run(tmp_path / "out")[2])
    content = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(content) > 10
    for secret in (*SECRETS.values(), "hf_secret000"):
        assert [path for path, data in content.items() if secret.encode() in data] == []
