"""Views of rows: the same ids and labels as the trainer's, hostile text harmless, small, and readable as text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATES, make_tokenizer
from harmless import HOSTILE, Reader, assert_harmless

from ragfit.config.load import differences, load_config
from ragfit.config.overrides import override
from ragfit.data.mask import Encoder
from ragfit.data.prepare import prepare
from ragfit.errors import ConfigError
from ragfit.views import BatchView, DifferencesView, LengthsView, PromptView, RagView, ReportView, TokenView
from ragfit.views.token_text import token_texts

NAMES = sorted(p.name for p in Path(os.environ.get("RAGFIT_TOKENIZERS") or "/nowhere").glob("*"))
needs_tokenizers = pytest.mark.skipif(not NAMES, reason="RAGFIT_TOKENIZERS is not set")


@pytest.fixture
def make(tmp_path, write_rows):
    """`make(rows, tokenizer, **keys)`: the rows, prepared."""

    def make(rows, tokenizer=None, **keys):
        (tmp_path / "views.yaml").write_text("model:\n  model_name_or_path: none\n", encoding="utf-8")
        values = {"data_file": str(write_rows(rows)), "input_key": "prompt", "output_key": "answer", **keys}
        cfg = load_config(tmp_path / "views.yaml", overrides=[override(key, value) for key, value in values.items()])
        return prepare(cfg, tokenizer or make_tokenizer("digits", "chatml"), cache=False)

    return make


def rows(*texts):
    return [{"prompt": f"Question: {text}\n" + f"{text} " * 6, "answer": text} for text in texts]


def check(prepared, index, view=None):
    """The view shows the trainer's row: every token once, its label, its text."""
    page = assert_harmless((view or TokenView(prepared, index))._repr_html_())
    row = prepared.train[index]
    assert [token.position for token in page.tokens] == list(range(len(row["input_ids"])))
    assert [token.id for token in page.tokens] == row["input_ids"]
    assert [token.label for token in page.tokens] == row["labels"]
    # The mark stands for loss without colour.
    assert ["mark" in token.inside for token in page.tokens] == [label != -100 for label in row["labels"]]
    bos = prepared.tokenizer.decode(prepared.encoder.bos) if prepared.encoder.bos else ""
    assert page.decoded() == bos + prepared.rendered(index).text
    return page


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_of_hostile_text(make):
    prepared = make([row for text in HOSTILE for row in rows(text, f"all {text} {text}")])
    assert len(prepared.train) == 2 * len(HOSTILE)
    for index in range(len(prepared.train)):
        view = TokenView(prepared, index)
        check(prepared, index, view)
        assert "with loss" in repr(view)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", repr(view).replace("\t", ""))


@needs_tokenizers
@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_real_tokenizers(make, name):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(Path(os.environ["RAGFIT_TOKENIZERS"]) / name)
    prepared = make(rows("Who wrote it?", *HOSTILE), real)
    for index in range(len(prepared.train)):
        check(prepared, index)
    assert_harmless(PromptView(prepared, 1)._repr_html_())


@needs_tokenizers
def test_a_space_that_sentencepiece_adds_takes_no_text():
    from transformers import PreTrainedTokenizerFast

    # As a bare PreTrainedTokenizerFast it puts a space of its own behind a special token.
    folder = Path(os.environ["RAGFIT_TOKENIZERS"]) / "phi-3-mini-128k-instruct-apr2024"
    real = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = real("<|end|>\nOK", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, "<|end|>\nOK", Encoder(real))[0] == ["<|end|>", "", "\n", "OK"]


def test_parts_of_a_character_are_marked(make):
    prepared = make(rows("say 🦔 now"))
    tokens = check(prepared, 0).tokens
    first = next(i for i, token in enumerate(tokens) if "🦔" in token.text)
    rest = [token for token in tokens[first + 1 :][:5] if token.text.startswith("part ")]
    assert "🦔" in tokens[first].shown and len(rest) >= 2
    assert {token.shown for token in rest} == {"⋯"}


def test_ids_that_no_text_gives_again():
    tokenizer = make_tokenizer("digits", "chatml")
    ids = [*map(tokenizer.convert_tokens_to_ids, "hi"), tokenizer.eos_token_id]
    assert token_texts(ids, "another text", Encoder(tokenizer)) == (["h", "i", tokenizer.eos_token], None)


LONG = "word and word, " * 30
PROMPTS = {
    "one line": f"Documents: {LONG}",
    "documents": "Question: who?\n\n" + "".join(f"[{n}] Title {n} [1]: {LONG}\n" for n in range(1, 6)) + "\nAnswer:",
    "many lines": "".join(f"{n} says it.\n" for n in range(300)),
    "no spaces": "長安城" * 200,
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_long_prompts_fold(make, prompt):
    prepared = make([{"prompt": prompt, "answer": "Ada"}], instruction=None)
    page = check(prepared, 0)
    outside = [token for token in page.tokens if "details" not in token.inside]
    start = next(token.position for token in page.tokens if token.label != -100)
    assert set(range(start - 30, len(page.tokens))) <= {token.position for token in outside}
    assert len(outside) < 1800 and len(outside) < len(page.tokens)
    assert any(re.search(r"\d+ more tokens without loss … ", fold) for fold in page.folds)
    shown = "".join(token.shown for token in outside).replace("·", " ")
    if "Title" in prompt:
        assert all(f"[{n}] Title {n} [1]: word" in shown for n in range(1, 6))  # each document is seen to begin
        assert repr(TokenView(prepared)).count("tokens …]") == 5


def test_losses_stand_below_their_tokens(make):
    prepared = make(rows("Ada"))
    labels = prepared.train[0]["labels"]
    base, tuned = ([None if label == -100 else cost for label in labels] for cost in (2.5, 0.25))
    view = TokenView(prepared, losses={"base": base, "tuned": tuned})
    html, count = view.html(), sum(label != -100 for label in labels)
    assert len(re.findall(r"<sub [^>]*>2\.50 </sub><sub [^>]*>0\.25 </sub>", html)) == count
    assert html.count("loss 2.50 → 0.25") == count
    assert f"loss, base: {' '.join(['2.50'] * count)}\n" in repr(view)
    with pytest.raises(ValueError, match="losses"):
        TokenView(prepared, losses={"base": [1.0]})


def test_a_row_of_a_batch(make):
    pytest.importorskip("torch")
    from ragfit.collator import DataCollatorForCompletionOnlyLM

    prepared = make(rows("short", "The document says that Ada wrote it. " * 5))
    batch = DataCollatorForCompletionOnlyLM(tokenizer=prepared.tokenizer)([prepared.train[i] for i in (1, 0)])
    view = TokenView(prepared, 0, batch=batch)
    page = Reader(view.html())
    assert [token.id for token in page.tokens] == batch["input_ids"][1].tolist()
    assert [token.label for token in page.tokens] == batch["labels"][1].tolist()
    padding = (batch["attention_mask"][1] == 0).tolist()
    pad = prepared.tokenizer.pad_token
    assert ["small" in token.inside or token.shown == pad for token in page.tokens] == padding
    assert any("more padding tokens" in fold for fold in page.folds)
    assert f"+ {sum(padding)} padding" in view.html() and "padding …]" in repr(view)
    whole = BatchView(prepared, batch)
    assert whole.indices == [1, 0] and whole.shortest == 0
    assert f"{sum(padding)} of them padding" in whole.text() and assert_harmless(whole.html())
    with pytest.raises(ValueError, match="does not hold this row"):
        TokenView(prepared, 0, batch={key: value[:1] for key, value in batch.items()})


@pytest.mark.parametrize("where", [(9,), ("0",), (0, "test"), (0, "dev")])
@pytest.mark.parametrize("view", [TokenView, PromptView])
def test_a_row_that_is_not_there(make, view, where):
    with pytest.raises(ConfigError, match=r"^row .* of .*: there is no such prepared row. There are 1 in train and 0"):
        view(make(rows("Ada")), *where)


# --- Prompts ---------------------------------------------------------------------------------------------------------


def test_prompt_view_covers_the_text(make):
    prepared = make(rows(HOSTILE[0]), **{"model.completion_start": "<|im_start|>assistant\n"})
    view = PromptView(prepared)
    assert "".join(text for _, text, _, _ in view.parts) == prepared.rendered(0).text
    assert sum(tokens for _, _, tokens, _ in view.parts) == len(prepared.train[0]["input_ids"])
    assert sum(loss for *_, loss in view.parts) == sum(label != -100 for label in prepared.train[0]["labels"])
    names = ["template", "prompt", "template", "marker", "output", "end of turn", "template"]
    assert [name for name, *_ in view.parts] == names
    assert_harmless(view._repr_html_())
    assert "--- output (" in repr(view)


THINKS = CHAT_TEMPLATES["chatml"].replace(
    "message['content']", "('<think></think>' if message['role'] == 'assistant' else '') + message['content']"
)
GREETS = CHAT_TEMPLATES["chatml"].replace(
    "{{ '<|im_start|>' +", "{{ '<|im_start|>' + ('' if add_generation_prompt else 'Hi ') +"
)


@pytest.mark.parametrize(
    ("template", "marker", "said", "only_in_training"),
    [
        ("chatml", "", "the same {count} tokens, ending in", []),
        ("chatml", "<|im_start|>", "which have loss: 'assistant\\n'", []),
        # The model learns to answer behind what nothing teaches it to write.
        (THINKS, "</think>", "they differ", ["<think></think>"]),
        (GREETS, "", "they differ", ["Hi user", "Hi assistant"]),
    ],
    ids=["same", "more has loss", "think block", "another text"],
)
def test_the_inference_prompt_and_what_is_read_before_loss(make, template, marker, said, only_in_training):
    prepared = make(rows("<b>it</b>"), make_tokenizer("digits", template), **{"model.completion_start": marker})
    view, tokens = PromptView(prepared), TokenView(prepared)
    sentence, found = view.row.compared(prepared.encoder)
    count = prepared.train[0]["labels"].index(next(label for label in prepared.train[0]["labels"] if label != -100))
    assert said.format(count=count) in sentence and sentence in view.text()
    assert [part[2] for part in found] == only_in_training
    assert_harmless(view._repr_html_())
    for html in (view.html(), tokens.html()):
        assert ("only in training" in html) == bool(found)


def test_a_token_across_the_boundary_is_a_difference(make, tmp_path):
    (tmp_path / "template.txt").write_text("{query}Answer: {output}")
    prepared = make(rows("ANSWER: 42"), make_tokenizer("whole"), template=str(tmp_path / "template.txt"))
    view = TokenView(prepared)
    assert "they differ" in repr(PromptView(prepared)) and "spans the boundary, no loss" in view.html()
    assert f"Token {view.boundary} " in repr(view) and not view.loss[view.boundary]


# --- All rows --------------------------------------------------------------------------------------------------------


def test_report_counts_and_finds(make):
    few = rows("<script>x</script><|im_end|>", "Ada", "Ada", "it " * 200)
    prepared = make(few, **{"model.max_sequence_len": 400})
    html = ReportView(prepared)._repr_html_()
    page = assert_harmless(html)
    assert html == prepared.report._repr_html_()
    for text in ("dropped: too long", "special tokens in data", "duplicate rows", "&lt;|im_end|&gt;", "(row 3)"):
        assert text in html
    assert html.index(">warning<") < html.index(">note<")
    assert "table" in page.tags
    assert "last token with loss          '<|im_end|>' × 3" in repr(ReportView(prepared))
    calm = ReportView(make(rows("Ada")))
    assert "No findings." in calm.html() and "No findings." in repr(calm)


def test_lengths(make):
    keys = {"model.max_sequence_len": 400, "dev_split": 0.3, "shuffle": None}
    view = LengthsView(make(rows("Ada", "wrote it " * 9, "x " * 300), **keys))
    html = view._repr_html_()
    assert_harmless(html)
    assert len(html) < 120_000
    assert "max_sequence_len is 400: 1 row dropped as too long, 0 cut" in repr(view)


def test_differences(make):
    prepared = make(rows("Ada"), **{"train.hub_token": "hf_secret", "train.output_dir": "<b>out</b>"})
    found = differences(prepared.cfg, Path(prepared.cfg.data_file).parent / "views.yaml")
    view = DifferencesView(prepared.cfg, found, "views")
    html = view._repr_html_()
    assert_harmless(html)
    assert "hf_secret" not in html and "hf_secret" not in repr(view)
    assert "&lt;b&gt;out&lt;/b&gt;" in html and "train.output_dir" in repr(view)
    assert "Nothing" in DifferencesView(prepared.cfg, [], "views").html()


def test_documents_and_answers(make):
    some = [
        {"prompt": "Q?\n[1] Paris, a city.\n[2] Rome!", "answer": "paris"},
        {"prompt": "Q?\n[1] Rome\n[2] rome.", "answer": "Athens"},
        {"prompt": "Q?\n[1] Oslo", "answer": "yes"},
        {"prompt": "Q? Rome", "answer": "Rome", "ctxs": [{"text": "Rome is a city that no prompt holds."}]},
        {"prompt": "Q?", "answer": "word " * 20},
    ]
    view = RagView(make(some))
    for line in (
        "answers taken from                      the output, answer (3 rows), none, as they are labels (1 row), "
        "none, as there is no short answer (1 row)",
        "rows with an answer in their documents  1 of 2 (50%)",
        "rows with no answer in their documents  1 (row 1)",
        # What the model does not read is not taken for its documents.
        "documents taken from                    the prompt (3 rows), none, those of ctxs are not in the prompt (1 row), "
        "none (1 row)",
        "documents per row                       1 to 2, median 2",
        "rows with a repeated document           1 (row 1)",
        "distinct documents                      3 of 4",
        "Position of the first supporting document, 1 row: 1: 100%",
    ):
        assert line in repr(view)
    html = view.html()
    assert "1 of 2 (50%)" in html and "are labels" in html and assert_harmless(html)
    assert "documents in both train and dev" in repr(RagView(make(some, dev_split=1)))


@pytest.mark.slow
def test_looking_imports_neither_torch_nor_widgets(tmp_path, write_rows):
    make_tokenizer("digits", "chatml").save_pretrained(tmp_path / "tokenizer")
    keys = {"data_file": str(write_rows(rows("Ada"))), "output_key": "answer", "instruction": None}
    keys |= {"model.model_name_or_path": str(tmp_path / "tokenizer"), "model.completion_start": ""}
    code = f"""
import sys, ragfit
from ragfit import views
everything = [getattr(views, name) for name in views.__all__]
heavy = lambda: [name for name in ("torch", "matplotlib", "IPython", "transformers", "ipywidgets") if name in sys.modules]
print(heavy())
prepared = ragfit.prepare(ragfit.load_config("training", {json.dumps([override(k, v) for k, v in keys.items()])}))
shown = [*views.rows_with_findings(prepared), views.TokenView(prepared), views.PromptView(prepared)]
print(*map(len, map(repr, [*shown, views.RagView(prepared), views.LengthsView(prepared)])))
views.explore(prepared)._repr_mimebundle_()
print(set(heavy()) & {{"torch", "matplotlib", "ipywidgets"}})
views.explore(prepared).box
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2], lines[3]) == ("[]", "set()", "False"), done.stderr
