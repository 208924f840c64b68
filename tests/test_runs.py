"""A table of runs, over runs that were really made: by the command line's `--multirun` and by `ragfit.train`."""

import json
import os
import subprocess
import sys

import pandas
import pytest
from test_views import HOSTILE, assert_harmless
from tiny_runs import MARKER, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config import PROJECT_ROOT
from ragfit.errors import ConfigError
from ragfit.overrides import override
from ragfit.runs import find_runs, main
from ragfit.views import RunsView


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(12))


def test_a_sweep_with_a_run_that_fails(tiny_llama, rows, tmp_path, capsys):
    """The runs behind the failing one go on, the exit code says that one failed, and the table says which."""
    keys = {"model.model_name_or_path": str(tiny_llama), "model.completion_start": MARKER, "data_file": str(rows)}
    words = [override(key, value) for key, value in keys.items()]
    words += "output_key=answers train.output_dir=sweep dev_split=3 model.load_in_8bit=false train.optim=adamw_torch".split()
    words += "train.max_steps=2 train.logging_steps=1 --multirun".split()
    words += ["model.lora.target_modules=[q_proj],[nope],[v_proj,q_proj]", "train.learning_rate=0.001,0.05"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-m", "ragfit.training", *words]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "'nope' matches no layer of this model" in result.stderr

    frame = ragfit.table_of_runs(tmp_path / "sweep")
    assert list(frame.index) == ["0", "1", "2", "3", "4", "5"]
    assert list(frame.columns[:2]) == ["model.lora.target_modules", "train.learning_rate"]
    assert frame["model.lora.target_modules"].tolist() == ["q_proj"] * 2 + ["nope"] * 2 + ["v_proj, q_proj"] * 2
    assert frame["train.learning_rate"].tolist() == [0.001, 0.05] * 3
    assert frame["state"].tolist() == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2
    assert frame["problem"].dropna().index.tolist() == ["2", "3"] and "nope" in frame["problem"]["2"]
    done = frame[frame["state"] == "finished"]
    assert done["step"].tolist() == [2] * 4 and done["dev_loss"].nunique() == 4 and (done["seconds"] > 0).all()
    printed = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("dev loss")]
    assert [f"{loss:.4f}" for loss in done["dev_loss"]] == printed
    logs = [json.loads((tmp_path / "sweep" / name / "trainer_state.json").read_text())["log_history"] for name in done.index]
    assert done["train_loss"].tolist() == [[entry["loss"] for entry in log if "loss" in entry][-1] for log in logs]
    assert "f1" not in frame  # nothing was answered

    main([str(tmp_path / "sweep")])
    said = capsys.readouterr().out
    assert said.startswith("6 runs:") and f"★ {done['dev_loss'].min():.4f}" in said and "failed" in said


def test_evaluations_and_several_roots(tiny_llama, rows, tmp_path):
    for name, steps in (("a", 1), ("b", 30)):
        keys = ["dev_split=3", f"train.max_steps={steps}", "train.learning_rate=0.02", "model.lora.modules_to_save=[lm_head]"]
        trainer = tiny_trainer(tiny_config(tiny_llama, rows, tmp_path / name / "run", *keys))
        ragfit.train(trainer)
        view = ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
    frame = ragfit.table_of_runs(tmp_path / "a", tmp_path / "b")
    assert list(frame.index) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    assert list(frame) == ["train.max_steps", "state", "step", "train_loss", "dev_loss", "exact_match", "f1", "recall", "answers", "seconds"]
    assert frame.iloc[1][["dev_loss", "f1"]].tolist() == [view.summary["dev_loss"]["tuned"], view.summary["f1"]["tuned"]]
    assert frame["answers"].tolist() == [2, 2] and frame["f1"].iloc[1] > frame["f1"].iloc[0]
    assert ragfit.table_of_runs(tmp_path / "a" / "run").index.tolist() == ["run"]  # the root is the run
    assert len(ragfit.table_of_runs(tmp_path, tmp_path / "a")) == 2  # each once

    # A later run in the same folder: the evaluation of the earlier one is not its own.
    status = tmp_path / "a" / "run" / "status.json"
    facts = json.loads(status.read_text()) | {"started": "2999-01-01T00:00:00+00:00", "state": "failed", "reason": "no memory"}
    status.write_text(json.dumps(facts))
    frame = ragfit.table_of_runs(tmp_path)
    assert frame.loc["a/run", ["state", "problem"]].tolist() == ["failed", "no memory"]
    assert frame.loc["a/run", ["train_loss", "dev_loss", "f1"]].isna().all() and frame.loc["b/run", "f1"] > 0


def test_what_is_left_of_odd_runs(tmp_path):
    (tmp_path / "old" / "checkpoint").mkdir(parents=True)
    (tmp_path / "old" / "checkpoint" / "ragfit.yaml").write_text("model: {lora: {r: 4, target_modules: [a, b]}}\ntrain: {output_dir: x}\n")
    for name, text in (("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        for file in ("status.json", "ragfit.yaml", "evaluation.json", "trainer_state.json"):
            (tmp_path / name / file).write_text(text)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "ragfit.yaml").write_text("model: {lora: {r: 8, target_modules: [a]}}\ntrain: {output_dir: y}\n")
    (tmp_path / "new" / "checkpoint-5").mkdir()
    (tmp_path / "new" / "checkpoint-5" / "ragfit.yaml").write_text("model: {}")
    frame = ragfit.table_of_runs(tmp_path)
    assert frame.index.tolist() == ["broken", "list", "new", "old"]
    assert frame.loc["old"].to_dict() == {"model.lora.r": 4, "model.lora.target_modules": "a, b", "state": "finished"}
    assert pandas.isna(frame.loc["broken", "state"])
    assert_harmless(RunsView(frame)._repr_html_())


def test_natural_order(tmp_path):
    for number in (10, 9, 0):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "ragfit.yaml").write_text("model: {}")
    assert [path.name for path in find_runs(tmp_path)] == ["0", "9", "10"]


def test_no_runs(tmp_path):
    with pytest.raises(ConfigError, match="There is no folder .*nowhere"):
        ragfit.table_of_runs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="There is no run in"):
        ragfit.table_of_runs(tmp_path)
    with pytest.raises(SystemExit, match="error: There is no run in"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="usage"):
        main([])


def test_view_of_hostile_text_and_the_best():
    frame = pandas.DataFrame(
        {"model.x": HOSTILE, "state": ["failed"] * 6 + ["finished"], "dev_loss": [3.0, 1.0, None, 2, 1.5, 4, 9], "f1": [0.1] * 6 + [0.9]},
        index=HOSTILE,
    )
    view = RunsView(frame)
    assert_harmless(view._repr_html_())
    html = view.html()
    assert "★&nbsp;1.0000" in html and "★&nbsp;90.0%" in html and html.count("★") == 3 and "✗ failed" in html
    assert "\x1b" not in repr(view) and "\u202e" not in repr(view) and len(repr(view).splitlines()) == len(HOSTILE) + 3
    assert "★" not in repr(RunsView(frame[:1]))
