"""Rows: read, chosen, shuffled, limited, split."""

import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ragfit.data.prepare import choose_rows
from ragfit.data.rows import choose, open_rows, split, text_of
from ragfit.errors import ConfigError, DataError

ROWS = [{"prompt": "a", "answers": ["x"]}, {"prompt": "b é 東 👩‍👩‍👧\u2028\x85", "answers": []}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
BOM = b"\xef\xbb\xbf"


def write(tmp_path, data, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"\n".join(LINES) + b"\n", [1, 2]),
        (b"\n".join(LINES), [1, 2]),
        (b"\r\n".join(LINES) + b"\r\n", [1, 2]),
        (BOM + b"\n".join(LINES), [1, 2]),
        (b"\n\n" + b"\n \t\n\n".join(LINES) + b"\n\n\n", [3, 6]),
        (LINES[0] + b"\n\x0b\x0c\n" + LINES[1] + b"\n\x0c", [1, 3]),
        (b"  " + LINES[0] + b"  \n\t" + LINES[1] + b"\t", [1, 2]),
        (LINES[0] + b"\n" + BOM + LINES[1], [1, 2]),  # two files put together
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson", "rows.jsonl.gz", "rows.json.gz"])
def test_rows_and_their_lines(tmp_path, data, lines, name):
    path = write(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name)
    rows = open_rows(path)
    assert list(rows) == ROWS
    assert [rows.where(i) for i in range(2)] == [f"{path}, line {line}" for line in lines]
    assert rows[1] == ROWS[1] and rows[0] == ROWS[0]  # in any order


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\n"])
def test_a_file_without_rows(tmp_path, data):
    for path in (write(tmp_path, data), write(tmp_path, gzip.compress(data), "x.jsonl.gz")):
        with pytest.raises(DataError, match="the file has no rows. Check dev_split"):
            open_rows(path, "dev_split")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "no row can be read: Expecting property name"),
        (b"text", "no row can be read: Expecting value: line 1 column 1"),
        (b'[{"prompt": "a"},', "with one JSON object a line"),
        (b'[{"prompt": "a"}]', "a JSON list, not an object. Save the file as UTF-8, with one JSON object a line"),
        (rb'{"a": ["x\ud83d"]}', "no row can be read: 'utf-8' codec can't encode character '\\ud83d'"),
        (b"null", "a JSON NoneType, not an object"),
        (b'{"a": "\xff"}', "no row can be read: 'utf-8' codec can't decode byte 0xff in position 7"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "no row can be read: maximum recursion depth"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no row can be read: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, problem):
    path = write(tmp_path, LINES[0] + b"\n\n" + line + b"\n")
    rows = open_rows(path)
    assert rows[0] == ROWS[0]
    with pytest.raises(DataError, match=re.escape(problem)) as error:
        rows[1]
    assert str(error.value).startswith(f"{path}, line 3: ")


PACKED = gzip.compress(b"\n".join(LINES * 100))


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("cut.jsonl.gz", PACKED[:-20], "it is a damaged gzip file: .*Write it again"),
        ("bad.jsonl.gz", PACKED[:12] + b"\xff\xff\xff" + PACKED[15:], "it is a damaged gzip file: .*Write it again"),
        ("head.jsonl.gz", b"\x1f\x8bnothing", "it is a damaged gzip file: .*Write it again"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, problem):
    with pytest.raises(DataError, match=f"{name}: {problem}"):
        open_rows(write(tmp_path, data, name))


def test_a_key_that_names_no_file(tmp_path):
    with pytest.raises(ConfigError, match="data_file: .* is a folder"):
        open_rows(tmp_path)
    with pytest.raises(ConfigError, match="dev_split: there is no '.*absent.jsonl'"):
        open_rows(tmp_path / "absent.jsonl", "dev_split")


def test_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    table = {"prompt": ["a", "b"], "answers": [["x", "y"], []], "nested": [[["z"]], None], "input_ids": ["i", "j"]}
    pq.write_table(pa.table(table), path)
    rows = open_rows(path)
    assert len(rows) == 2 and rows.where(1) == f"{path}, row 1"
    found = {key: [text_of(row, key, "here", "output_key") for row in rows] for key in table}
    assert found == {"prompt": ["a", "b"], "answers": ["x", ""], "nested": ["z", ""], "input_ids": ["i", "j"]}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("org/name", (("org/name",), {"split": "train"})),
        ("org/name:dev", (("org/name",), {"split": "dev"})),
        ("org/name:distractor:dev", (("org/name", "distractor"), {"split": "dev"})),
    ],
)
def test_data_sets_of_the_hub(monkeypatch, name, given):
    from datasets import Dataset

    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or Dataset.from_list(ROWS))
    assert open_rows(name)[0]["prompt"] == "a" and asked == [given]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"), ("", ""), (" \n", " \n"), (None, ""), ([], ""), ([None], ""), (["x", "y"], "x"), ([["x", "y"], ["z"]], "x"),
        ([[], ["z"]], ""), ([[[]]], ""), (("x",), "x"), ([""], ""), ("{{ 7*7 }}", "{{ 7*7 }}"), ("\U0010ffff\x00", "\U0010ffff\x00"),
    ],
)  # fmt: skip
def test_text_of(value, text):
    assert text_of({"k": value}, "k", "f, line 1", "output_key") == text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "", "b": ""}, "f, line 1: there is no key 'k'; the row has 'a', 'b'. Set output_key to one of them."),
        ({}, "f, line 1: there is no key 'k'; the row has no keys. Set output_key to one of them."),
        ({"k": 7}, "f, line 1: 'k' holds a value of type int, not text. Set output_key to a key with text"),
        ({"k": 0.5}, "of type float"),
        ({"k": True}, "of type bool"),
        ({"k": {"text": "x"}}, "of type dict, not text"),
        ({"k": [7]}, "holds a value of type int"),
        ({"k": [{"text": "x"}]}, "not text"),
    ],
)
def test_what_is_no_text(row, message):
    with pytest.raises(DataError, match=re.escape(message)):
        text_of(row, "k", "f, line 1", "output_key")


@pytest.mark.parametrize("value", [["x"], [["x", "y"], ["z"]], [], [{"role": "user", "content": "x"}]])
def test_a_prompt_is_never_taken_out_of_a_list(value):
    with pytest.raises(DataError, match="'k' holds a value of type list, not text. Set input_key to a key with text.$"):
        text_of({"k": value}, "k", "f, line 1", "input_key")


@pytest.mark.parametrize(
    ("count", "shuffle", "limit", "rows"),
    [
        (5, None, None, [0, 1, 2, 3, 4]),
        (5, None, 2, [0, 1]),
        (5, None, 9, [0, 1, 2, 3, 4]),
        (5, 42, None, [4, 2, 3, 1, 0]),
        (5, 42, 2, [4, 2]),
        (5, 0, None, [2, 4, 3, 0, 1]),
        (1, 7, None, [0]),
        (0, 42, None, []),
    ],
)
def test_choose(count, shuffle, limit, rows):
    assert choose(count, shuffle, limit) == rows


@pytest.mark.parametrize(
    ("rows", "share", "counts"),
    [
        (10, 0.2, (8, 2)),
        (10, 0.01, (9, 1)),
        (10, 3, (7, 3)),
        (10, 9, (1, 9)),
        (2, 0.5, (1, 1)),
        (100, 0.255, (74, 26)),
        (10, 0.9, (1, 9)),
    ],
)
def test_split_counts(rows, share, counts):
    train, dev = split(list(range(100, 100 + rows)), share, 42)
    assert (len(train), len(dev)) == counts
    assert sorted(train + dev) == list(range(100, 100 + rows))


@pytest.mark.parametrize(("rows", "share"), [(10, 10), (10, 11), (1, 0.5), (1, 1), (10, 0.99), (2, 0.9)])
def test_a_split_that_leaves_nothing_to_train_on(rows, share):
    with pytest.raises(DataError, match=f"^dev_split: {share} takes .* of {rows} rows and leaves none .* Lower dev"):
        split(list(range(rows)), share)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(2, 60), st.floats(0.01, 0.9), st.one_of(st.none(), st.integers(0, 2**32)))
def test_a_split_keeps_order_and_depends_on_the_seed_alone(count, share, seed):
    positions = choose(count, seed)
    try:
        train, dev = split(positions, share, seed)
    except DataError:
        assert round(share * count) >= count
        return
    assert not set(train) & set(dev) and set(train) | set(dev) == set(positions)
    assert train == [p for p in positions if p in set(train)] and dev == [p for p in positions if p in set(dev)]
    assert split(positions, share, seed) == (train, dev)


@pytest.mark.parametrize("share", [0.3, 6, 1, 2])
def test_rows_of_one_question_stand_on_one_side(share):
    positions, questions = list(range(100, 120)), [f"q{i // 2}" for i in range(20)]
    train, dev = split(positions, share, 7, questions)
    asked = [{questions[p - 100] for p in part} for part in (train, dev)]
    assert not asked[0] & asked[1] and sorted(train + dev) == positions and dev == sorted(dev)
    assert len(dev) == {0.3: 6, 6: 6, 1: 2, 2: 2}[share]
    assert split(positions, share, 7, questions) == (train, dev)
    assert split(positions, share, 7, positions) == split(positions, share, 7)


def test_a_question_spelt_otherwise_is_the_same_question(tmp_path):
    rows = [{"prompt": f"Q {n}", "question": text} for n, text in enumerate(["When was X?", "when was  x", "Who?"])]
    cfg = OmegaConf.create(
        {"shuffle": None, "limit": None, "dev_split": 1, "input_key": "prompt", "output_key": "prompt"}
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert choose_rows(cfg, dict.fromkeys(("train", "dev"), open_rows(path))) == {"train": [0, 1], "dev": [2]}
