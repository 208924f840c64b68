"""TensorBoard, MLflow and trackio, the real packages where they are installed: what a run leaves there, and where."""

import html
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_runs import question_rows, tiny_config, tiny_trainer

import ragfit
from ragfit.config.overrides import override
from ragfit.config.paths import PROJECT_ROOT
from ragfit.config.save import save_config
from ragfit.errors import ConfigError

SERVICES = ("tensorboard", "mlflow", "trackio")
INSTALLED = [name for name in SERVICES if importlib.util.find_spec(name)]
SECRETS = {"HF_TOKEN": "hf_planted0001", "AWS_SECRET_ACCESS_KEY": "awsplanted0002"}
HOSTILE = "```\n<script>alert(1)</script>"
RUN = "import sys, ragfit; ragfit.run(ragfit.load_config(sys.argv[1]))"


def needs(name):
    return pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed: pip install 'ragfit[{name}]'")


def environment(home, **more):
    dropped = ("WANDB_", "MLFLOW_", "TRACKIO_", "TENSORBOARD_", "HF_HOME", "DO_NOT_TRACK", "CI")
    names = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return names | {"HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT), "HF_HUB_OFFLINE": "1"} | SECRETS | more


def said(page):
    """The text of a page, which no script is in."""
    assert "<script" not in page and "<mark" in page
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """(output folder, working folder, home, what was printed, configuration) of a run that reports to all that is installed."""
    if not INSTALLED:
        pytest.skip("none of tensorboard, mlflow and trackio is installed")
    place = tmp_path_factory.mktemp("reporting")
    rows, home, here = place / "rows<script>.jsonl", place / "home", place / "here"
    rows.write_text(
        "".join(json.dumps(row) + "\n" for row in [{"prompt": HOSTILE, "answers": ["yes"]}, *question_rows(5)])
    )
    home.mkdir(), here.mkdir()
    keys = [
        "train.max_steps=3",
        "train.save_strategy=no",
        "train.hub_token=hf_planted0003",
        "experiment=group",
        override("train.report_to", INSTALLED),
    ]
    cfg = tiny_config(tiny_model("phi3"), rows, place / "out", *keys)
    OmegaConf.save(cfg, place / "run.yaml")  # with the token in it
    command = [sys.executable, "-c", RUN, place / "run.yaml"]
    result = subprocess.run(
        command, env=environment(home), cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "goes on without it" not in result.stderr, result.stderr[-3000:]
    return place / "out", here, home, result.stdout + result.stderr, cfg


@pytest.mark.slow
def test_nothing_is_written_elsewhere_and_no_secret_anywhere(finished):
    out, here, home, told, _ = finished
    assert files(here) == {}
    assert [name for name in files(home) if any(service in name for service in (*SERVICES, "mlruns"))] == []
    written = files(out)
    assert {name.partition("/")[0] for name in written} >= {
        place
        for service, place in (("tensorboard", "runs"), ("mlflow", "mlflow.db"), ("trackio", "trackio"))
        if service in INSTALLED
    }
    for secret in (*SECRETS.values(), "hf_planted0003"):
        assert [name for name, content in written.items() if secret.encode() in content] == [] and secret not in told


@pytest.mark.slow
@needs("tensorboard")
def test_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    (events,) = finished[0].glob("runs/*/events.*")
    read = EventAccumulator(str(events)).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [1, 2, 3]
    texts = {
        tag.removesuffix("/text_summary"): read.Tensors(tag)[0].tensor_proto.string_val
        for tag in read.Tags()["tensors"]
    }
    assert b"experiment: group" in texts["configuration"][0] and b"6 of 6 rows kept" in texts["data"][0]
    shown = text_array_to_html(np.array(texts["data"]), enable_markdown=True)
    assert "<code>" in shown and "&lt;script&gt;" in shown and "<script" not in shown  # the file's name


@pytest.mark.slow
@needs("mlflow")
def test_mlflow(finished):
    out, _, _, _, cfg = finished
    code = """
import json, sys, mlflow
client = mlflow.MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
(experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
(run,) = client.search_runs([experiment.experiment_id])
losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
names = {f.path for f in client.list_artifacts(run.info.run_id)}
folder = client.download_artifacts(run.info.run_id, "", sys.argv[2])
print(json.dumps([experiment.name, experiment.artifact_location, run.info.status, run.data.params, losses, sorted(names)]))
"""
    fetched = out.parent / "fetched"
    fetched.mkdir()
    command = [sys.executable, "-c", code, out, fetched]
    result = subprocess.run(
        command, env=environment(finished[2]), capture_output=True, text=True, timeout=120, cwd=fetched
    )
    assert result.returncode == 0, result.stderr
    name, place, status, params, losses, artifacts = json.loads(result.stdout.splitlines()[-1])
    assert (name, place, status) == ("group", (out / "mlruns").as_uri(), "FINISHED")
    assert params["learning_rate"] == "0.0001" and "hub_token" not in params
    assert [step for step, _ in losses] == [1, 2, 3] and artifacts == ["loss_mask.html", "ragfit.yaml", "report.html"]
    assert "<script>alert(1)</script>" in said((fetched / "loss_mask.html").read_text(encoding="utf-8"))
    assert ragfit.load_config(fetched / "ragfit.yaml").experiment == "group"


@pytest.mark.slow
@needs("trackio")
def test_trackio(finished):
    (path,) = finished[0].glob("trackio/ragfit.db")
    with sqlite3.connect(path) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        logged = [json.loads(value) for (value,) in database.execute("select metrics from metrics order by id")]
        (config,) = [json.loads(value) for (value,) in database.execute("select config from configs")]
    assert {"metrics", "configs"} <= tables
    assert [entry["train/global_step"] for entry in logged if "train/loss" in entry] == [1, 2, 3]
    assert config["ragfit"]["experiment"] == "group" and "hub_token" not in config["ragfit"]["train"]
    assert len([entry for entry in logged if {"data/loss_mask", "data/report"} <= entry.keys()]) == 1
    (page,) = [
        path
        for path in finished[0].glob("trackio/media/**/*.html")
        if "What is learned" in path.read_text(encoding="utf-8")
    ]
    assert "<script>alert(1)</script>" in said(page.read_text(encoding="utf-8"))


@pytest.mark.slow
@needs("mlflow")
@needs("tensorboard")
def test_the_user_s_own_places_win(tiny_phi3, write_rows, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    cfg = tiny_config(tiny_phi3, write_rows(question_rows(3)), tmp_path / "out", "train.max_steps=1", "train.save_strategy=no",
                      "train.report_to=[tensorboard,mlflow]")  # fmt: skip
    save_config(cfg, tmp_path / "run.yaml")
    more = {
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "boards"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mine.db",
        "MLFLOW_EXPERIMENT_NAME": "mine",
    }
    command = [sys.executable, "-c", RUN, tmp_path / "run.yaml"]
    result = subprocess.run(
        command, env=environment(home, **more), cwd=home, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and "goes on without it" not in result.stderr, result.stderr[-2000:]
    assert list((tmp_path / "boards").glob("events.*")) and (tmp_path / "mine.db").is_file()
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "mlflow.db").exists()


@pytest.mark.parametrize("name", SERVICES)
def test_a_package_that_is_missing_is_told_before_the_model_is_loaded(
    tiny_phi3, write_rows, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda package, find=importlib.util.find_spec: None if package.startswith(name) else find(package),
    )
    monkeypatch.setattr("ragfit.training.run.load_model", lambda cfg: pytest.fail("the model was loaded"))
    cfg = tiny_config(tiny_phi3, write_rows(question_rows(3)), tmp_path / "out", f"train.report_to={name}")
    with pytest.raises(
        ConfigError, match=rf"^train.report_to: {name} needs the package {name}, .* pip install 'ragfit\[{name}\]'"
    ):
        tiny_trainer(cfg)
