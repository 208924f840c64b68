"""Evaluation: metrics against their published definitions, answers of real models, the view and what is saved."""

import json
import shutil

import pandas
import pytest
import torch
from harmless import HOSTILE, assert_harmless
from tiny_runs import MARKER, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

import ragfit
from ragfit.__main__ import main
from ragfit.config.overrides import override
from ragfit.errors import ConfigError, RagfitError
from ragfit.evaluation.generate import generate, longest_answer
from ragfit.evaluation.label_scores import label_scores
from ragfit.evaluation.metrics import Gold, scores
from ragfit.evaluation.results import save_evaluation, summarize
from ragfit.evaluation.token_losses import label_losses
from ragfit.models.load import weights_digest
from ragfit.training.reload import load_checkpoint
from ragfit.views import EvaluationView


def test_summary_counts_pairs():
    def row(base, tuned):
        return {"base_f1": base, "tuned_f1": tuned, "base_recall": None, "tuned_recall": None}

    found = summarize([row(0.0, 1.0), row(0.5, 0.25), row(1.0, 1.0), row(0.0, 0.25)])
    assert found == {"f1": {"rows": 4, "base": 0.375, "tuned": 0.625, "better": 2, "worse": 1}}
    assert summarize([{"tuned_f1": 0.5}]) == {"f1": {"rows": 1, "tuned": 0.5}}
    assert summarize([]) == {}


# --- Answers of real models ------------------------------------------------------------------------------------------

HEAD = ["model.lora.modules_to_save=[lm_head]"]
FAST = ["train.learning_rate=0.02", "train.warmup_ratio=0", "train.lr_scheduler_type=constant"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Questions of different lengths; the answers name a second spelling."""
    made = question_rows(12)
    for number, row in enumerate(made):
        row |= {"query": f"What is {number} times two?", "answers": [*row["answers"], f"{2 * number}"]}
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def learned(tiny_llama, rows, tmp_path_factory):
    """(trainer, dev loss before training, output folder) of a run that learned something, through `ragfit.train`."""
    keys = ["dev_split=3", "train.max_steps=40", "train.gradient_checkpointing=true"]
    folder = tmp_path_factory.mktemp("learned") / "out"
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, folder, *keys, *HEAD, *FAST))
    before = ragfit.dev_loss(trainer)
    ragfit.train(trainer)
    return trainer, before, folder


@pytest.fixture
def trained(learned, out):
    """(trainer, dev loss before training, checkpoint) of that run, with a copy of its folder as its folder."""
    trainer, before, folder = learned
    shutil.copytree(folder, out)
    trainer.args.output_dir = str(out)
    return trainer, before, out / "checkpoint"


def greedy(model, tokenizer, prompt, tokens):
    """Greedy decoding written out, without a cache."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    length = ids.shape[1]
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    for _ in range(tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1)[:, None]], 1)
        if int(ids[0, -1]) in ends:
            break
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()


@pytest.mark.slow
def test_base_and_tuned_model(tiny_llama, trained, out):
    trainer, before, _ = trained
    history, step = list(trainer.state.log_history), trainer.state.global_step
    for training in (True, False):
        trainer.model.train(training)
        view = ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
        assert trainer.model.training is training and trainer.model.config.use_cache is False
        assert trainer.model.is_gradient_checkpointing
    assert trainer.state.log_history == history and trainer.state.global_step == step  # nothing is logged

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    trainer.model.eval()
    prompts = [trainer.prepared.rendered(i, "dev").prompt for i in range(2)]
    assert [row["base"] for row in view.rows] == [greedy(plain, tokenizer, prompt, 9) for prompt in prompts]
    assert [row["tuned"] for row in view.rows] == [greedy(trainer.model, tokenizer, prompt, 9) for prompt in prompts]
    assert all(row["base"] != row["tuned"] and row["tuned"].startswith("The answer is") for row in view.rows)
    kept = trainer.prepared.report.dev.kept[:2]
    assert [(row["row"], row["expected"]) for row in view.rows] == [
        (n, [f"The answer is {2 * n}.", str(2 * n)]) for n in kept
    ]
    assert [row["question"] for row in view.rows] == [f"What is {n} times two?" for n in kept]
    assert view.title == "Answers on 2 dev rows"

    # The base is the model from before training, and the tuned loss is Trainer's.
    loss = view.summary["dev_loss"]
    assert loss == {"rows": 3, "base": pytest.approx(before), "tuned": pytest.approx(trainer.evaluate()["eval_loss"])}
    assert loss["tuned"] < loss["base"] - 1
    assert ragfit.evaluate(trainer, rows=0, base_loss=7.0).summary["dev_loss"]["base"] == 7.0  # taken, not measured
    f1 = view.summary["f1"]
    assert f1["tuned"] == sum(row["tuned_f1"] for row in view.rows) / 2 > f1["base"] and f1["better"] == 2
    assert "2 better, 0 worse, 0 same" in repr(view) and "2 better, 0 worse, 0 same" in view.html()


def test_saved_rows_and_summary(trained, out):
    trainer, _, _ = trained
    view = ragfit.evaluate(trainer, rows=None, max_new_tokens=9)
    assert view.saved == out / "evaluation.jsonl" and f"Saved in {view.saved}" in repr(view)
    lines = (out / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == view.rows and len(lines) == 3
    assert view.rows[0]["source"].endswith(f"rows.jsonl, line {view.rows[0]['row'] + 1}")
    frame = pandas.read_json(out / "evaluation.jsonl", lines=True)
    assert frame["tuned_f1"].mean() == pytest.approx(view.summary["f1"]["tuned"])
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary == view.summary and (summary["rows"], summary["part"]) == (3, "dev")
    assert not list(out.glob(".evaluation*"))
    ragfit.evaluate(trainer, rows=1, max_new_tokens=2)  # replaces both
    assert (
        len((out / "evaluation.jsonl").read_text().splitlines())
        == json.loads((out / "evaluation.json").read_text())["rows"]
        == 1
    )
    ragfit.evaluate(trainer, rows=2, max_new_tokens=2, save=False)
    assert json.loads((out / "evaluation.json").read_text())["rows"] == 1
    ragfit.evaluate(trainer, rows=0)
    assert not (out / "evaluation.jsonl").exists() and json.loads((out / "evaluation.json").read_text())["rows"] == 0


class Stopped(BaseException):
    """In place of SIGKILL."""


def generating(trainer, monkeypatch, until=1000):
    """Count the batches that are generated from now on, up to a number of them."""
    batches, real = [], trainer.model.generate

    def generate(**inputs):
        if len(batches) == until:
            raise Stopped
        batches.append(inputs["input_ids"].shape[0])
        return real(**inputs)

    monkeypatch.setattr(trainer.model, "generate", generate)
    return batches


def test_a_killed_evaluation_goes_on(trained, out, monkeypatch):
    trainer, _, _ = trained
    monkeypatch.setattr(trainer.args, "per_device_eval_batch_size", 1)
    whole = ragfit.evaluate(trainer, rows=None, max_new_tokens=9, save=out / "whole")
    first = ragfit.evaluate(trainer, rows=1, max_new_tokens=9)  # stays, whatever becomes of the next one
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        batches = generating(trainer, patch, until=3)
        ragfit.evaluate(trainer, rows=None, max_new_tokens=9)
    assert len(batches) == 3  # two answers of the base model were missing, so one of the tuned model is there
    assert json.loads((out / "evaluation.json").read_text()) == first.summary
    with (out / "evaluation.part.jsonl").open("a") as file:
        file.write('\n{"answered_with": "cut sho')
    with monkeypatch.context() as patch:
        batches = generating(trainer, patch)
        again = ragfit.evaluate(trainer, rows=None, max_new_tokens=9)
    assert len(batches) == 1 and again.rows == whole.rows
    assert "5 answers were already in" in repr(again) and "already" not in repr(whole)
    assert not (out / "evaluation.part.jsonl").exists()


def test_other_settings_and_other_weights_are_answered_again(trained, out, monkeypatch):
    trainer, _, _ = trained
    ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
    batches = generating(trainer, monkeypatch)
    ragfit.evaluate(trainer, rows=2, max_new_tokens=9, answer_marker="is")  # only compares otherwise
    assert not batches
    ragfit.evaluate(trainer, rows=2, max_new_tokens=8)
    assert batches == [2, 2]
    weight = next(one for name, one in trainer.model.named_parameters() if "lora_B" in name)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += 1e-3
    ragfit.evaluate(trainer, rows=2, max_new_tokens=8)
    assert batches == [2, 2, 2, 2]
    with torch.no_grad():
        weight.copy_(kept)
    view = ragfit.evaluate(trainer, rows=2, max_new_tokens=8, closed_book=True)
    assert len(batches) > 4 and all("base" in row for row in view.rows)


def test_weights_are_known_again_in_a_loaded_checkpoint(trained):
    trainer, _, checkpoint = trained
    loaded = load_checkpoint(checkpoint)
    assert weights_digest(loaded.model) == weights_digest(trainer.model)
    with trainer.model.disable_adapter():
        assert weights_digest(loaded.model) == weights_digest(trainer.model)  # the adapter counts, on or off


def test_a_folder_that_cannot_be_written_loses_no_answer(trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    view = ragfit.evaluate(trained[0], rows=1, max_new_tokens=2, save=tmp_path / "file")
    assert view.saved is None and len(view.rows) == 1 and "could not be saved" in repr(view)


def test_without_a_dev_set_or_an_adapter(tiny_llama, rows, out):
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, out, "model.lora=null", "limit=2"))
    assert ragfit.dev_loss(trainer) is None
    view = ragfit.evaluate(trainer, rows=5, max_new_tokens=3)
    assert view.title == "Answers on 2 train rows" and "flatter" in repr(view) and "dev loss" not in repr(view)
    assert all("base" not in row and row["tuned"] is not None for row in view.rows)
    assert view.columns == ["tuned"] and "All weights were trained" in view.html()
    assert view.saved is None and not (out / "evaluation.jsonl").exists()  # nothing was trained yet
    with pytest.raises(ConfigError, match="^rows: -1 is not a number of rows. Give one"):
        ragfit.evaluate(trainer, rows=-1)
    with pytest.raises(ConfigError, match="^max_new_tokens: 0 is not .* Give a number of tokens above 0"):
        ragfit.evaluate(trainer, max_new_tokens=0)


def test_answers_do_not_depend_on_the_batch(tiny_llama, rows, out):
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, out))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(8)  # so that answers depend on the prompt
    prepared = trainer.prepared
    prompts = [prepared.rendered(i, "train").prompt for i in range(len(prepared.train))]
    assert len({len(prompt) for prompt in prompts}) > 3
    alone = generate(trainer.model, prepared, prompts, 9, batch_size=1)
    assert len({text for text, _ in alone}) > 6
    for size in (4, 99):
        assert generate(trainer.model, prepared, prompts, 9, batch_size=size) == alone


def test_token_losses_do_not_depend_on_the_batch(trained):
    trainer, _, _ = trained
    rows = [trainer.prepared.train[index] for index in (0, 1, 2, 3)]  # padded to the longest
    trainer.model.eval()
    with torch.no_grad():
        alone = [label_losses(trainer.model, trainer.data_collator([row]))[0] for row in rows]
        together = label_losses(trainer.model, trainer.data_collator(rows))
    assert len({len(one) for one in alone}) > 1
    for row, one, padded in zip(rows, alone, together, strict=True):
        assert [loss is None for loss in one] == [label == -100 for label in row["labels"]]
        assert padded[: len(one)] == [loss if loss is None else pytest.approx(loss, abs=1e-4) for loss in one]
        assert set(padded[len(one) :]) <= {None}


def test_cut_answers_are_told(trained, recwarn):
    trainer, _, _ = trained
    answers = generate(trainer.model, trainer.prepared, [trainer.prepared.rendered(i).prompt for i in range(4)], 40)
    assert not any(cut for _, cut in answers)  # the tuned model ends its turn
    view = ragfit.evaluate(trainer, rows=2, max_new_tokens=2, save=False)
    assert all(row["tuned_cut"] for row in view.rows) and "tuned: 2 of 2 answers were cut at 2 tokens" in repr(view)
    assert trainer.model.is_activation_checkpointing and not [
        str(warning.message) for warning in recwarn
    ]  # red in a notebook


def test_the_longest_answer(tiny_llama, write_rows, out):
    def limit(words):
        cfg = tiny_config(tiny_llama, write_rows([{"prompt": "Q?", "answers": "no " * words}]), out)
        prepared = ragfit.prepare(cfg)
        return longest_answer(prepared, "train"), prepared.report.train.lengths[0][1]

    assert limit(1)[0] == 48
    allowed, longest = limit(50)
    assert 48 < allowed == 2 * longest < 256
    allowed, longest = limit(140)
    assert allowed == 256 > longest
    allowed, longest = limit(400)
    assert allowed == longest > 256


@pytest.mark.slow
def test_generation_settings_reach_generate(tiny_llama, rows, out):
    stop = AutoTokenizer.from_pretrained(tiny_llama).convert_tokens_to_ids("?")

    def answers(settings, longest=12):
        cfg = tiny_config(tiny_llama, rows, out, override("model.generation", settings))
        view = ragfit.evaluate(tiny_trainer(cfg), rows=1, max_new_tokens=longest)
        return view.rows[0]["tuned"], view.summary["max_new_tokens"]

    greedy_answer = answers({"do_sample": False})
    assert greedy_answer[1] == 12 and answers({"max_new_tokens": 12}, None) == greedy_answer
    assert answers({"max_new_tokens": 2}, None) == answers({"eos_token_id": [stop]}, 2) != greedy_answer
    assert answers({"max_new_tokens": 2}) == greedy_answer  # what is asked for in the call wins
    assert answers({"do_sample": True, "temperature": 50.0}) != greedy_answer
    assert answers({"num_beams": 2, "num_return_sequences": 2, "return_dict_in_generate": True})
    assert answers({"bad_words_ids": [[stop]], "watermarking_config": {"greenlist_ratio": 0.5, "bias": 2.0}})
    assert answers({"max_new_tokens": None}) == greedy_answer


# --- A checkpoint of an earlier run ----------------------------------------------------------------------------------


def test_a_checkpoint_is_evaluated_as_its_run_was(trained, out, monkeypatch, tmp_path, capsys):
    trainer, _, checkpoint = trained
    of_run = ragfit.evaluate(trainer, rows=None, save=False)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    main(["evaluate", str(checkpoint), "--out", str(tmp_path / "again")])
    lines = (tmp_path / "again" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == of_run.rows
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["dev_loss"] == {k: pytest.approx(v) for k, v in of_run.summary["dev_loss"].items()}
    new = {path for path in tmp_path.rglob("*") if path not in before}
    assert {path.name for path in new} == {"again", "evaluation.jsonl", "evaluation.json"}
    said, expected = capsys.readouterr().out.splitlines(), repr(of_run).splitlines()
    assert [line for line in said if "Saved in" not in line] == expected


def test_a_checkpoint_on_other_rows(trained, write_rows, tmp_path, capsys):
    _, _, checkpoint = trained
    test = write_rows(
        [{"prompt": f"What is {n} times two?", "answers": [f"The answer is {2 * n}."]} for n in (40, 41)], "test.jsonl"
    )
    main(["evaluate", str(checkpoint), "--data", str(test), "--rows", "1", "model.generation={max_new_tokens:3}"])
    folder = checkpoint.parent / "evaluation-test"
    summary = json.loads((folder / "evaluation.json").read_text())
    assert (summary["rows"], summary["dev_loss"]["rows"], summary["data"], summary["max_new_tokens"]) == (
        1,
        2,
        str(test),
        3,
    )
    assert "flatter" not in capsys.readouterr().out
    assert not (checkpoint.parent / "evaluation.json").exists()


@pytest.mark.slow
def test_a_checkpoint_without_an_adapter(tiny_llama, rows, out):
    trainer = tiny_trainer(
        tiny_config(tiny_llama, rows, out, "model.lora=null", "dev_split=3", "train.max_steps=3", *FAST)
    )
    checkpoint = ragfit.train(trainer)
    expected = ragfit.evaluate(trainer, rows=2, max_new_tokens=5, save=False)
    found = ragfit.evaluate(load_checkpoint(checkpoint), rows=2, max_new_tokens=5)
    assert found.rows == expected.rows and found.columns == ["tuned"]
    assert found.summary["dev_loss"]["tuned"] == pytest.approx(expected.summary["dev_loss"]["tuned"])


def test_a_trainer_that_was_made_to_evaluate_does_not_train(trained):
    *_, checkpoint = trained
    with pytest.raises(
        RagfitError, match="made by ragfit.load_checkpoint to evaluate. .* resume_checkpoint.* model.trained_adapter"
    ):
        ragfit.train(load_checkpoint(checkpoint))


def test_a_folder_without_a_run(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: .*holds no ragfit.yaml. Name the folder checkpoint"):
        main(["evaluate", str(tmp_path)])
    (tmp_path / "ragfit.yaml").write_text("model: {}")  # as an output folder has it
    with pytest.raises(SystemExit, match="error: .*holds no adapter and no model. Name the folder checkpoint"):
        main(["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: checkpoint: there is no"):
        main(["evaluate", str(tmp_path / "nowhere")])


# --- The view ----------------------------------------------------------------------------------------------------------


def scored(question, expected, base, tuned):
    gold = Gold(tuple(expected), (tuple(expected),))
    row = {"row": 0, "question": question, "expected": expected}
    for name, answer in (("base", base), ("tuned", tuned)):
        row |= {name: answer} | {f"{name}_{metric}": value for metric, value in scores(answer, gold).as_dict().items()}
    return row


def test_view_of_hostile_text():
    rows = [scored(text, [text, "or"], "no", text + "!") for text in HOSTILE]
    rows.append(scored("long " * 100, ["Ada [1]"], "x " * 400, "ada [1]"))
    summary = {"part": "train", "rows": len(rows), "max_new_tokens": 9, "answer_marker": "<b>", **summarize(rows)}
    view = EvaluationView(rows, summary, [HOSTILE[0]], HOSTILE[1])
    page = assert_harmless(view._repr_html_())
    assert {"details", "table"} <= set(page.tags) and f"{len(rows) - 6} more rows" in view.html()
    assert "✓ exact" in view.html() and "✗ no match" in view.html() and "cites the same" in view.html()
    assert "\x1b" not in repr(view) and "\u202e" not in repr(view)
    assert "do not hold '&lt;b&gt;'" in view.html().replace("&#x27;", "'")
    loss = {"dev_loss": {"rows": 3, "base": None, "tuned": 1.25}}
    assert "1.2500" in repr(EvaluationView([], {"part": "dev", "rows": 0, **loss}))


def test_a_lone_surrogate_is_saved(tmp_path):
    save_evaluation(tmp_path, {"rows": 1}, [{"tuned": "\ud800"}])
    assert (tmp_path / "evaluation.jsonl").read_text() == '{"tuned": "\\ud800"}\n'


# --- Labels -----------------------------------------------------------------------------------------------------------


def labelled(*triples):
    return [{"expected": [expected], "base": base, "tuned": tuned} for expected, base, tuned in triples]


def test_label_scores():
    table = labelled(
        ("yes", "Yes.", "yes"), ("yes", "Yes, because [1] says so", "no"), ("yes", "It is so.", "yes"),
        ("no", "yesterday", "No [2]"), ("no", "no", "no"), ("no", "yes", "no"),
    )  # fmt: skip
    found = label_scores(table)
    assert found["accuracy"] == {"rows": 6, "base": 3 / 6, "tuned": 5 / 6, "better": 3, "worse": 1}
    # By hand: base yes has precision 2/3 and recall 2/3, no 1/1 and 1/3; tuned yes 2/2 and 2/3, no 3/4 and 3/3.
    assert found["macro_f1"]["base"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["macro_f1"]["tuned"] == pytest.approx((4 / 5 + 6 / 7) / 2)
    assert found["confusion"] == {
        "labels": ["no", "yes", "(other)"], "base": [[1, 1, 1], [0, 2, 1]], "tuned": [[3, 0, 0], [1, 2, 0]],
    }  # fmt: skip
    scored = {f"{name}_{metric}": 0.0 for name in ("base", "tuned") for metric in ("f1", "exact_match")}
    rows = [{**row, "row": n, "question": "?", **scored} for n, row in enumerate(table)]
    text = repr(EvaluationView(rows, {"part": "dev", "max_new_tokens": 9, **found}))
    assert "macro F1" in text and "expected  no  yes  (other)" in text and "  yes        0    2        1" in text


def test_labels_with_citations_and_choices():
    cited = label_scores(labelled(*[("yes [1]", "Yes.", "yes [2]"), ("no [2]", "no", "no, never")] * 3))
    assert cited["accuracy"]["base"] == cited["accuracy"]["tuned"] == 1 and cited["confusion"]["labels"][0] == "no"
    choices = label_scores(labelled(*[("A", "A) Paris", "(a): Paris"), ("B", "B. Rome", "A Roman one")] * 3))
    assert (choices["accuracy"]["base"], choices["accuracy"]["tuned"]) == (1, 0.5)


@pytest.mark.parametrize(
    "table",
    [
        labelled(*[("-1", "1", "1"), ("1", "1", "1"), ("0", "0", "0")] * 5),  # without its sign, -1 is 1
        labelled(*[("yes", "no", "no")] * 9),  # one label says nothing
        labelled(*[(f"answer {n}", "no", "no") for n in range(9)]),
        labelled(*[("yes", "no", "no"), ("no", "no", "no")] * 2),  # too few
        labelled(*[("it was so", "no", "no"), ("it was not", "no", "no")] * 9),
        [{"expected": ["yes", "no"], "base": "no", "tuned": "no"}] * 9,
        labelled(*[("yes", "no", "no"), ("", "no", "no")] * 9),
        [],
    ],
)
def test_answers_that_are_not_labels(table):
    assert label_scores(table) == {}
