"""Evaluation: answers and losses of real models, a checkpoint measured again, the view, and what is saved."""

import json
import math
import re
import shutil

import pytest
import torch
from harmless import HOSTILE, assert_harmless
from tiny_runs import MARKER, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

import ragfit
from ragfit.__main__ import main
from ragfit.config.overrides import override
from ragfit.errors import ConfigError, RagfitError
from ragfit.evaluation import losses
from ragfit.evaluation.generate import generate
from ragfit.evaluation.metrics import Gold, scores
from ragfit.evaluation.results import label_scores, save_results, summarize
from ragfit.training.reload import figures_folder, load_checkpoint, load_tuned
from ragfit.views import EvaluationView

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
    length, end = ids.shape[1], tokenizer.convert_tokens_to_ids("<|im_end|>")
    while ids.shape[1] < length + tokens and int(ids[0, -1]) not in (end, tokenizer.eos_token_id):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1)[:, None]], 1)
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
    asked = [(row["row"], row["question"], row["expected"]) for row in view.rows]
    assert asked == [(n, f"What is {n} times two?", [f"The answer is {2 * n}.", str(2 * n)]) for n in kept]

    loss = view.summary["dev_loss"]
    assert (loss["rows"], loss["base"]) == (3, pytest.approx(before)) and loss["tuned"] < before - 1
    assert ragfit.evaluate(trainer, rows=0, base_loss=7.0).summary["dev_loss"]["base"] == 7.0  # taken, not measured
    f1 = view.summary["f1"]
    assert f1["tuned"] == sum(row["tuned_f1"] for row in view.rows) / 2 > f1["base"] and f1["better"] == 2
    assert view.title == "Answers on 2 dev rows" and "2 better, 0 worse, 0 same" in repr(view)


def test_the_dev_loss_is_over_all_tokens(trained, monkeypatch):
    """It is the sum of the tokens' losses by their number at any batch size, and rows of other lengths weigh so."""
    trainer, _, _ = trained
    total, tokens, means = 0.0, 0, []
    trainer.model.eval()
    for row in trainer.prepared.dev:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = trainer.model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        costs = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=-100)
        total, tokens = total + float(costs.sum()), tokens + int((labels[0, 1:] != -100).sum())
        means.append(float(costs.sum()) / int((labels[0, 1:] != -100).sum()))
    assert abs(sum(means) / len(means) - total / tokens) > 1e-5  # which a mean of means would miss
    for size in (1, 2, 16):
        monkeypatch.setattr(trainer.args, "per_device_eval_batch_size", size)
        assert ragfit.dev_loss(trainer) == pytest.approx(total / tokens, abs=1e-5)


def test_saved_rows_and_summary(trained, out, capsys):
    trainer, _, _ = trained
    view = ragfit.evaluate(trainer, rows=None, max_new_tokens=9)
    assert view.saved == out / "evaluation.jsonl" and f"Saved in {view.saved}" in repr(view)
    lines = (out / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == view.rows and len(lines) == 3
    assert view.rows[0]["source"].endswith(f"rows.jsonl, line {view.rows[0]['row'] + 1}")
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary == view.summary and (summary["rows"], summary["part"]) == (3, "dev")
    ragfit.evaluate(trainer, rows=2, max_new_tokens=2, save=False)
    assert json.loads((out / "evaluation.json").read_text())["rows"] == 3
    ragfit.evaluate(trainer, rows=0)  # replaces both
    assert not (out / "evaluation.jsonl").exists() and json.loads((out / "evaluation.json").read_text())["rows"] == 0
    (out / "file").write_text("in the way")
    assert save_results(out / "file", "evaluation", summary) is None  # a full disk loses no figure
    assert "could not be saved" in capsys.readouterr().err


def test_what_is_saved_is_json(tmp_path):
    save_results(
        tmp_path, "evaluation", {"loss": math.nan, "high": [math.inf]}, [{"tuned": "\ud800", "loss": math.nan}]
    )
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"loss": None, "high": [None]}
    assert (tmp_path / "evaluation.jsonl").read_text() == '{"tuned": "\\ud800", "loss": null}\n'


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


def test_answers_do_not_depend_on_the_batch(tiny_llama, rows, out):
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, out))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(8)  # so that answers depend on the prompt
    prepared = trainer.prepared
    prompts = [prepared.rendered(i, "train").prompt for i in range(len(prepared.train))]
    alone = generate(trainer.model, prepared, prompts, {"max_new_tokens": 9}, batch_size=1)
    assert len({text for text, _ in alone}) > 6
    for size in (4, 99):
        assert generate(trainer.model, prepared, prompts, {"max_new_tokens": 9}, batch_size=size) == alone


def test_cut_answers_are_told(trained, recwarn):
    trainer, _, _ = trained
    answers = generate(
        trainer.model, trainer.prepared, [trainer.prepared.rendered(i).prompt for i in range(4)], {"max_new_tokens": 40}
    )
    assert not any(cut for _, cut in answers)  # the tuned model ends its turn
    view = ragfit.evaluate(trainer, rows=2, max_new_tokens=2, save=False)
    assert all(
        row["tuned_cut"] for row in view.rows
    ) and "tuned: 2 of 2 answers were cut at 2 tokens; for longer ones set model.generation" in repr(view)
    assert not [str(warning.message) for warning in recwarn]  # red in a notebook


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


# --- A checkpoint of an earlier run ----------------------------------------------------------------------------------


def test_a_checkpoint_is_evaluated_as_its_run_was(trained, monkeypatch, tmp_path, capsys):
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


def test_figures_of_other_rows_have_a_folder_of_their_own(trained, write_rows, capsys):
    """The run was packed, by its own file, to fewer tokens than these rows have: none of them is dropped."""
    _, _, checkpoint = trained
    own = checkpoint / "ragfit.yaml"
    text = own.read_text()
    packed = text.replace("\ntrain:\n", "\ntrain:\n  packing: true\n  max_length: 20\n")
    own.write_text(re.sub(r"  max_sequence_len: \d+\n", "", packed))
    test = write_rows(question_rows(4, words=9), "test.jsonl")
    main(["evaluate", str(checkpoint), "--data", str(test), "--rows", "1", "model.generation={max_new_tokens:3}"])
    summary = json.loads((checkpoint.parent / "evaluation-test" / "evaluation.json").read_text())
    assert (summary["rows"], summary["dev_loss"]["rows"], summary["data"]) == (1, 4, str(test))
    assert summary["max_new_tokens"] == 3 and not (checkpoint.parent / "evaluation.json").exists()
    assert "flatter" not in capsys.readouterr().out
    loaded = load_checkpoint(checkpoint, test)
    assert loaded.prepared.report.dev.longest > 20 and len(loaded.prepared.dev) == 4
    view = ragfit.evaluate(loaded, rows=0, save=figures_folder(loaded))
    assert view.saved == checkpoint.parent / "evaluation-test" / "evaluation.json"


def test_an_adapter_by_default_is_of_these_rows_and_this_base(trained, tiny_llama, rows, write_rows, out):
    """What lies in the output folder counts only where its run had the rows and the base at hand."""
    other = write_rows(question_rows(6), "other.jsonl")
    for keys, reason in ((["dev_split=3"], ""), (["dev_split=2"], "dev_split"), ([f"data_file={other}"], "data_file")):
        trainer = tiny_trainer(tiny_config(tiny_llama, rows, out, *(keys if reason else ["dev_split=3"]), *HEAD, *keys))
        said = load_tuned(trainer)
        if reason:
            assert f"other {reason}" in said.replace(", dev_split", "") and figures_folder(trainer) is False
            assert set(losses.token_losses(trainer)) == {"base"}
        else:
            assert "with the adapter in" in said and figures_folder(trainer) == str(out)
            assert set(losses.token_losses(trainer)) == {"base", "tuned"}
    assert "with the adapter in" in load_tuned(trainer, out / "checkpoint")  # asked for by name


def test_a_base_that_is_another_is_refused(trained, tiny_llama, tmp_path):
    _, _, checkpoint = trained
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(-1)
    shutil.copytree(tiny_llama, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="base"):
        load_checkpoint(checkpoint, overrides=[override("model.model_name_or_path", str(tmp_path / "other"))])


def test_a_trainer_that_was_made_to_evaluate_does_not_train(trained):
    *_, checkpoint = trained
    with pytest.raises(RagfitError, match="it has trained already, or .* to evaluate. Make a new one"):
        ragfit.train(load_checkpoint(checkpoint))


def test_a_folder_without_a_run(tmp_path):
    (tmp_path / "ragfit.yaml").write_text("model: {}")  # as an output folder has it
    with pytest.raises(ConfigError, match="holds no adapter and no model. Name a run"):
        load_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="^checkpoint: there is no"):
        load_checkpoint(tmp_path / "nowhere")


# --- The view ----------------------------------------------------------------------------------------------------------


def scored(question, expected, base, tuned):
    gold = Gold(tuple(expected), (tuple(expected),))
    row = {"row": 0, "question": question, "expected": expected}
    for name, answer in (("base", base), ("tuned", tuned)):
        row |= {name: answer} | {f"{name}_{metric}": value for metric, value in scores(answer, gold).items()}
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


def test_figures_say_what_they_stand_on():
    """A share has Wilson's interval; what stands on fewer rows, or is not there, says so."""
    rows = [scored(f"Who is {n}?", ["Ada [1]"], "Bob", "Giverny" if n else "Ada") for n in range(8)]
    for row in rows[:5]:
        row |= {f"closed_book{key[5:]}": value for key, value in row.items() if key.startswith("tuned")}
    loss = {"dev_loss": {"rows": 3, "base": None, "tuned": 1.25}}
    text = repr(EvaluationView(rows, {"part": "dev", "max_new_tokens": 9, **summarize(rows), **loss}))
    assert "0.0% (0% to 32%)" in text and "12.5% (2% to 47%)" in text and "1.2500" in text
    assert "tuned, no documents (5 rows)" in text and "20.0% (4% to 62%)" in text
    assert "cites nothing Giverny" in text  # a verdict and its answer are two things
    other = scored("Who?", ["Ada [1]"], "Bob [2] <A>: Bob", "Bob [2] <A>: Bob [3]")
    text = repr(EvaluationView([other], {"part": "dev", "answer_marker": "<A>:", **summarize([other])}))
    assert "cites nothing Bob [2]" in text and "cites otherwise Bob [2]" in text  # what follows the marker counts
    perfect = [scored("Who?", ["Ada"], "Ada", "Ada")] * 8
    assert "100.0% (68% to 100%)" in repr(EvaluationView(perfect, {"part": "dev", **summarize(perfect)}))


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
    rows = [scored("?", row["expected"], row["base"], row["tuned"]) for row in table]
    text = repr(EvaluationView(rows, {"part": "dev", "max_new_tokens": 9, **found}))
    assert "recall" not in text and "macro F1" in text
    assert "expected  no  yes  (other)" in text and "  yes        0    2        1" in text


def test_labels_with_citations_and_choices():
    cited = label_scores(labelled(*[("yes [1]", "Yes.", "yes [2]"), ("no [2]", "no", "no, never")] * 3))
    assert cited["accuracy"]["base"] == cited["accuracy"]["tuned"] == 1 and cited["confusion"]["labels"][0] == "no"
    choices = label_scores(labelled(*[("A", "A) Paris", "(a): Paris"), ("B", "B. Rome", "A Roman one")] * 3))
    assert (choices["accuracy"]["base"], choices["accuracy"]["tuned"]) == (1, 0.5)


@pytest.mark.parametrize(
    "table",
    [
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
