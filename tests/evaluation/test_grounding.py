"""Grounding: what an answer costs under other documents, and what is concluded from it."""

import json
import shutil

import pytest
from harmless import HOSTILE, assert_harmless
from tiny_runs import one_thread, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.__main__ import main
from ragfit.data.documents import find_documents
from ragfit.errors import ConfigError, DataError
from ragfit.evaluation.grounding import estimate, grounding, summarize, values_of
from ragfit.evaluation.losses import token_losses
from ragfit.evaluation.reading import completion_losses, read


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
def sliding(tmp_path_factory, tiny_tokenizer):
    """A model whose attention sees eight tokens back, so that its cache holds no more than that."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("sliding")
    config = MistralConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=8, max_position_embeddings=512,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
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


def texts_of(prepared, index):
    """(prompt, output) of a dev row as it is, and without each of its documents."""
    query, output, row = prepared.row(prepared.report.dev.kept[index], "dev")
    found = find_documents(query, row)
    without = [[one for one in found.documents if one is not left] for left in found.documents]
    return [(query, output), *((found.prompt(documents), output) for documents in [*without, []])]


def test_with_all_documents_it_is_what_the_trainer_reports(trainer):
    for index in range(3):
        [reading] = read(trainer, texts_of(trainer.prepared, index)[:1])
        expected = [loss for loss in token_losses(trainer, index, "dev")["base"] if loss is not None]
        assert reading.losses == pytest.approx(expected, abs=1e-4)
        batch = trainer.data_collator([trainer.prepared.dev[index]])
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        assert sum(reading.losses) / len(reading.losses) == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_phi3", "sliding"])
def test_what_texts_have_in_common_changes_nothing(request, trainer_of, model):
    """A text that is read on from where it differs costs what it costs alone; a cache that cannot be cut is not."""
    trainer = trainer_of(request.getfixturevalue(model), rows_with_documents(12))
    prepared = trainer.prepared
    rows = prepared.encoder.encode([prepared.renderer.render(*text) for text in texts_of(prepared, 0)])
    together = completion_losses(trainer, rows)
    assert len(together) == 5 and (together[0] != together[1] or model == "sliding")
    for row, losses in zip(rows, together, strict=True):
        assert losses == pytest.approx(completion_losses(trainer, [row])[0], abs=1e-4)
        assert len(losses) == row.end - row.start


def test_citations_and_the_end_are_told_from_the_answer(trainer):
    [reading] = read(trainer, [("Who?", "Ada [1][2, 3].")])
    kinds = {
        kind: "".join(t for t, k in zip(reading.tokens, reading.kinds, strict=True) if k == kind)
        for kind in reading.kinds
    }
    assert kinds == {"answer": "Ada .", "citation": "[1][2, 3]", "end": "<|im_end|>"}
    assert "".join(text for text, _ in reading.answer()) == "Ada ."


def test_estimate():
    """A share of rows has Wilson's interval, other means the bootstrap's, and one row none."""
    assert estimate([2.0]) == {"mean": 2.0, "low": None, "high": None, "rows": 1}
    assert estimate([True] * 8) == {"mean": 1.0, "low": pytest.approx(0.676, abs=1e-3), "high": 1.0, "rows": 8}
    many = estimate([0.0, 1.0] * 50)
    # The mean of 100 tosses of a coin has a standard deviation of 0.05.
    assert many["mean"] == 0.5 and (many["low"], many["high"]) == pytest.approx((0.4, 0.6), abs=0.02)


def test_what_a_rows_values_are():
    def of(all_, first, second, answer, **more):
        return {"losses": {"all": all_, "without 1": first, "without 2": second, **more}, "answer": answer}

    row = {
        "supporting": [2],
        "expected": "Ada [2]",
        "documents": [{"number": 1}, {"number": 2}],
        "base": of(3.0, 3.5, 2.0, "Ada [1]", none=2.0, supporting=1.0),
        "tuned": of(1.0, 1.0, 5.0, "Ada [2]", none=9.0),
    }
    base, tuned = values_of(row, "base"), values_of(row, "tuned")
    expected = {
        "top_is_supporting": (False, True),
        "chance": (0.5, 0.5),
        "rise_supporting": (-1.0, 4.0),
        "rise_others": (0.5, 0.0),
        "cheaper_without": (True, False),
        "cites_expected": (False, True),
        "cites_top": (True, True),
        "expected_is_top": (False, True),
    }
    assert {name: (base[name], tuned[name]) for name in expected} == expected
    found = summarize([row])
    assert found["rise_supporting"]["difference"]["mean"] == 5.0
    of = summarize([row] * 8)["cites_expected"]  # right in 8 of 8 rows, where the base was in none
    assert [round(of["difference"][bound], 2) for bound in ("mean", "low", "high")] == [1.0, 0.54, 1.0]
    assert "loss_supporting" not in found  # base and tuned stand on the same rows, and tuned has none


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
    text = repr(view)
    assert "depends most on a supporting document" in text and "loss with all documents" in text
    assert_harmless(view.html())
    assert_harmless(view.row(0).html())
    assert "supports" in repr(view.row(0)) and "Which number has box" in repr(view.row(0))


def test_hostile_documents_and_rows_without_documents(trainer_of, tiny_llama):
    rows = rows_with_documents(4)
    rows += [{"prompt": f"[1] {text} Ada\n[2] Bob", "answers": ["Ada"]} for text in HOSTILE]
    rows += [{"prompt": "Nothing to read.", "answers": ["Ada"]}] * 3
    view = grounding(trainer_of(tiny_llama, rows), rows=None, save=False)
    assert view.summary["unread"] and "could not be found in the prompt" in repr(view)
    for index in range(len(view.rows)):
        assert_harmless(view.row(index).html())
    assert "\x1b" not in repr(view.row(0)) and "\u202e" not in repr(view.row(0))


def test_questions_that_rows_do_not_answer_are_told(trainer_of, tiny_llama):
    rows = [{"prompt": f"Is {n} even?\n[1] Ada\n[2] Bob", "answers": ["no" if n % 2 else "yes"]} for n in range(12)]
    view = grounding(trainer_of(tiny_llama, rows), rows=1, save=False)
    text = repr(view)
    assert view.title == "Does the model read its documents? 1 dev row" and view.astray() == []
    assert "loss without documents" in text and "depends most on" not in text
    assert text.count("Not measured") == 5 and "no expected answer cites a document" in text
    assert "loss with the supporting documents only (nats): no supporting document is known" in text
    assert "fewer than 9 documents of other rows were read" in text


def test_what_cannot_be_measured(trainer, trainer_of, tiny_llama):
    with pytest.raises(ConfigError, match="^rows: it is 0. Give the number of rows"):
        grounding(trainer, rows=0)
    bare = [{"prompt": f"Question {n}?", "answers": ["Ada"]} for n in range(12)]
    with pytest.raises(ConfigError, match="^input_key: none of the 8 rows has documents .*Number them in the prompt"):
        grounding(trainer_of(tiny_llama, bare))
    rows = [{**row, "positive_indices": [row["positive_indices"][0] - 1]} for row in rows_with_documents(12)]
    with pytest.raises(DataError, match="positive_indices names document 0, but .* from 1. Add 1 to each number"):
        grounding(trainer_of(tiny_llama, rows), save=False)


def test_the_command_and_the_table_of_runs(finished_run, tmp_path, capsys):
    copied = shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(SystemExit, match="error: input_key: none of the .* rows has documents"):
        main(["grounding", str(copied / "checkpoint")])
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_with_documents(6)))
    main(["grounding", str(copied / "checkpoint"), "--data", str(data), "--rows", "4", "--out", str(copied)])
    assert "Does the model read its documents? 4 dev rows" in capsys.readouterr().out
    # Figures of other rows are not the run's, even where they are sent to its folder.
    measured = json.loads((copied / "evaluation-test" / "grounding.json").read_text())
    assert "grounded" not in ragfit.table_of_runs(copied)
    (copied / "grounding.json").write_text(json.dumps(measured))
    assert ragfit.table_of_runs(copied)["grounded"].tolist() == [measured["top_is_supporting"]["tuned"]["mean"]]
