"""Weights & Biases (the real client, offline) and TensorBoard: what a run leaves there, and what it must not."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from tiny_runs import losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import TrainerCallback

import ragfit
from ragfit.config.paths import PROJECT_ROOT

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


def told(folder):
    """What the one offline run in a folder was told: text in protobufs, in blocks whose headers may cut it in two."""
    wandb.teardown()  # its service may still be writing
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    return b"".join(data[at + 7 : at + 32768] for at in range(0, len(data), 32768)).decode(errors="replace")


@pytest.mark.slow
def test_a_run_is_tracked(config, tmp_path):
    cfg = config("use_wandb=true", "experiment=my group", "wandb_entity=my-team", "train.learning_rate=0.012345",
                 "dev_split=2", "train.eval_strategy=steps", "train.eval_steps=1")  # fmt: skip
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    assert wandb.run is None
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    wanted = ["my group", "my-team", cfg.data_file, "ragfit.model.lora.r", "0.012345", *losses(trainer), *evaluated]
    text = told(tmp_path / "out")
    assert [word for word in wanted if str(word) not in text] == [] and len(evaluated) == 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[-1])  # after the run, with nobody to tell


@pytest.mark.slow
def test_a_run_that_fails_and_a_tracker_that_cannot_start(config, tmp_path, monkeypatch):
    class Breaks(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        ragfit.train(tiny_trainer(config("use_wandb=true"), [Breaks()]))
    assert wandb.run is None
    wandb.teardown()  # it reads its settings once
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
    assert "train/loss" in told(tmp_path) and not (tmp_path / "out" / "wandb").exists()


@pytest.mark.slow
def test_no_secret_is_written(config, tmp_path):
    """The command line in a process of its own: secrets in its environment, its configuration and the repository's
    address, its rows named by the environment, and nobody at the keyboard."""
    cfg = config("use_wandb=true", "train.hub_token=hf_secret000", "train.save_strategy=steps", "train.save_steps=1")
    cfg.model.generation = {"api_key": "inner-key-444"}
    (tmp_path / "configs").mkdir()
    OmegaConf.save(cfg, tmp_path / "configs" / "run.yaml")  # with the secrets in it, as a user's own file may have them
    here = tmp_path / "repository"
    here.mkdir()
    for command in ("init -q", "remote add origin https://me:gitsecret555@example.org/x.git"):
        subprocess.run(["git", *command.split()], cwd=here, check=True)
    env = os.environ | SECRETS | {"PYTHONPATH": str(PROJECT_ROOT), "ROWS_OF_MINE": cfg.data_file}
    command = [sys.executable, "-m", "ragfit.training", "-cp", str(tmp_path / "configs"), "-cn", "run",
               "experiment=${oc.env:HF_TOKEN}", "data_file=${oc.env:ROWS_OF_MINE}"]  # fmt: skip
    result = subprocess.run(command, env=env, cwd=here, stdin=subprocess.DEVNULL, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert "${oc.env:HF_TOKEN}" in told(tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    content = {str(path): path.read_bytes() for path in files} | {"the screen": result.stdout + result.stderr}
    assert len(content) > 20 and any(path.name == "training_args.bin" for path in files)
    planted = [*SECRETS.values(), "hf_secret000", "inner-key-444", "gitsecret555"]
    assert [(path, secret) for secret in planted for path, data in content.items() if secret.encode() in data] == []
    tracked = {str(path) for path in files if "wandb" in path.parts}
    assert [path for path in tracked if cfg.data_file.encode() in content[path]] == []
    ours = ("wandb-metadata.json", "output.log", ".patch", ".py", ".ipynb")
    assert [path for path in tracked if path.endswith(ours)] == []
