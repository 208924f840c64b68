"""Weights & Biases: the real client in offline mode, and the file it leaves, read back."""

import html.parser
import json
import os
import struct
import subprocess
import sys
from shutil import copytree

import pytest
from omegaconf import OmegaConf
from tiny_runs import losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import Interrupted, RagfitError

wandb = pytest.importorskip("wandb")

SECRETS = {
    "MY_API_KEY": "sk-secret123", "HF_TOKEN": "hf_secret456", "DATABASE_URL": "postgres://me:pass789@db/x",
    "AWS_SECRET_ACCESS_KEY": "awsSecret/000111", "PLAIN_PASSWORD": "opensesame222", "RUN_NAME_OF_MINE": "planted-name-333",
}  # fmt: skip
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


@pytest.mark.slow
def test_a_run_is_tracked(config, tmp_path):
    cfg = config("use_wandb=true", "experiment=my group", "wandb_entity=my-team", "train.learning_rate=0.01")
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    assert wandb.run is None  # finished
    run, settings, history, _, code = read_run(tmp_path / "out")
    named = (run.run_group, run.entity, run.project, run.job_type)
    assert named == ("my group", "my-team", "ragfit", "train") and code == 0
    assert settings["data_file"] == cfg.data_file and settings["model"]["lora"]["r"] == 16
    assert settings["train"]["learning_rate"] == 0.01 and settings["train"]["report_to"] == "wandb"
    assert settings["translated"]["train.warmup_ratio"] == "0.03 -> train.warmup_steps"
    assert [entry["train/loss"] for entry in history if "train/loss" in entry] == losses(trainer)


class Page(html.parser.HTMLParser):
    """The tags, the text, and the text with loss of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.loss, self._marks = set(), "", [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not [name for name, value in attributes if name.startswith("on") or name in ("src", "href", "srcdoc")]
        self._marks += tag == "mark"
        if tag == "mark" and self._marks == 1:
            self.loss.append("")

    def handle_endtag(self, tag):
        self._marks -= tag == "mark"

    def handle_data(self, data):
        self.text += data
        if self._marks:
            self.loss[-1] += data


def media(folder, name):
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/html/data/{name}_*.html")
    return path


@pytest.mark.slow
def test_the_report_and_what_is_learned_of_a_few_rows_are_tracked(config, write_rows, tmp_path):
    rows = [
        *question_rows(3),
        question_rows(1)[0],
        {"prompt": "<script>alert(1)</script>", "answers": ["<img src=x onerror=alert(2)>"]},
    ]
    cfg = config("use_wandb=true", "experiment='<script>alert(3)</script>'", "limit=null")
    cfg.data_file = str(write_rows(rows[::-1], "hostile<script>.jsonl"))
    ragfit.train(tiny_trainer(cfg))
    report = Page(media(tmp_path / "out", "report"))
    assert "duplicate rows" in report.text and "hostile<script>.jsonl" in report.text and "script" not in report.tags
    shown = Page(media(tmp_path / "out", "loss_mask"))
    assert "<script>alert(1)</script>" in shown.text and not {"script", "img", "link", "iframe"} & shown.tags
    answers = [text for text in shown.loss if "<|im_end|>" in text]
    assert [text.partition("<|im_end|>")[0].replace("·", " ") for text in answers] == [
        "<img src=x onerror=alert(2)>",
        "The answer is 0.",
        "The answer is 4.",
    ]
    assert "default-src 'none'" in media(tmp_path / "out", "loss_mask").read_text(encoding="utf-8")


@pytest.mark.slow
def test_evaluation_during_the_run_is_tracked_and_after_it_is_not_a_crash(config, tmp_path, capsys):
    cfg = config(
        "use_wandb=true", "dev_split=2", "train.eval_strategy=steps", "train.eval_steps=1", "train.max_steps=2"
    )
    trainer = tiny_trainer(cfg)
    ragfit.train(trainer)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    _, _, history, _, _ = read_run(tmp_path / "out")
    assert [entry["eval/loss"] for entry in history if "eval/loss" in entry] == evaluated and len(evaluated) == 2
    assert ragfit.dev_loss(trainer) == pytest.approx(evaluated[-1])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[-1])


@pytest.mark.slow
def test_the_command_line_s_dev_loss_after_a_tracked_run(config, capsys):
    ragfit.run(config("use_wandb=true", "dev_split=2", "train.max_steps=1"))
    assert "dev loss " in capsys.readouterr().out


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_failing_run_is_marked_as_failed(config, tmp_path):
    from transformers import TrainerCallback

    class Fail(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("out of memory, say")

    with pytest.raises(
        RagfitError, match="The run failed: out of memory, say. Lower train.per_device_train_batch_size"
    ):
        ragfit.train(tiny_trainer(config("use_wandb=true"), [Fail()]))
    assert read_run(tmp_path / "out")[-1] == 1 and wandb.run is None


@pytest.mark.slow
def test_an_interrupted_run_is_marked_as_such(config, tmp_path):
    import signal

    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        ragfit.train(tiny_trainer(config("use_wandb=true"), [Stop()]))
    assert read_run(tmp_path / "out")[-1] == 255


@pytest.mark.slow
def test_a_tracker_that_breaks_ends_nothing(config, tmp_path, caplog):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                wandb.run.finish()

    trainer = tiny_trainer(config("use_wandb=true"), [Break()])
    assert (ragfit.train(trainer) / "adapter_model.safetensors").is_file()
    assert len(losses(trainer)) == 3
    assert [record.getMessage() for record in caplog.records if "goes on without it" in record.getMessage()][
        0
    ].startswith("wandb failed (")


@pytest.mark.slow
def test_a_tracker_that_cannot_start_ends_nothing(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    trainer = tiny_trainer(config("use_wandb=true"))
    assert (ragfit.train(trainer) / "adapter_model.safetensors").is_file() and len(losses(trainer)) == 3
    (message,) = [record.getMessage() for record in caplog.records if "goes on without it" in record.getMessage()]
    assert message.startswith("wandb failed (") and wandb.run is None


@pytest.mark.slow
@pytest.mark.parametrize("key", ["too-short", "0123456789" * 4])
def test_a_login_or_network_that_does_not_work_keeps_the_run_offline(config, tmp_path, monkeypatch, caplog, key):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    trainer = tiny_trainer(config("use_wandb=true"))
    ragfit.train(trainer)
    assert "so the run is kept offline. Send it later with `wandb sync`" in caplog.text and key not in caplog.text
    _, _, history, _, code = read_run(tmp_path / "out")
    assert [entry["train/loss"] for entry in history if "train/loss" in entry] == losses(trainer) and code == 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_secret_is_written_and_nobody_is_asked_to_log_in(config, tmp_path):
    """The command line in a process of its own: secrets in its environment, its configuration and the repository's
    address, what it runs on named by the environment, no WANDB_MODE, and nobody at the keyboard."""
    cfg = config("use_wandb=true", "train.hub_token=hf_secret000", "train.save_strategy=steps", "train.save_steps=1")
    cfg.train.model_init_kwargs = {"api_key": "inner-key-444"}
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
               "model.model_name_or_path=${oc.env:MODEL_OF_MINE}", "train.run_name=${oc.env:RUN_NAME_OF_MINE}", "experiment=${oc.env:HF_TOKEN}", "data_file=${oc.env:ROWS_OF_MINE}"]  # fmt: skip
    result = subprocess.run(
        command, env=env, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "not logged in to wandb, so the run is kept offline" in result.stdout + result.stderr
    run, settings, history, _, _ = read_run(tmp_path / "out")
    assert any("train/loss" in entry for entry in history)
    assert run.run_group == "${oc.env:HF_TOKEN}" and settings["run_name"] == "${oc.env:RUN_NAME_OF_MINE}"
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
