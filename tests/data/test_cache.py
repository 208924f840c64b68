"""The cache of prepared rows: the same rows come from it, anything that changes them does not."""

import datetime
import gzip
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATES, make_config, make_tokenizer
from tokenizers import normalizers, pre_tokenizers

import ragfit
from ragfit.data import cache
from ragfit.errors import DataError

ROWS = [{"prompt": f"Document {i}. Where? " + "word " * (i * 5), "answers": [f"7{i} BC"]} for i in range(12)]
ROWS += [ROWS[0], {"prompt": "<|im_end|> x", "answers": " "}, {"prompt": "東京 é", "answers": "👩‍👩‍👧"}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of the test's own; the folder of its entries."""
    monkeypatch.setenv("RAGFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAGFIT_CACHE_GB")
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def data(write_rows):
    """A data file, a dev file, and the files of instruction and template, as settings of `make_config`."""
    instruction, template = write_rows([], "instruction.txt"), write_rows([], "template.txt")
    instruction.write_text("Be brief.", encoding="utf-8")
    template.write_text("Q: {query}\nA: {output}", encoding="utf-8")
    rows = {"data_file": write_rows(ROWS), "dev_split": write_rows(ROWS[:2], "dev.jsonl")}
    return {**rows, "instruction": instruction, "max_sequence_len": 120, "over_length": "cut_end"}


def prepare(settings, tokenizer=None, **kwargs):
    return ragfit.prepare(make_config(**settings), tokenizer or make_tokenizer("digits"), **kwargs)


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("change", [{}, {"dev_split": None}, {"dev_split": 0.2, "shuffle": 3}, {"over_length": "drop"}])
def test_a_second_run_gives_the_same_from_the_cache(data, folder, change):
    data |= change
    first, second = prepare(data), prepare(data)
    assert (first.report.cached, second.report.cached) == (False, True) and len(entries(folder)) == 1
    for part in ("train", "dev"):
        ours, again = first.part(part), second.part(part)
        assert (ours and (ours.features, ours[:])) == (again and (again.features, again[:]))
    # Everything, with its types: `repr` tells a tuple from a list, and 1 from "1".
    for name in ("train", "dev", "in_file", "first_labels", "last_labels", "last_ids", "boundary", "findings"):
        assert repr(getattr(first.report, name)) == repr(getattr(second.report, name)), name
    assert first.report == second.report and first.report.findings and first.report.last_ids
    assert all(first.row(number) == second.row(number) for number in first.report.train.kept)
    assert str(second.report).replace(", loaded from the cache", "", 1) == str(first.report) != str(second.report)


def test_what_does_not_matter(data, tmp_path):
    """The file's name and time, the model's name, and settings that another call has left in the tokenizer."""
    tokenizer = make_tokenizer("digits")
    prepare(data, tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=7)
    moved = shutil.copy(data["data_file"], tmp_path / "moved.jsonl")
    os.utime(moved, (1, 1))
    again = prepare(data | {"data_file": moved, "model_name_or_path": "elsewhere"}, tokenizer)
    assert again.report.cached and again.report.data_file == str(moved)
    assert str(moved) in str(again.report) and str(data["data_file"]) not in str(again.report)


def test_without_the_cache(data, folder, monkeypatch):
    assert not prepare(data, cache=False).report.cached
    own = make_tokenizer("digits")
    own.__class__ = type("Own", (type(own),), {"__module__": "transformers_modules.own"})  # with code of its own
    assert not prepare(data, own).report.cached
    with pytest.raises(DataError):
        prepare(data | {"max_sequence_len": 3, "over_length": "drop"})
    monkeypatch.setenv("RAGFIT_CACHE_GB", "0")
    prepared = prepare(data)
    assert not prepared.report.cached and not prepared.train.cache_files and prepared.train[0]["input_ids"]
    assert entries(folder) == []


def _one_byte(path):
    """Change one byte of a file, and set its time back to what it was."""
    path = Path(path)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[content.rindex(b"7")] = ord("8")
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _tokenizer(change=None, kind="digits", template="chatml", **kwargs):
    def make():
        tokenizer = make_tokenizer(kind, template, **kwargs)
        if change:
            change(tokenizer)
        return tokenizer

    return make


def _backend(**parts):
    return _tokenizer(lambda one: [setattr(one.backend_tokenizer, name, part) for name, part in parts.items()])


# name: (settings, what is done to the files, how the tokenizer is made)
CHANGES = {
    "a byte of the data": ({}, lambda data: _one_byte(data["data_file"]), None),
    "a byte of the dev file": ({}, lambda data: _one_byte(data["dev_split"]), None),
    "the instruction's text": ({}, lambda data: data["instruction"].write_text("Be  brief."), None),
    "no instruction": ({"instruction": None}, None, None),
    "template": ({"template": "template.txt"}, None, None),
    "limit": ({"limit": 14}, None, None),
    "shuffle": ({"shuffle": 1}, None, None),
    "dev_split, a share": ({"dev_split": 0.2}, None, None),
    "input_key": ({"input_key": "query"}, None, None),
    "output_key": ({"output_key": "text"}, None, None),
    "completion_start": ({"completion_start": "<|im_start|>assistant"}, None, None),
    "instruction_in_prompt": ({"instruction_in_prompt": True}, None, None),
    "max_sequence_len": ({"max_sequence_len": 121}, None, None),
    "over_length": ({"over_length": "cut_start"}, None, None),
    "chat_template_kwargs": ({"chat_template_kwargs": {"message": 1}}, None, None),
    "vocabulary": ({}, None, _tokenizer(kind="nfc")),
    "chat template": ({}, None, _tokenizer(template="default system")),
    "chat template, text": ({}, None, _tokenizer(template=CHAT_TEMPLATES["chatml"] + "{# a comment #}")),
    "an added token": ({}, None, _tokenizer(lambda t: t.add_tokens(["Where?"]))),
    "a special token": ({}, None, _tokenizer(lambda t: t.add_special_tokens({"additional_special_tokens": ["word"]}))),
    "eos_token": ({}, None, _tokenizer(eos_token="<|im_end|>")),
    "bos_token": ({}, None, _tokenizer(bos_token="<|im_start|>")),
    "pad_token": ({}, None, _tokenizer(pad_token="</s>")),
    "special tokens read as text": ({}, None, _backend(encode_special_tokens=True)),
    "pre-tokenizer": ({}, None, _backend(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))),
    "normalizer": ({}, None, _backend(normalizer=normalizers.Lowercase())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_prepared_anew(data, folder, write_rows, name):
    settings, change, tokenizer = CHANGES[name]
    # The keys' columns hold the same texts, so that nothing but the name of the key changes.
    rows = [row | {"query": row["prompt"], "text": row["answers"]} for row in ROWS]
    data |= {"data_file": write_rows(rows), "dev_split": write_rows(rows[:3], "dev.jsonl")}
    before = prepare(data)
    assert prepare(data).report.cached
    if change:
        change(data)
    if "template" in settings:
        settings = settings | {"template": data["instruction"].parent / "template.txt"}
    after = prepare(data | settings, tokenizer and tokenizer())
    assert not after.report.cached and len(entries(folder)) == 2
    # It is what is prepared without a cache, and the first entry is still what it was.
    assert after.train[:] == prepare(data | settings, tokenizer and tokenizer(), cache=False).train[:]
    if not change:
        assert prepare(data).report.cached and prepare(data).train[:] == before.train[:]


@pytest.mark.parametrize("name", ["code", *cache._LIBRARIES])
def test_other_code_or_another_version_is_prepared_anew(data, monkeypatch, name):
    prepare(data)
    if name == "code":
        monkeypatch.setattr(cache, "_SOURCES", [*cache._SOURCES[:-1], cache._SOURCES[-1] + "\n"])
    else:
        real = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda library: real(library) + "0" * (library == name))
    assert not prepare(data).report.cached
    assert prepare(data).report.cached


def test_a_dated_template_is_prepared_anew_on_another_day(data, monkeypatch):
    from transformers.utils import chat_template_utils

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 7, 1)

    tokenizer = make_tokenizer("digits", "dated")
    prepare(data, tokenizer)
    assert prepare(data, tokenizer).report.cached
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    assert not prepare(data, tokenizer).report.cached


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "hub"])
def test_other_sources_are_told_by_their_content(tmp_path, monkeypatch, kind):
    from datasets import Dataset

    def write(rows, name):
        path = tmp_path / f"{name}.{kind}"
        if kind == "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        elif kind == "parquet":
            Dataset.from_list(rows).to_parquet(path)
        else:
            monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Dataset.from_list(rows))
            return "org/name"
        return path

    def cached(rows, name="rows"):
        return prepare({"data_file": write(rows, name)}).report.cached

    rows = [{"prompt": "Where?", "answers": ["7"], "positive_indices": [0]}] * 2
    assert [cached(rows), cached(rows), cached(rows, "copy")] == [False, True, True]
    # A finding may read any of a row's keys.
    assert not cached([rows[0], rows[0] | {"positive_indices": [1]}])
    assert not cached([rows[0], rows[0] | {"answers": ["8"]}])


PROGRAM = """
import sys, ragfit
from ragfit.data import prepare
sys.path.insert(0, sys.argv[1])
from conftest import make_config, make_tokenizer
old = prepare.to_arrow
exec(sys.argv[3])
del __import__("os").environ["RAGFIT_CACHE_GB"]
found = ragfit.prepare(make_config(sys.argv[2]), make_tokenizer("digits"))
print(len(found.train), found.report.cached)
"""


@pytest.fixture
def many(tmp_path):
    return {**os.environ, "RAGFIT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}


def start(environment, rows, change="", **more):
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), str(rows), change]
    return subprocess.Popen(command, env={**environment, **more}, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_leaves_is_never_read(folder, write_rows, many):
    rows = write_rows(ROWS * 40)
    die = "import os; prepare._BATCH = 9; prepare.to_arrow = lambda rows: rows and os._exit(9) or old(rows)"
    start(many, rows, die).wait()
    assert not [path for path in entries(folder) if ".part-" not in path.name]
    assert start(many, rows).communicate()[0].split() == ["600", "False"]
    assert start(many, rows).communicate()[0].split() == ["600", "True"]


@pytest.mark.slow
def test_of_several_processes_at_once_one_prepares(many, folder, write_rows):
    rows = write_rows(ROWS * 40)
    slowly = "import time; prepare.to_arrow = lambda rows: time.sleep(1) or old(rows)"
    running = [start(many, rows, slowly, LOCAL_RANK=str(rank), WORLD_SIZE="3") for rank in range(3)]
    said = sorted(process.communicate()[0].strip() for process in running)
    assert said == ["600 False", "600 True", "600 True"]
    assert len(entries(folder)) == 1
