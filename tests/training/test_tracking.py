"""Weights & Biases (the real client, offline) and TensorBoard: what a run leaves there, and what it must not."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from shutil import copytree

import pytest
from omegaconf import OmegaConf
from tiny_runs import losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import TrainerCallback

import ragfit
from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import Interrupted

wandb = pytest.importorskip("wandb")

SECRETS = {
    "MY_API_KEY": "sk-secret123", "HF_TOKEN": "hf_secret456", "DATABASE_URL": "postgres://me:pass789@db/x",
    "AWS_SECRET_ACCESS_KEY": "awsSecret/000111", "PLAIN_PASSWORD": "opensesame222",
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nobody is logged in, nothing is sent, and the client starts anew for each test."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TENSORBOARD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    yield
    wandb.teardown()


@pytest.fixture
def config(tiny_phi3, write_rows, tmp_path):
    rows, simple = write_rows(question_rows(12)), ("train.save_strategy=no", "train.max_steps=3", "limit=6")
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


@pytest.mark.slow
def test_a_run_is_tracked(config, tmp_path):
    cfg = config("use_wandb=true", "experiment=my group", "wandb_entity=my-team", "train.learning_rate=0.01", "dev_split=2",
                 "train.eval_strategy=steps", "train.eval_steps=1")  # fmt: skip
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    assert wandb.run is None and not {"WANDB_DIR", "WANDB_RUN_GROUP"} & os.environ.keys()  # nothing of it is left
    run, settings, history, _, code = read_run(tmp_path / "out")
    assert (run.run_group, run.entity, run.project, code) == ("my group", "my-team", "ragfit", 0)
    assert settings["ragfit.data_file"] == cfg.data_file and settings["ragfit.model.lora.r"] == 16
    assert settings["learning_rate"] == settings["ragfit.train.learning_rate"] == 0.01
    assert [entry["train/loss"] for entry in history if "train/loss" in entry] == losses(trainer)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["eval/loss"] for entry in history if "eval/loss" in entry] == evaluated and len(evaluated) == 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[-1])  # after the run, with nobody to tell


class Breaks(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        raise RuntimeError("it broke")


class Stops(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("callback", "error", "code"), [(Breaks, Exception, 1), (Stops, Interrupted, 0)])
def test_how_a_run_ended(config, tmp_path, callback, error, code):
    with pytest.raises(error, match="it broke|stopped by SIGTERM"):
        ragfit.train(tiny_trainer(config("use_wandb=true"), [callback()]))
    assert read_run(tmp_path / "out")[-1] == code and wandb.run is None


@pytest.mark.slow
def test_a_tracker_that_cannot_start_ends_the_run_at_its_start(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    trainer = tiny_trainer(config("use_wandb=true"))
    with pytest.raises(Exception, match="mode"):
        ragfit.train(trainer)
    assert trainer.state.global_step == 0 and ragfit.run_status(tmp_path / "out").state == "failed"


@pytest.mark.slow
def test_a_run_of_the_user_s_own_is_used_and_left_open(config, tmp_path):
    with wandb.init(project="own", dir=tmp_path) as own:
        ragfit.train(tiny_trainer(config("use_wandb=true", "train.max_steps=1")))
        assert wandb.run is own
    run, _, history, _, _ = read_run(tmp_path)
    assert run.project == "own" and any("train/loss" in entry for entry in history)
    assert not (tmp_path / "out" / "wandb").exists()


def test_a_package_that_is_missing_is_told_before_the_model_is_loaded(config, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_mlflow_available", lambda: False)
    monkeypatch.setattr("ragfit.training.run.load_model", lambda cfg: pytest.fail("the model was loaded"))
    with pytest.raises(Exception, match="MLflowCallback requires mlflow to be installed. Run `pip install mlflow`"):
        tiny_trainer(config("train.report_to=mlflow"))


@pytest.mark.slow
def test_tensorboard(config, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ragfit.train(
        tiny_trainer(config("train.report_to=tensorboard", "experiment=group", "train.hub_token=hf_secret000"))
    )
    (events,) = (tmp_path / "out").glob("runs/*/events.*")
    read = EventAccumulator(str(events)).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [1, 2, 3]
    text = read.Tensors("args/text_summary")[0].tensor_proto.string_val[0]
    assert b'"ragfit.experiment": "group"' in text and b"hf_secret000" not in text
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))  # the user's own place wins
    ragfit.train(tiny_trainer(config("train.report_to=tensorboard", "train.max_steps=1")))
    assert list((tmp_path / "boards").glob("events.*"))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_writes_into_the_output_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ragfit.train(tiny_trainer(config("train.report_to=mlflow", "train.max_steps=1")))
    assert (tmp_path / "out" / "mlflow.db").is_file() and not (tmp_path / "mlruns").exists()


@pytest.mark.slow
def test_no_secret_is_written_and_nobody_is_asked_to_log_in(config, tmp_path):
    """The command line in a process of its own: secrets in its environment, its configuration and the repository's
    address, what it runs on named by the environment, no WANDB_MODE, and nobody at the keyboard."""
    cfg = config("use_wandb=true", "train.hub_token=hf_secret000", "train.save_strategy=steps", "train.save_steps=1")
    cfg.model.generation = {"api_key": "inner-key-444"}
    (tmp_path / "configs").mkdir()
    OmegaConf.save(cfg, tmp_path / "configs" / "run.yaml")  # with the secrets in it, as a user's own file may have them
    model = copytree(cfg.model.model_name_or_path, tmp_path / "planted-model-777")
    here = tmp_path / "repository"
    here.mkdir()
    for command in ("init -q", "remote add origin https://me:gitsecret555@example.org/x.git"):
        subprocess.run(["git", *command.split()], cwd=here, check=True)
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | SECRETS
    env |= {"PYTHONPATH": str(PROJECT_ROOT), "ROWS_OF_MINE": cfg.data_file, "MODEL_OF_MINE": str(model)}
    command = [sys.executable, "-m", "ragfit.training", "-cp", str(tmp_path / "configs"), "-cn", "run",
               "model.model_name_or_path=${oc.env:MODEL_OF_MINE}", "experiment=${oc.env:HF_TOKEN}", "data_file=${oc.env:ROWS_OF_MINE}"]  # fmt: skip
    result = subprocess.run(
        command, env=env, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    assert "not logged in, so the run is kept offline" in result.stdout + result.stderr
    run, settings, history, _, _ = read_run(tmp_path / "out")
    assert any("train/loss" in entry for entry in history)
    assert run.run_group == "${oc.env:HF_TOKEN}"
    planted = [*SECRETS.values(), "hf_secret000", "inner-key-444", "gitsecret555", model.name]
    told = result.stdout + result.stderr
    assert [secret for secret in planted if secret in told] == [model.name]  # "Loading …", on the user's own screen
    content = {
        path.relative_to(tmp_path / "out"): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert len(content) > 20 and any(path.name == "training_args.bin" for path in content)
    for secret in planted:
        found = [str(path) for path, data in content.items() if secret.encode() in data]
        assert found == [], secret
    tracked = {str(path): data for path, data in content.items() if path.parts[0] == "wandb"}
    assert [path for path, data in tracked.items() if cfg.data_file.encode() in data] == []
    assert not [
        path for path in tracked if path.endswith(("wandb-metadata.json", "output.log", ".patch", ".py", ".ipynb"))
    ]
