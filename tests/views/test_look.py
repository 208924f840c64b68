"""`python -m ragfit look` and its like: what a terminal shows is what the notebooks show."""

import json
import os
import subprocess
import sys

import forked
import pytest

from ragfit.__main__ import COMMANDS
from ragfit.config.paths import PROJECT_ROOT

ROWS = [
    {"prompt": "Document 1: Rome \x1b[31mis\u202e old.\nWhere?", "answers": ["Rome [1]"]},
    {"prompt": "Else?", "answers": [""]},
]


@pytest.fixture
def words(tiny_llama, write_rows):
    keys = [f"model.model_name_or_path={tiny_llama}", "model.completion_start=", "instruction=null"]
    return ("look", f"data_file={write_rows(ROWS)}", "output_key=answers", *keys)


@pytest.mark.slow
def test_a_look_at_a_row(words):
    code = (
        "import sys; from ragfit.__main__ import main\ntry: main(sys.argv[1:])\nfinally: "
        "print([m for m in ('torch', 'trl', 'peft', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, *words]
    shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert shown.returncode == 0 and shown.stderr == ""
    first, *rest, imported = shown.stdout.splitlines()
    assert first.endswith("rows.jsonl, configuration: training") and imported == "[]"
    assert r"\u25b6Rome [1]<|im_end|>\u25c0" in "\n".join(rest) and "empty output" in "\n".join(rest)
    assert "\x1b" not in shown.stdout and "\u202e" not in shown.stdout  # neither the data's nor, into a pipe, our own


def test_all_of_it_as_json(words):
    found = json.loads(forked.command("ragfit", *words, "--row", "1", "--json").stdout)
    assert found["train"]["kept"] == [0, 1] and [finding["kind"] for finding in found["findings"]] == ["empty output"]
    row = found["row"]
    assert row["number"] == 1 and row["text"].startswith(row["prompt"])
    assert "".join(token["text"] for token in row["tokens"]) == row["text"]
    assert [token["text"] for token in row["tokens"] if token["loss"]] == ["<|im_end|>"]


NONE = "error: row {}: there is no such prepared row. There are 2 in train and 0 in dev"
WRONG = {
    "--row 7": NONE.format("7 of train"),
    "--part dev": NONE.format("0 of dev"),
    "train.lerning_rate=1": "Did you mean train.learning_rate?",
}


@pytest.mark.parametrize(("more", "expected"), WRONG.items())
def test_what_cannot_be_looked_at(words, more, expected):
    shown = forked.command("ragfit", *words, *more.split())
    assert shown.returncode == 1 and expected in shown.stderr and "Traceback" not in shown.stderr


def test_every_command_says_what_it_takes_and_an_unknown_one_that_it_is_none():
    for name in COMMANDS:
        shown = forked.command("ragfit", name, "--help")
        said = shown.stdout + shown.stderr
        assert f"ragfit.{name}" in said or "usage" in said or "Hydra" in said
        assert "Traceback" not in said
    shown = forked.command("ragfit", "trian")
    assert shown.returncode == 2 and "invalid choice: 'trian'" in shown.stderr and "look" in shown.stderr
