"""A table of runs, over runs that were really made: by the command line's `--multirun` and by `ragfit.train`."""

import json
import os
import statistics

import forked
import pandas
import pytest
from harmless import HOSTILE, assert_harmless
from tiny_runs import MARKER, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.__main__ import main
from ragfit.config.overrides import override
from ragfit.errors import ConfigError
from ragfit.evaluation.results import save_evaluation
from ragfit.runs.seeds import spread_of_rows
from ragfit.runs.table import find_runs
from ragfit.views import RunsView


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(12))


@pytest.mark.slow
def test_a_sweep_with_a_run_that_fails(tiny_llama, rows, tmp_path, capsys):
    """The runs behind the failing one go on, the exit code says that one failed, and the table says which."""
    keys = {"model.model_name_or_path": str(tiny_llama), "model.completion_start": MARKER, "data_file": str(rows)}
    words = [override(key, value) for key, value in keys.items()]
    words += [
        "output_key=answers",
        "train.output_dir=sweep",
        "dev_split=3",
        "model.load_in_8bit=false",
        "train.optim=adamw_torch",
    ]
    words += ["train.max_steps=2", "train.logging_steps=1", "--multirun"]
    words += ["model.lora.target_modules=[q_proj],[nope],[v_proj,q_proj]", "train.learning_rate=0.001,fast,0.05"]
    result = forked.command("ragfit.training", *words, cwd=tmp_path)
    assert result.returncode == 1 and "'nope' matches no layer of this model" in result.stderr

    frame = ragfit.table_of_runs(tmp_path / "sweep")
    assert list(frame.index) == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert list(frame.columns[:3]) == ["model.lora.target_modules", "train.learning_rate", "state"]
    assert frame["model.lora.target_modules"].tolist() == ["q_proj"] * 3 + ["nope"] * 3 + ["v_proj, q_proj"] * 3
    assert frame["train.learning_rate"].tolist() == [0.001, "fast", 0.05] * 3
    assert frame["state"].tolist() == ["finished", "failed", "finished"] + ["failed"] * 3 + [
        "finished",
        "failed",
        "finished",
    ]
    assert frame["problem"].dropna().index.tolist() == ["1", "3", "4", "5", "7"] and "nope" in frame["problem"]["3"]
    assert frame["problem"]["1"].startswith(
        "train.learning_rate: 'fast' is not allowed"
    )  # refused for its configuration
    assert "failed, before the first step: train.learning_rate: 'fast' is not allowed" in repr(
        ragfit.run_status(tmp_path / "sweep" / "1")
    )
    done = frame[frame["state"] == "finished"]
    assert done["step"].tolist() == [2] * 4 and done["dev_loss"].nunique() == 4 and (done["seconds"] > 0).all()
    printed = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("dev loss")]
    assert [f"{loss:.4f}" for loss in done["dev_loss"]] == printed
    logs = [
        json.loads((tmp_path / "sweep" / name / "trainer_state.json").read_text())["log_history"] for name in done.index
    ]
    assert done["train_loss"].tolist() == [[entry["loss"] for entry in log if "loss" in entry][-1] for log in logs]
    assert "f1" not in frame  # nothing was answered

    main(["runs", str(tmp_path / "sweep")])
    said = capsys.readouterr().out
    assert said.startswith("9 runs:") and f"★ {done['dev_loss'].min():.4f}" in said and "failed" in said


@pytest.mark.slow
def test_evaluations_and_several_roots(tiny_llama, rows, tmp_path):
    for name, steps in (("a", 1), ("b", 30)):
        keys = [
            "dev_split=3",
            f"train.max_steps={steps}",
            "train.learning_rate=0.02",
            "model.lora.modules_to_save=[lm_head]",
        ]
        trainer = tiny_trainer(tiny_config(tiny_llama, rows, tmp_path / name / "run", *keys))
        ragfit.train(trainer)
        view = ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
    frame = ragfit.table_of_runs(tmp_path / "a", tmp_path / "b")
    assert list(frame.index) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    assert list(frame) == [
        "train.max_steps",
        "state",
        "step",
        "train_loss",
        "dev_loss",
        "exact_match",
        "f1",
        "recall",
        "answers",
        "seconds",
    ]
    assert frame.iloc[1][["dev_loss", "f1"]].tolist() == [
        view.summary["dev_loss"]["tuned"],
        view.summary["f1"]["tuned"],
    ]
    assert frame["answers"].tolist() == [2, 2] and frame["f1"].iloc[1] > frame["f1"].iloc[0]
    assert ragfit.table_of_runs(tmp_path / "a" / "run").index.tolist() == ["run"]  # the root is the run
    assert len(ragfit.table_of_runs(tmp_path, tmp_path / "a")) == 2  # each once

    # A later run in the same folder: the evaluation of the earlier one is not its own.
    status = tmp_path / "a" / "run" / "status.json"
    facts = json.loads(status.read_text()) | {
        "started": "2999-01-01T00:00:00+00:00",
        "state": "failed",
        "reason": "no memory",
    }
    status.write_text(json.dumps(facts))
    frame = ragfit.table_of_runs(tmp_path)
    assert frame.loc["a/run", ["state", "problem"]].tolist() == ["failed", "no memory"]
    assert frame.loc["a/run", ["train_loss", "dev_loss", "f1"]].isna().all() and frame.loc["b/run", "f1"] > 0


def test_what_is_left_of_odd_runs(tmp_path):
    (tmp_path / "old" / "checkpoint").mkdir(parents=True)
    (tmp_path / "old" / "checkpoint" / "ragfit.yaml").write_text(
        "model: {lora: {r: 4, target_modules: [a, b]}}\ntrain: {output_dir: x}\n"
    )
    for name, text in (("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        for file in ("status.json", "ragfit.yaml", "evaluation.json", "trainer_state.json"):
            (tmp_path / name / file).write_text(text)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "ragfit.yaml").write_text(
        "model: {lora: {r: 8, target_modules: [a]}}\ntrain: {output_dir: y}\n"
    )
    (tmp_path / "new" / "checkpoint-5").mkdir()
    (tmp_path / "new" / "checkpoint-5" / "ragfit.yaml").write_text("model: {}")
    frame = ragfit.table_of_runs(tmp_path)
    assert frame.index.tolist() == ["broken", "list", "new", "old"]
    assert frame.loc["old"].to_dict() == {"model.lora.r": 4, "model.lora.target_modules": "a, b", "state": "finished"}
    assert pandas.isna(frame.loc["broken", "state"])
    assert_harmless(RunsView(frame)._repr_html_())


FACTS = {
    "state": "running", "doing": "training", "host": "elsewhere", "pid": 7, "process_started": 9, "step": 3, "total_steps": 9, "loss": 2.5,
    "started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:00:00+00:00", "seconds_per_step": 1.5,
}  # fmt: skip
SCORES = {
    "written": "2026-01-02T00:00:00+00:00",
    "rows": 4,
    "dev_loss": {"tuned": 1.5},
    "f1": {"base": 0.25, "tuned": 0.5},
}
WRONG = [
    None,
    True,
    "3",
    "\ud800",
    [],
    [3],
    {},
    {"tuned": "x"},
    10**30,
    float("nan"),
    float("inf"),
    -1,
    "2026-01-01",
    "2026-01-01T00:00:00",
]
DAMAGED = {
    "cut short": b'{"state": "fini', "empty": b"", "null": b"null", "a number": b"3", "a list": b"[1]", "a text": b'"x"', "no text": b"\x00\xff\xfe",
    "deep": b"[" * 100_000, "long": b'{"x": ' + b"9" * 5000 + b"}", "no keys of ours": b'{"a": 1}', "utf-16": '{"state": "finished"}'.encode("utf-16"),
    "wrong tags": b"a: !!bool 3\nb: !!int ''\n", "aliases": b"a: &a {x: 1}\nb: &b {x: *a}\n", "tags": b"a: !!python/object:os.system {}\n",
    "itself": b"a: &a {b: *a}", "our columns": b"state: [x]\nproblem: 3\ndev_loss: high\nstep: one\nrun: 1\n", "odd values": b"a: 2026-01-01\n? [1, 2]\n: x\nb: !!set {x}\nc: [[1], {d: 1}]\n1: .nan\n", "half": b'"\\ud800": "\\udfff"\n',
}  # fmt: skip


def write_run(folder, **files):
    folder.mkdir(parents=True)
    files = {
        "status.json": json.dumps(FACTS),
        "ragfit.yaml": "model: {lora: {r: 4}}",
        "evaluation.json": json.dumps(SCORES),
    } | files
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def assert_table(root, *names):
    """All runs are in the table, the whole one as it is, and both drawings of it harm nobody; the status is told too."""
    frame = ragfit.table_of_runs(root)
    assert sorted(frame.index) == sorted([*names, "whole"])
    assert frame.loc["whole", ["state", "step", "dev_loss", "f1", "answers"]].tolist() == ["silent", 3, 1.5, 0.5, 4]
    view = RunsView(frame)
    assert len(view.text().encode()) < 12_000
    assert_harmless(view._repr_html_())
    for name in names:
        try:
            status = ragfit.run_status(root / name)
        except ConfigError as error:
            assert "has no status.json that a run wrote" in str(error)  # noqa: PT017
        else:
            assert_harmless(status._repr_html_())
            status.text().encode()
    return frame


@pytest.mark.parametrize("name", ["status.json", "ragfit.yaml", "evaluation.json", "trainer_state.json"])
def test_a_damaged_or_foreign_file_spoils_no_other_run(tmp_path, name):
    write_run(tmp_path / "whole")
    for damage, content in DAMAGED.items():
        write_run(tmp_path / damage, **{name: content})
    for kind in ("a folder", "a pipe", "a link to itself", "huge"):
        write_run(tmp_path / kind)
        path = tmp_path / kind / name
        path.unlink(missing_ok=True)
        if kind == "a folder":
            path.mkdir()
        elif kind == "a pipe":
            os.mkfifo(path)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(2**40)
        else:
            path.symlink_to(path)
    assert_table(tmp_path, *DAMAGED, "a folder", "a pipe", "a link to itself", "huge")


@pytest.mark.parametrize(("name", "whole"), [("status.json", FACTS), ("evaluation.json", SCORES)])
def test_a_value_of_another_kind_spoils_no_other_run(tmp_path, name, whole):
    write_run(tmp_path / "whole")
    changes = [{key: value} for key in whole for value in WRONG]
    for number, change in enumerate(changes):
        write_run(tmp_path / str(number), **{name: json.dumps(whole | change)})
    frame = assert_table(tmp_path, *map(str, range(len(changes))))
    kinds = {
        column: {type(value) for value in frame[column].dropna()} for column in ("step", "dev_loss", "f1", "answers")
    }
    assert all(found <= {int, float} for found in kinds.values()), kinds


def test_a_folder_s_name_that_is_no_text(tmp_path):
    write_run(tmp_path / "whole")
    write_run(tmp_path / os.fsdecode(b"\xff"))
    assert ragfit.table_of_runs(tmp_path).index.tolist() == ["whole", "\\udcff"]


def test_a_run_s_own_checkpoints_are_no_runs_and_other_folders_of_that_name_are(tmp_path):
    runs = [
        "checkpoint",
        "checkpoint-8b",
        "exp/checkpoints/r8",
        "exp/checkpoints/r8/checkpoint-9",
        "exp/checkpoint/r4",
        "exp/checkpoint-100",
        "earlier.1/r2",
    ]
    for name in runs:
        write_run(tmp_path / name)
    for name in ("checkpoint", "checkpoint.1", "checkpoint-20", "checkpoint.part-x1", "earlier.1/checkpoint-5"):
        own = tmp_path / "exp" / "checkpoints" / "r8" / name
        own.mkdir(parents=True)
        (own / "ragfit.yaml").write_text("model: {}")
    assert sorted(str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)) == sorted(runs)


def test_a_merged_model_and_a_copied_adapter_are_no_runs(tmp_path):
    write_run(tmp_path / "r8")
    for name, file in (("merged", "config.json"), ("best", "adapter_config.json")):
        (tmp_path / name).mkdir()
        for part in ("ragfit.yaml", file):
            (tmp_path / name / part).write_text("{}")
    assert find_runs(tmp_path) == [tmp_path / "r8"]


def test_a_run_that_was_refused_need_not_name_the_class(tmp_path):
    for name, target in (("0", "  _target_: ragfit.models.hf.HFTrain\n"), ("1", "")):
        write_run(tmp_path / name)
        (tmp_path / name / "ragfit.yaml").write_text(f"model:\n{target}  max_sequence_len: {name}\n")
    assert list(ragfit.table_of_runs(tmp_path))[0] == "model.max_sequence_len"


def test_natural_order(tmp_path):
    for number in (10, 9, 0):
        write_run(tmp_path / str(number))
    assert [path.name for path in find_runs(tmp_path)] == ["0", "9", "10"]


def test_no_runs(tmp_path):
    with pytest.raises(ConfigError, match="^folder: there is no folder .*nowhere. Name a run's train.output_dir"):
        ragfit.table_of_runs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="^folder: there is no run in .*. Name a run's train.output_dir"):
        ragfit.table_of_runs(tmp_path)
    with pytest.raises(SystemExit, match="error: folder: there is no run in"):
        main(["runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main(["runs"])


def test_view_of_hostile_text_and_the_best():
    frame = pandas.DataFrame(
        {
            "model.x": HOSTILE,
            "state": ["failed"] * 6 + ["finished"],
            "dev_loss": [3.0, 1.0, None, 2, 1.5, 4, 9],
            "f1": [0.1] * 6 + [0.9],
        },
        index=HOSTILE,
    )
    view = RunsView(frame)
    assert_harmless(view._repr_html_())
    html = view.html()
    assert "★ 1.0000" in html and "★ 90.0%" in html and html.count("★") == 3 and "✗ failed" in html
    assert "\x1b" not in repr(view) and "\u202e" not in repr(view) and len(repr(view).splitlines()) == len(HOSTILE) + 3
    assert "★" not in repr(RunsView(frame[:1]))


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


def test_single_rows_over_seeds(tmp_path):
    """Three seeds with the same means, of which two answer other rows right."""
    matches = {1: [1.0, 1.0, 0.0, 0.0], 2: [1.0, 0.0, 1.0, 0.0], 3: [1.0, 1.0, 0.0, 0.0]}
    for seed, values in matches.items():
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        (folder / "ragfit.yaml").write_text(f"train: {{seed: {seed}}}\n")
        (folder / "checkpoint").mkdir()
        rows = [{"source": f"dev.jsonl, line {n}", "tuned_exact_match": one} for n, one in enumerate(values)]
        save_evaluation(
            folder,
            {"written": "2026-01-01T00:00:00+00:00", "rows": 4, "exact_match": {"rows": 4, "tuned": 0.5}},
            [*rows, {"source": f"only here {seed}", "tuned_exact_match": 1.0}],
        )
        with (folder / "evaluation.jsonl").open("a") as file:
            file.write('{"source": 7, "tuned_exact_match": "<b>"}\n[1]\n{"cut')
    spread = spread_of_rows([tmp_path / f"seed-{seed}" for seed in matches])
    deviation = statistics.stdev([1, 0, 1]) * 2 / 4  # of rows 1 and 2; rows 0 and 3 stand still
    assert spread == {
        "rows": 4, "right in all runs": 1, "in some": 2, "in none": 1, "exact_match": pytest.approx(deviation)
    }  # fmt: skip
    view = RunsView(ragfit.table_of_runs(tmp_path))
    assert "50.0% ± 0.0" in view.text() and f"± {100 * deviation:.1f}" in view.text()
    assert "right in all runs" in view.html()
    (tmp_path / "seed-2" / "evaluation.jsonl").unlink()  # two of three are left
    assert spread_of_rows([tmp_path / "seed-2", tmp_path / "seed-1"]) == {}
