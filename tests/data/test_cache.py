"""The cache of prepared rows: the same rows come from it, anything that changes them does not."""

import datetime
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATES, make_config, make_tokenizer

import ragfit
from ragfit.data import cache
from ragfit.errors import DataError
from ragfit.views import LengthsView, PromptView, ReportView, TokenView

ROWS = [{"prompt": f"Document {i}. Where? " + "word " * (i * 5), "answers": [f"7{i} BC"]} for i in range(12)]
ROWS += [ROWS[0], {"prompt": "<|im_end|> x", "answers": " "}, {"prompt": "東京 é", "answers": "👩‍👩‍👧"}]
LIMIT = {"max_sequence_len": 120, "over_length": "cut_end"}


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
    return {
        "data_file": write_rows(ROWS),
        "dev_split": write_rows(ROWS[:2], "dev.jsonl"),
        "instruction": instruction,
        **LIMIT,
    }


def prepare(settings, tokenizer=None, **kwargs):
    return ragfit.prepare(make_config(**settings), tokenizer or make_tokenizer("digits"), **kwargs)


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


# --- A second run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"dev_split": None}, {"dev_split": 0.2, "shuffle": 3}, {"over_length": "drop"}])
def test_a_second_run_gives_the_same_from_the_cache(data, folder, change):
    data |= change
    first, second = prepare(data), prepare(data)
    assert (first.report.cached, second.report.cached) == (False, True)
    assert len(entries(folder)) == 1
    for part in ("train", "dev"):
        ours, again = getattr(first, part), getattr(second, part)
        assert (ours is None) == (again is None)
        if ours is not None:
            assert ours.features == again.features and ours[:] == again[:]
    # Everything, with its types: `repr` tells a tuple from a list, and 1 from "1".
    for name in ("train", "dev", "in_file", "first_labels", "last_labels", "last_ids", "boundary", "findings"):
        assert repr(getattr(first.report, name)) == repr(getattr(second.report, name)), name
    assert first.report == second.report
    assert first.report.findings and first.report.last_ids
    for view in (TokenView, PromptView):
        assert view(first, 1)._repr_html_() == view(second, 1)._repr_html_()
    assert LengthsView(first)._repr_html_() == LengthsView(second)._repr_html_()
    for number in first.report.train.kept:
        assert first.row(number) == second.row(number)
    # It is said, quietly.
    lines = str(first.report).splitlines(), str(second.report).splitlines()
    assert lines[0][0] + " (loaded from the cache)" == lines[1][0] and lines[0][1:] == lines[1][1:]
    quiet = ", loaded from the cache"
    assert ReportView(second)._repr_html_().replace(quiet, "") == ReportView(first)._repr_html_()


def test_names_and_times_do_not_matter(data, tmp_path):
    prepare(data)
    moved = shutil.copy(data["data_file"], tmp_path / "moved.jsonl")
    os.utime(moved, (1, 1))
    again = prepare(data | {"data_file": moved, "model_name_or_path": "elsewhere"})
    assert again.report.cached and again.report.data_file == str(moved)
    assert str(moved) in str(again.report) and again.row(0)[2] == ROWS[0]


def test_a_tokenizer_that_was_used_is_the_same(data):
    tokenizer = make_tokenizer("digits")
    prepare(data, tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=7)  # leaves its settings in the Rust tokenizer
    assert prepare(data, tokenizer).report.cached


def test_without_the_cache(data, folder, monkeypatch):
    prepare(data)
    assert not prepare(data, cache=False).report.cached
    monkeypatch.setenv("RAGFIT_CACHE_GB", "0")
    prepared = prepare(data)
    assert not prepared.report.cached and len(entries(folder)) == 1
    file = Path(prepared.train.cache_files[0]["filename"])
    assert file.is_file() and folder not in file.parents
    del prepared
    assert not file.parent.exists()


# --- What makes another entry -----------------------------------------------------------------------------------------


def _one_byte(path):
    """Change one byte of a file, and set its time and size back to what they were."""
    path = Path(path)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[content.rindex(b"7")] = ord("8")
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _append(path, text):
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + text, encoding="utf-8")


def _write(path, text):
    Path(path).write_text(text, encoding="utf-8")


def _tokenizer(change=None, kind="digits", template="chatml", **kwargs):
    def make():
        tokenizer = make_tokenizer(kind, template, **kwargs)
        if change:
            change(tokenizer)
        return tokenizer

    return make


def _marks_as_text(tokenizer):
    tokenizer.backend_tokenizer.encode_special_tokens = True


def _other_pieces(tokenizer):
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _lower_case(tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


# name: (settings, what is done to the files, how the tokenizer is made)
CHANGES = {
    "a byte of the data": ({}, lambda data: _one_byte(data["data_file"]), None),
    "a byte of the dev file": ({}, lambda data: _one_byte(data["dev_split"]), None),
    "a row more": ({}, lambda data: _append(data["data_file"], json.dumps(ROWS[0]) + "\n"), None),
    "the instruction's text": ({}, lambda data: _write(data["instruction"], "Be  brief."), None),
    "no instruction": ({"instruction": None}, None, None),
    "template": ({"template": "template.txt"}, None, None),
    "limit": ({"limit": 14}, None, None),
    "shuffle": ({"shuffle": 1}, None, None),
    "dev_split, a share": ({"dev_split": 0.2}, None, None),
    "no dev_split": ({"dev_split": None}, None, None),
    "input_key": ({"input_key": "query"}, None, None),
    "output_key": ({"output_key": "text"}, None, None),
    "completion_start": ({"completion_start": "<|im_start|>assistant"}, None, None),
    "instruction_in_prompt": ({"instruction_in_prompt": True}, None, None),
    "max_sequence_len": ({"max_sequence_len": 121}, None, None),
    "no max_sequence_len": ({"max_sequence_len": None}, None, None),
    "over_length": ({"over_length": "cut_start"}, None, None),
    "vocabulary": ({}, None, _tokenizer(kind="nfc")),
    "chat template": ({}, None, _tokenizer(template="default system")),
    "chat template, text": ({}, None, _tokenizer(template=CHAT_TEMPLATES["chatml"] + "{# a comment #}")),
    "an added token": ({}, None, _tokenizer(lambda t: t.add_tokens(["Where?"]))),
    "a special token": ({}, None, _tokenizer(lambda t: t.add_special_tokens({"additional_special_tokens": ["word"]}))),
    "eos_token": ({}, None, _tokenizer(eos_token="<|im_end|>")),
    "bos_token": ({}, None, _tokenizer(bos_token="<|im_start|>")),
    "pad_token": ({}, None, _tokenizer(pad_token="</s>")),
    "special tokens read as text": ({}, None, _tokenizer(_marks_as_text)),
    "pre-tokenizer": ({}, None, _tokenizer(_other_pieces)),
    "normalizer": ({}, None, _tokenizer(_lower_case)),
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
        monkeypatch.setattr(cache, "_SOURCES", [*cache._SOURCES[:-1], cache._SOURCES[-1] + b"\n"])
    else:
        real = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda library: real(library) + "0" * (library == name))
    assert not prepare(data).report.cached
    assert prepare(data).report.cached


def test_the_code_that_decides_is_in_the_key():
    """Every module of the room `data` is hashed, and preparing imports no other that decides rows."""
    code = "import ragfit.data.prepare, sys; print(*sorted(m.split('.')[1] for m in sys.modules if m.startswith('ragfit.')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - {"before_torch", "config", "draw", "errors", "files", "secrets"} == {"data"}
    assert len(cache._SOURCES) == len(list(Path(cache.__file__).parent.glob("*.py"))) > 5


def test_a_dated_template_is_prepared_anew_on_another_day(data, monkeypatch):
    from transformers.utils import chat_template_utils

    class Day(datetime.datetime):
        today = datetime.datetime(2025, 1, 31, 9)

        @classmethod
        def now(cls, tz=None):
            return cls.today

    class Date(datetime.date):
        @classmethod
        def today(cls):
            return Day.today.date()

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    monkeypatch.setattr(cache.datetime, "date", Date)
    for template, again in (("dated", False), ("chatml", True)):
        chat_template_utils._compile_jinja_template.cache_clear()
        Day.today = datetime.datetime(2025, 1, 31, 9)
        first = prepare(data, make_tokenizer("digits", template))
        assert prepare(data, make_tokenizer("digits", template)).report.cached
        assert ("31 Jan 2025" in first.rendered(0).text) != again
        Day.today = datetime.datetime(2025, 2, 1, 9)
        assert prepare(data, make_tokenizer("digits", template)).report.cached == again


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "hub"])
def test_other_sources_are_told_by_their_content(tmp_path, monkeypatch, kind):
    import gzip

    import datasets

    def write(rows, name):
        if kind == "jsonl.gz":
            path = tmp_path / f"{name}.jsonl.gz"
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
            return path
        dataset = datasets.Dataset.from_list([row | {"answers": ["".join(row["answers"])]} for row in rows])
        if kind == "hub":  # a data set's name, which a folder of data files stands for here
            (tmp_path / name).mkdir()
            dataset.to_parquet(tmp_path / name / "train.parquet")
            monkeypatch.chdir(tmp_path)
            return f"./{name}:train"
        dataset.to_parquet(tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    def open_named(name, key):
        folder, _, split = str(name).partition(":")
        return ragfit.data.rows.TableRows(datasets.load_dataset(folder, split=split), name)

    if kind == "hub":
        monkeypatch.setattr("ragfit.data.prepare.open_rows", open_named)
    first = write(ROWS, "a")
    assert not prepare({"data_file": first}).report.cached
    again = prepare({"data_file": first})
    assert again.report.cached and again.row(2)[0] == ROWS[2]["prompt"]
    assert prepare({"data_file": write(ROWS, "same")}).report.cached
    assert not prepare({"data_file": write([ROWS[0] | {"answers": ["71 BC"]}, *ROWS[1:]], "b")}).report.cached


def _with_code_of_its_own(tokenizer):
    """The same tokenizer, whose class writes its prompts in its own way."""

    class Shouting(type(tokenizer)):
        def apply_chat_template(self, *args, **kwargs):
            return super().apply_chat_template(*args, **kwargs).replace("user\n", "USER\n")

    tokenizer.__class__ = Shouting
    return tokenizer


def _in_python(tokenizer):
    from transformers import ByT5Tokenizer

    python = ByT5Tokenizer()
    python.chat_template = tokenizer.chat_template
    return python


@pytest.mark.parametrize("change", [_with_code_of_its_own, _in_python])
def test_a_tokenizer_that_cannot_be_known_is_not_cached(data, folder, change):
    tokenizer = change(make_tokenizer("digits"))
    data["max_sequence_len"] = None
    assert [prepare(data, tokenizer).report.cached for _ in range(2)] == [False, False]
    assert not folder.exists()


# --- Damage -----------------------------------------------------------------------------------------------------------


DAMAGE = {
    "rows cut short": lambda entry: os.truncate(entry / "train.arrow", 900),
    "dev rows cut short": lambda entry: os.truncate(entry / "dev.arrow", 900),
    "only the head of the rows": lambda entry: os.truncate(entry / "train.arrow", 256),
    "rows of nothing": lambda entry: (entry / "train.arrow").write_bytes(b"\0" * 5000),
    "rows of another entry": lambda entry: shutil.copy(entry / "dev.arrow", entry / "train.arrow"),
    "report cut short": lambda entry: os.truncate(entry / "report.json", 900),
    "report of other types": lambda entry: (entry / "report.json").write_bytes(b'{"train": 3}'),
    "rows gone": lambda entry: (entry / "train.arrow").unlink(),
    "report gone": lambda entry: (entry / "report.json").unlink(),
    "report empty": lambda entry: (entry / "report.json").write_bytes(b""),
    "report not JSON": lambda entry: (entry / "report.json").write_bytes(b"no JSON"),
    "nothing in it": lambda entry: [path.unlink() for path in entry.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_prepared_again_and_it_is_said(data, folder, caplog, damage):
    first = prepare(data)
    rows, report = first.train[:], first.report
    del first  # its file is mapped into memory, and must not shrink under it
    DAMAGE[damage](entries(folder)[0])
    again = prepare(data)
    assert not again.report.cached and again.train[:] == rows and again.report == report
    assert f"The prepared rows in {entries(folder)[0]} are damaged" in caplog.text
    caplog.clear()
    assert prepare(data).report.cached and not caplog.text and len(entries(folder)) == 1


def test_what_a_killed_process_leaves_is_never_read(folder, write_rows):
    """A process that is killed after it has written some of its rows."""
    data = {"data_file": write_rows(ROWS * 60)}
    code = """
import os, signal, sys; sys.path.insert(0, sys.argv[1])
from conftest import make_config, make_tokenizer
import ragfit.data.prepare as preparation
os.environ.pop("RAGFIT_CACHE_GB")
to_arrow, batches = preparation.to_arrow, []
def killed(rows):
    batches.append(rows)
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_arrow(rows)
preparation.to_arrow = killed
preparation.prepare(make_config(sys.argv[2]), make_tokenizer("digits"))
"""
    run = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parents[1]), str(data["data_file"])])
    assert run.returncode == -9
    (left,) = entries(folder)
    assert ".part-" in left.name and next(left.rglob("train.arrow")).stat().st_size > 9999
    prepared = prepare(data)
    assert not prepared.report.cached and len(prepared.train) == len(ROWS) * 60
    assert [".part-" in path.name for path in entries(folder)] == [False]
    assert prepare(data).report.cached


def test_an_error_leaves_nothing(data, folder):
    with pytest.raises(DataError, match="rows.jsonl: none of its 15 rows can be trained on"):
        prepare(data | {"max_sequence_len": 3})
    assert entries(folder) == []


def test_rows_of_a_file_that_is_written_to_meanwhile_are_not_kept(data, folder, monkeypatch, caplog):
    from ragfit.data.prepare import Preparer

    run = Preparer.run

    def edited(self, *args):
        result = run(self, *args)
        with Path(data["data_file"]).open("a", encoding="utf-8") as file:
            file.write("\n")
        return result

    monkeypatch.setattr(Preparer, "run", edited)
    assert not prepare(data).report.cached
    assert entries(folder) == [] and "was written to while its rows were prepared" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_and_done_without(data, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAGFIT_CACHE", str(tmp_path / "file"))
    assert len(prepare(data).train) == len(ROWS)
    assert "Prepared rows cannot be kept in" in caplog.text and "set RAGFIT_CACHE to a folder of yours" in caplog.text


def test_a_full_disk_is_told_and_done_without(data, folder):
    """In a process that may write only so much to a file: the rows go to the temporary folder, which is as full."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from conftest import *; import os, signal, ragfit\n"
        "os.environ.pop('RAGFIT_CACHE_GB'); tokenizer = make_tokenizer('digits')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "ragfit.prepare(make_config(sys.argv[2]), tokenizer)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(data["data_file"])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode and ": prepared rows cannot be written there: " in run.stderr
    assert f"Prepared rows cannot be kept in {folder.parent}: " in run.stderr
    assert entries(folder) == []


# --- Room and privacy -------------------------------------------------------------------------------------------------


def test_only_the_owner_may_look_into_it(data, folder):
    folder.mkdir(parents=True, mode=0o755)
    prepare(data)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.rglob("*.pkl"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_rows_in_another_users_folder_are_not_read(data, folder, caplog):
    prepare(data)
    os.chown(folder, 12345, 12345)
    assert not prepare(data).report.cached
    assert "belongs to another user" in caplog.text


# --- Several processes ------------------------------------------------------------------------------------------------

# Waits until all are ready, prepares, waits until all have, and prints whether the rows came from the cache.
_PROCESS = """
import sys, os, json, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import make_config, make_tokenizer
import ragfit, ragfit.data.prepare, datasets, logging
os.environ.pop("RAGFIT_CACHE_GB")
logging.basicConfig(level=logging.INFO)
folder = Path(sys.argv[2])
tokenizer = make_tokenizer("digits")
(folder / f"ready-{os.getpid()}").touch()
while not (folder / "go").exists(): time.sleep(0.01)
prepared = ragfit.prepare(make_config(folder / "rows.jsonl"), tokenizer)
(folder / f"done-{os.getpid()}").touch()
while len(list(folder.glob("done-*"))) < int(os.environ.get("WORLD_SIZE", 1)): time.sleep(0.01)
print(json.dumps([prepared.report.cached, len(prepared.train), sum(map(sum, prepared.train["labels"]))]))
"""


def wait_for(folder, pattern, count):
    deadline = time.time() + 120
    while len(list(folder.glob(pattern))) < count:
        assert time.time() < deadline, f"{pattern} did not appear"
        time.sleep(0.01)


@pytest.fixture
def many(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 200), encoding="utf-8")
    return path


@pytest.mark.slow
def test_of_two_processes_at_once_one_prepares(many, tmp_path, folder):
    command = [sys.executable, "-c", _PROCESS, str(Path(__file__).parents[1]), str(tmp_path)]
    env = {**os.environ, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command, env=env | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    wait_for(tmp_path, "ready-*", 2)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=120) for process in processes]
    results = sorted(json.loads(out) for out, _ in said)
    assert [cached for cached, *_ in results] == [False, True]
    assert results[0][1:] == results[1][1:] and results[0][1] == len(ROWS) * 200
    # One bar, not two.
    assert sum("preparing train: 100%" in err for _, err in said) == 1
    assert len(entries(folder)) == 1


@pytest.mark.slow
def test_under_torchrun_rows_are_prepared_once(many, tmp_path, folder):
    (tmp_path / "rank.py").write_text(_PROCESS, encoding="utf-8")
    (tmp_path / "go").touch()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(tmp_path / "rank.py"),
    ]
    run = subprocess.run(
        [*command, str(Path(__file__).parents[1]), str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    results = sorted(map(json.loads, re.findall(r"\[.*?\]", run.stdout)))
    assert [cached for cached, *_ in results] == [False, True] and results[0][1:] == results[1][1:]
    assert len(entries(folder)) == 1 and prepare({"data_file": many}).report.cached


@pytest.mark.slow
def test_waiting_for_another_process_is_said(data, folder, capsys):
    from threading import Event, Thread

    from filelock import FileLock

    prepare(data)
    entry = entries(folder)[0]
    shutil.rmtree(entry)
    held, free = Event(), Event()

    def hold():
        with FileLock(folder / f"{entry.name}.lock"):
            held.set()
            free.wait(2)

    thread = Thread(target=hold)
    thread.start()
    held.wait()
    assert not prepare(data).report.cached
    thread.join()
    assert "Another process is preparing these rows; waiting for it." in capsys.readouterr().err
