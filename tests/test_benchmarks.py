"""The benchmarks' rows: of real text where there is some, and drawn at random elsewhere. None is run here, but each begins."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import make_tokenizer

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_the_row_of_a_step_has_the_wanted_length(tiny_llama, tmp_path, rows):
    from bench_step import row

    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": "What is the largest city?"}) + "\n" for _ in range(rows))
    )
    ids = row({"data": tmp_path, "tokens": 300}, tiny_llama)
    assert len(ids) == 300 and len(set(ids)) > 5


@pytest.mark.parametrize("tokens", [200, 900])
def test_rows_to_prepare_where_there_is_no_data(tmp_path, tokens):
    from bench_prepare import write_rows

    tokenizer = make_tokenizer("digits")
    write_rows(tmp_path / "rows.jsonl", tmp_path / "nowhere", 3, tokens, tokenizer)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(len(tokenizer.encode(row["prompt"])) > tokens - 200 for row in rows)


@pytest.mark.parametrize("real", [True, False])
def test_rows_to_train_on_fit_into_a_pack(tmp_path, real):
    from bench_gpu import write_rows

    data = tmp_path / "real.jsonl"
    if real:
        data.write_text((json.dumps({"prompt": "What is the largest city? " * 99, "answers": ["yes"]}) + "\n") * 5)
    write_rows(tmp_path / "rows.jsonl", data, 5, 400)
    rows = [json.loads(row) for row in (tmp_path / "rows.jsonl").read_text().splitlines()]
    tokenizer = make_tokenizer("digits")
    lengths = [len(tokenizer.encode(row["prompt"] + row["answers"][0])) for row in rows]
    assert len(rows) == 5 and min(lengths) > 20 and max(lengths) < 380


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[bk]*_*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_measures(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    assert "--data" in capsys.readouterr().out
