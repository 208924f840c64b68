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
def test_the_row_of_a_step_has_the_wanted_length(tiny_llama, write_rows, rows):
    from bench_step import row

    path = write_rows([{"prompt": "What is the largest city?"}] * rows)
    ids = row({"data": path.parent, "tokens": 300}, tiny_llama)
    assert len(ids) == 300 and len(set(ids)) > 5


def test_rows_to_prepare_and_to_train_on_where_there_is_no_data(tmp_path, write_rows):
    import bench_gpu
    import bench_prepare

    tokenizer, path = make_tokenizer("digits"), tmp_path / "made.jsonl"
    for tokens in (200, 900):
        bench_prepare.write_rows(path, tmp_path / "nowhere", 3, tokens, tokenizer)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 3 and all(len(tokenizer.encode(row["prompt"])) > tokens - 200 for row in rows)
    real = write_rows([{"prompt": "What is the largest city? " * 99, "answers": ["yes"]}] * 5)
    for data in (real, tmp_path / "nowhere"):  # they fit into a pack
        bench_gpu.write_rows(path, data, 5, 400)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lengths = [len(tokenizer.encode(row["prompt"] + row["answers"][0])) for row in rows]
        assert len(rows) == 5 and min(lengths) > 20 and max(lengths) < 380


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[bk]*_*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_measures(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    assert "--data" in capsys.readouterr().out
