"""A table of runs, over runs that were really made: by the command line's `--multirun` and by `ragfit.train`."""

import json

import forked
import pandas
import pytest
from harmless import HOSTILE, assert_harmless
from tiny_runs import MARKER, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.__main__ import main
from ragfit.config.overrides import override
from ragfit.errors import ConfigError
from ragfit.views import RunsView


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(12))


@pytest.mark.slow
def test_a_sweep_with_a_run_that_fails(tiny_llama, rows, tmp_path, capsys):
    """The runs behind the failing one go on, the exit code says that one failed, and the table says which."""
    keys = {"model.model_name_or_path": str(tiny_llama), "model.completion_start": MARKER, "data_file": str(rows)}
    words = [override(key, value) for key, value in keys.items()]
    words += ["output_key=answers", "train.output_dir=sweep", "dev_split=3", "model.load_in_8bit=false"]
    words += ["train.optim=adamw_torch", "train.max_steps=2", "train.logging_steps=1", "--multirun"]
    words += ["model.lora.target_modules=[q_proj],[nope]", "train.learning_rate=0.001,fast,0.05"]
    result = forked.command("ragfit.training", *words, cwd=tmp_path)
    assert result.returncode == 1 and "'nope' matches no layer of this model" in result.stderr

    frame = ragfit.table_of_runs(tmp_path / "sweep")
    assert list(frame.index) == ["0", "1", "2", "3", "4", "5"]
    assert list(frame.columns[:3]) == ["model.lora.target_modules", "train.learning_rate", "state"]
    assert frame["model.lora.target_modules"].tolist() == ["q_proj"] * 3 + ["nope"] * 3
    assert frame["train.learning_rate"].tolist() == [0.001, "fast", 0.05] * 2
    assert frame["state"].tolist() == ["finished", "failed", "finished"] + ["failed"] * 3
    assert frame["problem"].dropna().index.tolist() == ["1", "3", "4", "5"] and "nope" in frame["problem"]["3"]
    done = frame[frame["state"] == "finished"]
    assert done["step"].tolist() == [2, 2] and done["dev_loss"].nunique() == 2 and (done["seconds"] > 0).all()
    printed = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("dev loss")]
    assert [f"{loss:.4f}" for loss in done["dev_loss"]] == printed
    assert "f1" not in frame  # nothing was answered

    main(["runs", str(tmp_path / "sweep")])
    said = capsys.readouterr().out
    assert said.startswith("6 runs:") and f"★ {done['dev_loss'].min():.4f}" in said and "failed" in said


@pytest.mark.slow
def test_evaluations_and_several_roots(tiny_llama, rows, tmp_path):
    for name, steps in (("a", 1), ("b", 30)):
        keys = ["dev_split=3", f"train.max_steps={steps}", "train.learning_rate=0.02"]
        keys.append("model.lora.modules_to_save=[lm_head]")
        trainer = tiny_trainer(tiny_config(tiny_llama, rows, tmp_path / name / "run", *keys))
        ragfit.train(trainer)
        view = ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
    frame = ragfit.table_of_runs(tmp_path / "a", tmp_path / "b")
    assert list(frame.index) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    figures = ["train_loss", "dev_loss", "exact_match", "f1", "recall", "answers", "seconds"]
    assert list(frame) == ["train.max_steps", "state", "step", *figures]
    measured = [view.summary["dev_loss"]["tuned"], view.summary["f1"]["tuned"]]
    assert frame.iloc[1][["dev_loss", "f1"]].tolist() == measured and frame["answers"].tolist() == [2, 2]
    assert ragfit.table_of_runs(tmp_path / "a" / "run").index.tolist() == ["run"]  # the root is the run
    assert len(ragfit.table_of_runs(tmp_path, tmp_path / "a")) == 2  # each once


STARTED = "2026-01-01T00:00:00+00:00"
FACTS = {"state": "finished", "started": STARTED, "updated": STARTED, "step": 9, "total_steps": 9, "host": "elsewhere"}
HISTORY = [
    {"step": 2, "loss": 3.0},
    {"step": 4, "loss": 2.0},
    {"step": 8, "loss": 1.0},
    {"step": 9, "train_runtime": 7.0},
]
LOG = {"log_history": HISTORY}


def write_run(folder, log=None, evaluation=None, **facts):
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(FACTS | facts))
    (folder / "ragfit.yaml").write_text("model: {lora: {r: 4}}")
    for name, content in (("trainer_state.json", log), ("evaluation.json", evaluation)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_figures_are_of_the_weights_that_are_saved(tmp_path):
    """With `load_best_model_at_end` the best step's; what an earlier run has left in the folder does not count."""
    write_run(tmp_path / "best", LOG, saved_step=4, dev_loss=1.5)
    write_run(tmp_path / "last", LOG, saved_step=9)
    measured = {"written": "2026-01-02T00:00:00+00:00", "rows": 4, "dev_loss": {"tuned": 0.5}, "f1": {"tuned": 0.25}}
    write_run(tmp_path / "measured", LOG, measured, saved_step=9, dev_loss=1.5)
    old = measured | {"written": "2025-12-31T00:00:00+00:00"}
    write_run(tmp_path / "earlier", LOG, old, state="failed", reason="no memory", dev_loss=1.5)
    write_run(tmp_path / "damaged", '{"log_hist', '{"rows": NaN', saved_step=9)
    frame = ragfit.table_of_runs(tmp_path).astype(object).where(lambda cell: cell.notna(), None)
    found = frame[["step", "train_loss", "dev_loss", "f1", "answers", "problem"]].T.to_dict("list")
    assert found == {
        "best": [4, 2.0, 1.5, None, None, None],
        "last": [9, 1.0, None, None, None, None],
        "measured": [9, 1.0, 0.5, 0.25, 4, None],
        "earlier": [9, None, None, None, None, "no memory"],
        "damaged": [9, None, None, None, None, None],
    }


def test_a_run_without_its_configuration_and_folders_that_are_none(tmp_path):
    write_run(tmp_path / "whole", LOG)
    write_run(tmp_path / "cut")
    (tmp_path / "cut" / "ragfit.yaml").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "status.json").write_text("[]")
    frame = ragfit.table_of_runs(tmp_path)
    assert frame.index.tolist() == ["cut", "whole"]
    assert list(frame)[0] == "state"  # and says nothing about its settings
    assert_harmless(RunsView(frame)._repr_html_())


def test_natural_order_and_odd_names(tmp_path):
    for name in ("10", "9", "<b>", "0"):
        write_run(tmp_path / name)
    assert ragfit.table_of_runs(tmp_path).index.tolist() == ["0", "9", "10", "<b>"]


def test_no_runs(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="^folder: there is no run in .*. Name a run's train.output_dir"):
            ragfit.table_of_runs(folder)
    with pytest.raises(SystemExit, match="error: folder: there is no run in"):
        main(["runs", str(tmp_path)])


def test_view_of_hostile_text_and_the_best():
    frame = pandas.DataFrame(
        {
            "model.x": HOSTILE,
            "state": ["failed"] * 6 + ["finished"],
            "dev_loss": [3.0, 1.0, None, 2, 1.5, 4, 9],
            "exact_match": [0.0] * 7,
            "f1": [0.1] * 6 + [0.9],
        },
        index=HOSTILE,
    )
    view = RunsView(frame)
    assert_harmless(view._repr_html_())
    html = view.html()
    assert "★ 1.0000" in html and "★ 90.0%" in html and html.count("★") == 3 and "✗ failed" in html  # not on 0.0 %
    assert "\x1b" not in repr(view) and "\u202e" not in repr(view) and len(repr(view).splitlines()) == len(HOSTILE) + 3
    # Figures of other rows are not compared.
    assert "★" not in repr(RunsView(frame.assign(answers=[2] * 6 + [4])))
    assert "★" not in repr(RunsView(pandas.DataFrame({"data_file": list("abcdefg")}, HOSTILE).join(frame)))


def test_seeds_of_one_configuration_are_summed_up():
    runs = {
        "model.lora.r": [8, 8, 8, 16, 16],
        "train.seed": [1, 2, 3, 1, 2],
        "state": ["finished", "finished", "failed", "finished", "finished"],
        "dev_loss": [1.0, 3.0, 9.0, 2.0, None],
        "f1": [0.5, 0.7, None, 0.25, 0.25],
    }
    text = RunsView(pandas.DataFrame(runs, index=list("abcde"))).text()
    assert "2.0000 ± 1.4142" in text and "60.0% ± 14.1" in text  # of a and b: c has failed
    assert "25.0% ± 0.0" in text and "model.lora.r=16" in text
    alone = pandas.DataFrame({key: values[2:4] for key, values in runs.items()}, index=["c", "d"])
    assert "±" not in RunsView(alone).text()
    only_seeds = pandas.DataFrame({key: runs[key][:2] for key in ("train.seed", "state", "f1")}, index=["a", "b"])
    assert "all of them" in RunsView(only_seeds).text()
