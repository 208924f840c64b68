"""Grounding: what an answer costs under other documents, and what is concluded from it."""

import json
import shutil

import pytest
from harmless import HOSTILE, assert_harmless
from tiny_runs import one_thread, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.__main__ import main
from ragfit.errors import ConfigError, DataError
from ragfit.evaluation.grounding import estimate, grounding, summarize, values_of
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.probes import probes, taken_apart
from ragfit.evaluation.reading import read


def rows_with_documents(count, number_of=3):
    rows = []
    for n in range(count):
        documents = [f"The number of box {n} is {n * 7 % 10}.", *(f"Box {n + k} is blue." for k in range(1, number_of))]
        documents = documents[n % number_of :] + documents[: n % number_of]
        numbered = "\n".join(f"[{k}] {text}" for k, text in enumerate(documents, 1))
        place = (number_of - n % number_of) % number_of + 1
        prompt = f"Question: Which number has box {n}?\n\nDocuments:\n{numbered}"
        rows.append({"prompt": prompt, "answers": [f"{n * 7 % 10} [{place}]"], "positive_indices": [place]})
    return rows


@pytest.fixture(scope="module")
def sliding(tmp_path_factory, tiny_phi3):
    """A model whose attention sees eight tokens back, so that its cache holds no more than that."""
    folder = shutil.copytree(tiny_phi3, tmp_path_factory.mktemp("sliding") / "phi3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    return folder


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    """A trainer over rows with documents, for a model's folder."""

    def make(model, rows):
        folder = tmp_path_factory.mktemp("run")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        cfg = tiny_config(model, folder / "rows.jsonl", folder / "out", "dev_split=8", "model.lora.lora_dropout=0.5")
        return tiny_trainer(cfg)

    return make


@pytest.fixture(scope="module")
def trainer(trainer_of, tiny_llama):
    return trainer_of(tiny_llama, rows_with_documents(24))


def texts_of(trainer, index):
    """A dev row as it is, and under other documents, by name."""
    return probes(taken_apart(trainer.prepared, "dev", None)[0], index)


def test_with_all_documents_it_is_what_the_trainer_reports(trainer):
    for index in range(3):
        [reading] = read(trainer, [texts_of(trainer, index)["all"]])
        expected = [loss for loss in token_losses(trainer, index, "dev")["base"] if loss is not None]
        assert reading.losses == pytest.approx(expected, abs=1e-4)
        loss = trainer.compute_loss(trainer.model.eval(), dict(trainer.data_collator([trainer.prepared.dev[index]])))
        assert sum(reading.losses) / len(reading.losses) == pytest.approx(float(loss.detach()), abs=1e-4)
    [reading] = read(trainer, [("Who?", "Ada [1][2, 3].")])  # citations and the end are told from the answer
    assert "".join(text for text, _ in reading.answer) == "Ada ." and len(reading.answer) < len(reading.losses)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_phi3", "sliding"])
def test_what_texts_have_in_common_changes_nothing(request, trainer_of, model):
    """A text that is read on from where it differs costs what it costs alone; a cache that cannot be cut is not."""
    trainer = trainer_of(request.getfixturevalue(model), rows_with_documents(12))
    texts = list(texts_of(trainer, 0).values())
    together = read(trainer, texts)
    assert len(together) == 21 and (together[0] != together[1] or model == "sliding")
    for text, found in zip(texts, together, strict=True):
        assert found.losses == pytest.approx(read(trainer, [text])[0].losses, abs=1e-4)


def test_estimate():
    """A share of rows has Wilson's interval, other means the bootstrap's, and one row none."""
    assert estimate([2.0]) == {"mean": 2.0, "low": None, "high": None, "rows": 1}
    assert estimate([True] * 8) == {"mean": 1.0, "low": pytest.approx(0.676, abs=1e-3), "high": 1.0, "rows": 8}
    many = estimate([0.0, 1.0] * 50)
    # The mean of 100 tosses of a coin has a standard deviation of 0.05.
    assert many["mean"] == 0.5 and (many["low"], many["high"]) == pytest.approx((0.4, 0.6), abs=0.02)


def test_what_a_rows_values_are():
    def of(all_, first, second, answer, **more):
        losses = {"all": all_, **more}
        return {"losses": losses, "rise": {1: first - all_, 2: second - all_}, "answer": answer}

    row = {
        "supporting": [2],
        "expected": "Ada [2]",
        "base": of(3.0, 3.5, 2.0, "Ada [1]", none=2.0, supporting=1.0),
        "tuned": of(1.0, 1.0, 5.0, "Ada [2]", none=9.0, supporting=1.0),
    }
    base, tuned = (row[name].setdefault("values", values_of(row, name)) for name in ("base", "tuned"))
    expected = {
        "top_is_supporting": (False, True), "chance": (0.5, 0.5), "rise_supporting": (-1.0, 4.0),
        "rise_others": (0.5, 0.0), "cheaper_without": (True, False), "cites_expected": (False, True),
        "cites_top": (True, True), "expected_is_top": (False, True),
    }  # fmt: skip
    assert {name: (base[name], tuned[name]) for name in expected} == expected
    found = summarize([row] * 8)  # right in 8 of 8 rows, where the base was in none
    assert found["rise_supporting"]["difference"]["mean"] == 5.0
    assert [round(found["cites_expected"]["difference"][bound], 2) for bound in ("low", "high")] == [0.54, 1.0]


def test_grounding_of_a_run(trainer, tmp_path):
    view = grounding(trainer, rows=6, save=tmp_path / "saved")
    rows = [json.loads(line) for line in (tmp_path / "saved" / "grounding.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "saved" / "grounding.json").read_text())
    assert view.saved == tmp_path / "saved" / "grounding.jsonl" and len(rows) == 6
    # An adapter that has not been trained changes nothing, and is not called the tuned model.
    assert "tuned" not in rows[0] and "No trained adapter is loaded" in repr(view)
    assert set(summary["loss_all"]) == {"base"} and summary["chance"]["base"]["mean"] == pytest.approx(1 / 3)
    wide, narrow = ({name for name in row["base"]["losses"] if "others" in name or "place" in name} for row in rows[:2])
    assert wide == {f"{n} others" for n in (0, 1, 2, 4, 8)} | {f"place {n}" for n in range(1, 11)} and not narrow
    assert "depends most on a supporting document" in repr(view) and assert_harmless(view.html() + view.row(0).html())
    assert "supports" in repr(view.row(0)) and "Which number has box" in repr(view.row(0))


def test_hostile_documents_and_rows_without_documents(trainer_of, tiny_llama):
    rows = rows_with_documents(4)
    rows += [{"prompt": f"[1] {text} Ada\n[2] Bob", "answers": ["Ada"]} for text in HOSTILE]
    rows += [{"prompt": "Nothing to read.", "answers": ["Ada"]}] * 3
    view = grounding(trainer_of(tiny_llama, rows), rows=None, save=False)
    assert view.summary["unread"] and "No documents could be found in 3 rows" in repr(view)
    for index in range(len(view.rows)):
        assert_harmless(view.row(index).html())
    assert "\x1b" not in repr(view.row(0)) and "\u202e" not in repr(view.row(0))


def test_questions_that_rows_do_not_answer_are_told(trainer_of, tiny_llama):
    rows = [{"prompt": f"Is {n} even?\n[1] Ada\n[2] Bob", "answers": ["no" if n % 2 else "yes"]} for n in range(12)]
    view = grounding(trainer_of(tiny_llama, rows), rows=1, save=False)
    text = repr(view)
    assert view.title == "Does the model read its documents? 1 dev row" and view.astray() == []
    assert "loss without documents" in text and "depends most on a supporting document" not in text
    assert text.count("Not measured") == 5 and "supporting documents only (nats): no supporting document" in text


def test_what_cannot_be_measured(trainer_of, tiny_llama):
    bare = [{"prompt": f"Question {n}?", "answers": ["Ada"]} for n in range(12)]
    with pytest.raises(ConfigError, match="^input_key: of 8 rows none has documents .*Number them in the prompt"):
        grounding(trainer_of(tiny_llama, bare))
    rows = [{**row, "positive_indices": [row["positive_indices"][0] - 1]} for row in rows_with_documents(12)]
    with pytest.raises(DataError, match="line .* names document 0 of documents numbered from 1. Add 1 to each"):
        grounding(trainer_of(tiny_llama, rows), save=False)


def test_the_command_and_the_table_of_runs(finished_run, tmp_path, capsys):
    copied = shutil.copytree(finished_run, tmp_path / "run")
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_with_documents(6)))
    main(["grounding", str(copied / "checkpoint"), "--data", str(data), "--rows", "4", "--out", str(copied)])
    assert "Does the model read its documents? 4 dev rows" in capsys.readouterr().out
    # Figures of other rows are not the run's, even where they are sent to its folder.
    measured = json.loads((copied / "evaluation-test" / "grounding.json").read_text())
    assert "grounded" not in ragfit.table_of_runs(copied)
    (copied / "grounding.json").write_text(json.dumps(measured))
    assert ragfit.table_of_runs(copied)["grounded"].tolist() == [measured["top_is_supporting"]["tuned"]["mean"]]
