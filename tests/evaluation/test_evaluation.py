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
from ragfit.evaluation.labels import label_scores
from ragfit.evaluation.metrics import Gold, scores
from ragfit.evaluation.results import save_results, summarize
from ragfit.training.reload import figures_folder, load_checkpoint, load_tuned
from ragfit.views import EvaluationView

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


def greedy(model, tokenizer, prompt):
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    new = model.generate(**ids, max_new_tokens=9, do_sample=False, eos_token_id=ends)[0, ids.input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_base_and_tuned_model(tiny_llama, trained, out):
    trainer, before, _ = trained
    history, step = list(trainer.state.log_history), trainer.state.global_step
    view = ragfit.evaluate(trainer, rows=2, max_new_tokens=9)
    assert trainer.model.config.use_cache is False and trainer.model.is_gradient_checkpointing
    assert trainer.state.log_history == history and trainer.state.global_step == step  # nothing is logged

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    prompts = [trainer.prepared.rendered(i, "dev").prompt for i in range(2)]
    for name, model in (("base", AutoModelForCausalLM.from_pretrained(tiny_llama)), ("tuned", trainer.model)):
        assert [row[name] for row in view.rows] == [greedy(model.eval(), tokenizer, prompt) for prompt in prompts]
    assert all(row["base"] != row["tuned"] and row["tuned"].startswith("The answer is") for row in view.rows)
    assert all(row["expected"] == [f"The answer is {2 * row['row']}.", str(2 * row["row"])] for row in view.rows)

    loss = view.summary["dev_loss"]
    assert (loss["rows"], loss["base"]) == (3, pytest.approx(before)) and loss["tuned"] < before - 1
    assert ragfit.evaluate(trainer, rows=0, base_loss=7.0).summary["dev_loss"]["base"] == 7.0  # taken, not measured
    f1 = view.summary["f1"]
    assert f1["tuned"] == sum(row["tuned_f1"] for row in view.rows) / 2 > f1["base"] and f1["better"] == 2
    assert view.title == "Answers on 2 dev rows" and "2 better, 0 worse, 0 same" in repr(view)


def test_saved_rows_and_summary(trained, out, capsys):
    trainer, _, _ = trained
    view = ragfit.evaluate(trainer, rows=None, max_new_tokens=9)
    assert view.saved == out / "evaluation.jsonl" and f"Saved in {view.saved}" in repr(view)
    lines = (out / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == view.rows and len(lines) == 3
    assert view.rows[0]["source"].endswith(f"rows.jsonl, line {view.rows[0]['row'] + 1}")
    summary = json.loads((out / "evaluation.json").read_text())
    assert summary == view.summary and (summary["rows"], summary["part"]) == (3, "dev")
    ragfit.evaluate(trainer, rows=0)  # replaces both
    assert not (out / "evaluation.jsonl").read_text() and json.loads((out / "evaluation.json").read_text())["rows"] == 0
    (out / "file").write_text("in the way")
    assert save_results(trainer, out / "file", "evaluation", summary) is None  # a full disk loses no figure
    assert "could not be saved" in capsys.readouterr().err
    odd = {"loss": math.nan, "high": [math.inf]}, [{"tuned": "\ud800", "loss": math.nan}]
    save_results(trainer, out / "odd", "evaluation", *odd)  # what is saved is JSON
    assert json.loads((out / "odd" / "evaluation.json").read_text()) == {"loss": None, "high": [None]}
    assert (out / "odd" / "evaluation.jsonl").read_text() == '{"tuned": "\\ud800", "loss": null}\n'


def test_without_a_dev_set_or_an_adapter(tiny_llama, rows, out):
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, out, "model.lora=null", "limit=2"))
    assert ragfit.dev_loss(trainer) is None
    view = ragfit.evaluate(trainer, rows=5, max_new_tokens=3)
    assert view.title == "Answers on 2 train rows" and "flatter" in repr(view) and "dev loss" not in repr(view)
    assert all("base" not in row and row["tuned"] is not None for row in view.rows)
    assert view.columns == ["tuned"] and "All weights were trained" in view.html()
    assert view.saved is None and not (out / "evaluation.jsonl").exists()  # nothing was trained yet


def test_answers_do_not_depend_on_the_batch(tiny_llama, rows, out, monkeypatch):
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, out))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(8)  # so that answers depend on the prompt
    prompts = [trainer.prepared.rendered(i, "train").prompt for i in range(len(trainer.prepared.train))]
    answers = []
    for size in (1, 4, 99):
        monkeypatch.setattr(trainer.args, "per_device_eval_batch_size", size)
        answers.append(generate(trainer, prompts, {"max_new_tokens": 9}, "base"))
    assert answers[0] == answers[1] == answers[2] and len({text for text, _ in answers[0]}) > 6
    sampled = generate(trainer, prompts, {"max_new_tokens": 9, "do_sample": True, "temperature": 50.0}, "base")
    beams = {"num_beams": 2, "num_return_sequences": 2, "return_dict_in_generate": True}
    assert sampled != answers[0] and len(generate(trainer, prompts, {"max_new_tokens": 2, **beams}, "base")) == 12


def test_cut_answers_are_told(trained, recwarn):
    trainer, _, _ = trained
    prompts = [trainer.prepared.rendered(i).prompt for i in range(4)]
    answers = generate(trainer, prompts, {"max_new_tokens": 40}, "tuned")
    assert not any(cut for _, cut in answers)  # the tuned model ends its turn
    ends = trainer.prepared.tokenizer("The", add_special_tokens=False).input_ids
    assert generate(trainer, prompts[:1], {"max_new_tokens": 40, "eos_token_id": ends[-1:]}, "tuned") != answers[:1]
    view = ragfit.evaluate(trainer, rows=2, max_new_tokens=2, save=False)
    assert all(row["tuned_cut"] for row in view.rows)
    assert "tuned: 2 of 2 answers were cut at model.generation.max_new_tokens=2 tokens." in repr(view)
    assert not [str(warning.message) for warning in recwarn]  # red in a notebook


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
    new = {path.name for path in tmp_path.rglob("*") if path not in before}
    assert new == {"again", "evaluation.jsonl", "evaluation.json"}
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
    assert view.saved == checkpoint.parent / "evaluation-test" / "evaluation.jsonl"


def test_an_adapter_by_default_is_of_these_rows_and_this_base(trained, tiny_llama, rows, write_rows, out):
    """What lies in the output folder counts only where its run had the rows and the base at hand."""
    other = write_rows(question_rows(6), "other.jsonl")
    for keys, reason in ((["dev_split=2"], "dev_split"), ([f"data_file={other}"], "data_file"), (["dev_split=3"], "")):
        trainer = tiny_trainer(tiny_config(tiny_llama, rows, out, *HEAD, *keys))
        said, taken = load_tuned(trainer), not reason
        assert f"other {reason}" in said.replace(", dev_split", "") or taken and "with the adapter in" in said
        assert figures_folder(trainer) == (str(out) if taken else False)
        assert ("tuned" in losses.token_losses(trainer)) == taken
    assert "with the adapter in" in load_tuned(trainer, out / "checkpoint")  # asked for by name


def test_another_base_and_training_of_what_was_loaded_are_refused(trained, tiny_llama, tmp_path):
    _, _, checkpoint = trained
    other = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(-1)
    shutil.copytree(tiny_llama, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="base"):
        load_checkpoint(checkpoint, overrides=[override("model.model_name_or_path", str(tmp_path / "other"))])
    with pytest.raises(RagfitError, match="it has trained already, or .* to evaluate. Make a new one"):
        ragfit.train(load_checkpoint(checkpoint))


def test_a_folder_without_a_run(tmp_path):
    (tmp_path / "ragfit.yaml").write_text("model: {}")  # as an output folder has it
    with pytest.raises(ConfigError, match="holds no adapter and no model. Name a run"):
        load_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="^checkpoint: there is no"):
        load_checkpoint(tmp_path / "nowhere")


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
    loss = {"dev_loss": {"rows": 3, "base": None, "tuned": 1.25}}
    text = repr(EvaluationView(rows, {"part": "dev", **summarize(rows), **loss}))
    assert "0.0% (0% to 32%)" in text and "12.5% (2% to 47%)" in text and "1.2500" in text
    assert "cites nothing Giverny" in text  # a verdict and its answer are two things
    other = scored("Who?", ["Ada [1]"], "Bob [2] <A>: Bob", "Bob [2] <A>: Bob [3]")
    text = repr(EvaluationView([other], {"part": "dev", "answer_marker": "<A>:", **summarize([other])}))
    assert "cites nothing Bob [2]" in text and "cites otherwise Bob [2]" in text  # what follows the marker counts


def labelled(*triples):
    return [{"expected": [expected], "base": base, "tuned": tuned} for expected, base, tuned in triples]


def test_label_scores():
    table = labelled(
        ("yes", "Yes.", "yes"), ("yes", "Yes, because [1] says so", "no"), ("yes", "It is so.", "yes"),
        ("no", "yesterday", "No [2]"), ("no", "no", "no"), ("no", "yes", "no"),
    )  # fmt: skip
    found = label_scores(table)
    assert found["accuracy"] == {"rows": 6, "base": 3 / 6, "tuned": 5 / 6}
    # By hand: base yes has precision 2/3 and recall 2/3, no 1/1 and 1/3; tuned yes 2/2 and 2/3, no 3/4 and 3/3.
    assert found["macro_f1"]["base"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["macro_f1"]["tuned"] == pytest.approx((4 / 5 + 6 / 7) / 2)
    assert "83.3% (44% to 97%)" in repr(EvaluationView([], {"part": "dev", **found}))


@pytest.mark.parametrize(
    ("table", "accuracy"),
    [
        (labelled(*[("yes [1]", "Yes.", "yes [2]"), ("no [2]", "no", "no, never")] * 3), (1, 1)),
        (labelled(*[("A", "A) Paris", "(a): Paris"), ("B", "B. Rome", "A Roman one")] * 3), (1, 0.5)),
        (labelled(*[("yes", "no", "no")] * 9), None),  # one label says nothing
        (labelled(*[("yes", "no", "no"), ("no", "no", "no")] * 2), None),  # too few
        ([{"expected": ["yes", "no"], "base": "no", "tuned": "no"}] * 9, None),
        ([], None),
    ],
)
def test_labels_and_answers_that_are_none(table, accuracy):
    found = label_scores(table)
    assert found == {} if accuracy is None else (found["accuracy"]["base"], found["accuracy"]["tuned"]) == accuracy
