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


def ragfit(*words):
    return forked.command("ragfit", *words)


@pytest.fixture
def words(tiny_llama, write_rows):
    rows = write_rows(ROWS)
    return (
        "look",
        f"data_file={rows}",
        "output_key=answers",
        f"model.model_name_or_path={tiny_llama}",
        "model.completion_start=",
        "instruction=null",
    )


@pytest.mark.slow
def test_a_look_at_a_row(words):
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-m", "ragfit", *words]
    shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert shown.returncode == 0 and shown.stderr == ""
    first, rest = shown.stdout.split("\n", 1)
    assert first.endswith("rows.jsonl, configuration: training")
    assert "train: 2 of 2 rows kept" in rest and "[warning] empty output, 1 row (train 1)" in rest
    assert "▶Rome [1]<|im_end|>◀" in rest
    assert "\x1b" not in shown.stdout and "\u202e" not in shown.stdout  # neither the data's nor, into a pipe, our own


@pytest.mark.slow
def test_a_terminal_that_is_not_utf_8_gets_escapes(words):
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ragfit", *words]
    shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert shown.returncode == 0 and shown.stderr == ""
    assert r"\u25b6Rome [1]<|im_end|>\u25c0" in shown.stdout


def test_all_of_it_as_json(words):
    found = json.loads(ragfit(*words, "--row", "1", "--json").stdout)
    assert found["train"]["kept"] == [0, 1] and [finding["kind"] for finding in found["findings"]] == ["empty output"]
    row = found["row"]
    assert (
        row["number"] == 1
        and row["text"].startswith(row["prompt"])
        and "".join(t["text"] for t in row["tokens"]) == row["text"]
    )
    assert [token["text"] for token in row["tokens"] if token["loss"]] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["--row", "7"],
            "error: row 7 of train: there is no such prepared row. There are 2 in train and 0 in dev (dev_split), from 0.",
        ),
        (
            ["--part", "dev"],
            "error: row 0 of dev: there is no such prepared row. There are 2 in train and 0 in dev (dev_split), from 0.",
        ),
        (["train.lerning_rate=1"], "Did you mean train.learning_rate?"),
        (
            ["train.hub_token=hf_abcdefghijklmnopqrstuvwxyz0123456789"],
            "error: train.hub_token: a command line is kept by shells",
        ),
    ],
)
def test_what_cannot_be_looked_at(words, more, expected):
    shown = ragfit(*words, *more)
    assert shown.returncode == 1 and expected in shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.slow
def test_a_look_loads_neither_torch_nor_transformers_models(words):
    code = (
        "import sys; from ragfit.__main__ import main\n"
        "try: main(sys.argv[1:])\nfinally: print([m for m in ('torch', 'trl', 'peft', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert shown.stdout.splitlines()[-1] == "[]", shown.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name):
    shown = ragfit(name, "--help")
    assert (
        f"ragfit.{name}" in shown.stdout + shown.stderr
        or "usage" in shown.stdout + shown.stderr
        or "Hydra" in shown.stdout
    )
    assert "Traceback" not in shown.stderr


def test_an_unknown_command():
    shown = ragfit("trian")
    assert (
        shown.returncode == 1
        and "  look " in shown.stderr
        and shown.stderr.endswith("error: there is no command 'trian'. Take one of these.\n")
    )
