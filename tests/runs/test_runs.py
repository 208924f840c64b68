"""A table of runs, of the files they leave; tests/test_notebooks.py has one of real runs."""

import json
from pathlib import Path

import pandas
import pytest
from harmless import HOSTILE, assert_harmless

import ragfit
from ragfit.__main__ import main
from ragfit.errors import ConfigError
from ragfit.runs.status import run_status
from ragfit.views import RunsView

STARTED = "2026-01-01T00:00:00+00:00"
FACTS = {"state": "finished", "updated": STARTED, "step": 9, "total_steps": 9, "pid": 1, "host": "elsewhere"}
HISTORY = [
    {"step": 2, "loss": 3.0},
    {"step": 4, "loss": 2.0},
    {"step": 8, "loss": 1.0},
    {"step": 9, "train_runtime": 7.0},
]


def write_run(folder, log=None, evaluation=None, **facts):
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(FACTS | facts))
    (folder / "ragfit.yaml").write_text(
        f"model: {{lora: {{r: 4, target_modules: [{folder.name[:1]}]}}}}\ntrain: {{output_dir: {folder}}}"
    )
    for name, content in (("trainer_state.json", log), ("evaluation.json", evaluation)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_figures_are_of_the_weights_that_are_saved(tmp_path, capsys):
    """With `load_best_model_at_end` the best step's; what an earlier run has left in the folder does not count."""
    log = {"log_history": HISTORY}
    write_run(tmp_path / "best", log, saved_step=4, dev_loss=1.5)
    write_run(tmp_path / "last", log, saved_step=9)
    measured = {"written": "2026-01-02T00:00:00+00:00", "rows": 4, "dev_loss": {"tuned": 0.5}, "f1": {"tuned": 0.25}}
    write_run(tmp_path / "measured", log, measured, saved_step=9, dev_loss=1.5)
    old = measured | {"written": "2025-12-31T00:00:00+00:00"}
    write_run(tmp_path / "older", log, old, saved_step=9, dev_loss=1.5)
    write_run(tmp_path / "earlier", log, old, state="failed", reason="no memory", dev_loss=1.5)
    write_run(tmp_path / "damaged", '{"log_hist', '{"rows": NaN', saved_step=9)
    frame = ragfit.table_of_runs(tmp_path).astype(object).where(lambda cell: cell.notna(), None)
    found = frame[["step", "train_loss", "dev_loss", "f1", "answers", "problem"]].T.to_dict("list")
    assert {Path(name).name: values for name, values in found.items()} == {
        "best": [4, 2.0, 1.5, None, None, None],
        "last": [9, 1.0, None, None, None, None],
        "measured": [9, 1.0, 0.5, 0.25, 4, None],
        "older": [9, 1.0, 1.5, None, None, None],
        "earlier": [9, None, None, None, None, "no memory"],
        "damaged": [9, None, None, None, None, None],
    }
    assert list(frame)[:2] == ["model.lora.target_modules", "state"]  # what the configurations differ in
    main(["runs", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.startswith("6 runs:") and "1.5000" in said and f"{tmp_path}/earlier: no memory" in said
    assert run_status(tmp_path / "measured").facts["dev_loss"] == 0.5  # the same in both
    assert "dev loss 1.5000" in " ".join(repr(run_status(tmp_path / "older")).split())


def test_a_run_without_its_configuration_and_folders_that_are_none(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="^folder: there is no run in .*. Name a train.output_dir"):
            ragfit.table_of_runs(folder)
    with pytest.raises(SystemExit, match="error: folder: there is no run in"):
        main(["runs", str(tmp_path)])
    write_run(tmp_path / "whole")
    write_run(tmp_path / "cut")
    (tmp_path / "cut" / "ragfit.yaml").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "status.json").write_text("[]")
    frame = ragfit.table_of_runs(tmp_path, tmp_path / "cut")
    assert frame.index.tolist() == [str(tmp_path / name) for name in ("cut", "whole")]  # each once
    assert list(frame)[0] == "state"  # and says nothing about its settings
    assert_harmless(RunsView(frame)._repr_html_())


def test_a_view_of_hostile_text():
    columns = {"model.x": HOSTILE, "state": ["failed"] * 6 + ["finished"], "dev_loss": [3.0, 1.0, None, 2, 1.5, 4, 9]}
    view = RunsView(pandas.DataFrame(columns, index=HOSTILE))
    assert_harmless(view._repr_html_())
    assert "\x1b" not in repr(view) and "\u202e" not in repr(view) and len(repr(view).splitlines()) == len(HOSTILE) + 2


def test_seeds_of_one_configuration_are_summed_up():
    runs = {
        "model.lora.r": [8, 8, 8, 16, 16],
        "train.seed": [1, 2, 3, 1, 2],
        "state": ["finished", "finished", "failed", "finished", "finished"],
        "dev_loss": [1.0, 3.0, None, 2.0, None],
        "f1": [0.5, 0.7, None, 0.25, 0.25],
    }
    frame = pandas.DataFrame(runs, index=list("abcde"))
    text = RunsView(frame).text()
    assert "2.0000 ± 1.4142 (2)" in text and "60.0% ± 14.1% (2)" in text  # of a and b: c has failed
    assert "25.0% ± 0.0% (2)" in text and "model.lora.r=16" in text
    assert "±" not in RunsView(frame[2:4]).text() and "±" not in RunsView(frame[["train.seed", "state"]]).text()
    assert "42.5% ± 21.8% (4)" in RunsView(frame[["train.seed", "state", "f1"]]).text()
