"""Pushing an adapter: the real client of the Hugging Face hub against a stand-in on loopback."""

import subprocess
import sys

import pytest
from hub_standin import hub
from omegaconf import OmegaConf
from tiny_runs import question_rows, tiny_config

from ragfit.__main__ import main
from ragfit.config.paths import PROJECT_ROOT
from ragfit.runs.hub import check_tag

CONTENT = {
    "adapter_model.safetensors": b"\x00weights" * 100,
    "ragfit.yaml": b"model: {}\n",
    "instruction.txt": "東京".encode(),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of a checkpoint; the client does not care what they hold."""
    checkpoint = tmp_path / "a run" / "checkpoint"
    checkpoint.mkdir(parents=True)
    for name, content in CONTENT.items():
        (checkpoint / name).write_bytes(content)
    return checkpoint


def python(env, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)


def test_pushing_a_folder_later(folder):
    """Without what a trainer's checkpoint holds beside the weights: some of it is pickled, with the arguments' token."""
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", ".env", ".cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    with hub() as there:
        result = python(there.environment(), "-m", "ragfit", "push", folder, "org/my-adapter")
    assert result.returncode == 0, result.stderr
    assert f"Pushed {folder} to {there.url}/org/my-adapter" in result.stderr
    assert there.files == {"org/my-adapter": CONTENT}
    told = [(body["organization"], body["name"], body["visibility"]) for body in there.created]
    assert told == [("org", "my-adapter", "private")] and there.tokens == {"hf_dummy"} and there.unknown == []


@pytest.mark.slow
def test_a_run_pushes_what_it_saved(tiny_phi3, write_rows, tmp_path):
    keys = ["hfhub_tag=my-adapter", "train.max_steps=1", "train.hub_token=hf_own", "train.save_strategy=no"]
    cfg = tiny_config(tiny_phi3, write_rows(question_rows(3)), tmp_path / "out", *keys)
    OmegaConf.save(cfg, tmp_path / "run.yaml")  # with the token in it
    code = "import sys, ragfit; ragfit.run(ragfit.load_config(sys.argv[1]))"
    with hub() as there:
        result = python(there.environment(), "-c", code, tmp_path / "run.yaml")
    assert result.returncode == 0, result.stderr
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out" / "checkpoint").iterdir()}
    assert there.files == {"somebody/my-adapter": saved}
    assert set(saved) == {
        "adapter_model.safetensors", "adapter_config.json", "ragfit.yaml", "instruction.txt", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "README.md", "fingerprint.json",
    }  # fmt: skip
    assert "- training loss: " in saved["README.md"].decode()
    assert not [name for name, content in saved.items() if str(tmp_path).encode() in content and name != "ragfit.yaml"]
    assert there.created[0]["visibility"] == "private" and there.unknown == []
    assert there.tokens == {"hf_own"}  # train.hub_token goes before the environment's
    assert not [name for name, content in saved.items() if b"hf_own" in content]


FAILING = {
    "no login": ({"status": 401}, {"HF_TOKEN": "", "HF_TOKEN_PATH": "/nonexistent/token"}, "401"),
    "in the middle": ({"status": 403, "failing": "/large/"}, {}, "403"),
    "public": ({"public": ["org/my-adapter"]}, {}, "exists and is public"),
    "silent": ({"status": "silence", "failing": "/repos/create"}, {}, "timed out"),
}


@pytest.mark.parametrize(("settings", "environment", "reason"), FAILING.values(), ids=FAILING)
def test_a_failed_push_says_how_to_push_later(folder, settings, environment, reason):
    code = "import sys, ragfit.runs.hub as hub; hub.SILENCE = {}; from ragfit.__main__ import main; main(sys.argv[1:])"
    code = code.format(0.5 if reason == "timed out" else 120.0)
    with hub(**settings) as there:
        result = python(there.environment(**environment), "-c", code, "push", folder, "org/my-adapter")
    assert there.files.get("org/my-adapter", {}) == {}
    assert result.returncode == 1 and "Traceback" not in result.stderr
    message = next(line for line in result.stderr.splitlines() if line.startswith("hfhub_tag: "))
    later = f"The adapter is safe in {folder}; push it later with: python -m ragfit push '{folder}' org/my-adapter"
    assert message.startswith("hfhub_tag: pushing to org/my-adapter failed (") and message.endswith(later)
    assert reason in message and "hf_dummy" not in result.stderr + result.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT


def test_nothing_to_push_and_nowhere_to(folder):
    for words, said in (
        ((folder / "nothing", "org/name"), "checkpoint: .* holds no adapter and no model. Name the folder checkpoint"),
        ((folder, "no name"), "hfhub_tag: 'no name' is not a repository name"),
        ((folder, "a/b/c"), "hfhub_tag: 'a/b/c' is not a repository name"),
    ):
        with pytest.raises(SystemExit, match=f"error: {said}"):
            main(["push", *map(str, words)])
    check_tag("my.org/name-1_b")
