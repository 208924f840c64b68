"""Views of rows: the same ids and labels as the trainer's, hostile text harmless, small, and readable as text."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATES, make_tokenizer, real_folder
from harmless import HOSTILE, Reader, assert_harmless

from ragfit.config.load import differences, load_config
from ragfit.config.overrides import override
from ragfit.data.mask import Encoder
from ragfit.data.prepare import prepare
from ragfit.errors import ConfigError
from ragfit.views import BatchView, DifferencesView, LengthsView, PromptView, RagView, ReportView, TokenView
from ragfit.views.token_text import token_texts

REAL = sorted(Path(os.environ.get("RAGFIT_TOKENIZERS") or "/nowhere").glob("*"))


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


def check(prepared, index):
    """The view shows the trainer's row: every token once, its label, its text; and its log moves no cursor."""
    view, row = TokenView(prepared, index), prepared.train[index]
    page = assert_harmless(view._repr_html_())
    shown = [(token.position, token.id, token.label) for token in page.tokens]
    assert shown == list(zip(range(len(row["labels"])), row["input_ids"], row["labels"], strict=True))
    # The mark stands for loss without colour.
    assert ["mark" in token.inside for token in page.tokens] == [label != -100 for label in row["labels"]]
    bos = prepared.tokenizer.decode(prepared.encoder.bos) if prepared.encoder.bos else ""
    assert page.decoded() == bos + prepared.rendered(index).text and "with loss" in repr(view)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", repr(view).replace("\t", ""))
    return page


@pytest.mark.parametrize("folder", [None, *REAL], ids=lambda folder: folder.name if folder else "trained here")
def test_tokens_of_hostile_text(make, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder) if folder else None
    texts = [] if folder else [f"all {text} {text}" for text in HOSTILE]
    prepared = make([*rows("Who wrote it?", *HOSTILE, *texts), {"prompt": "A?\nB", "answer": "Ada"}], tokenizer)
    for index in range(len(prepared.train)):
        check(prepared, index)
    assert_harmless(PromptView(prepared, 1)._repr_html_())


def test_a_space_that_sentencepiece_adds_takes_no_text():
    from transformers import PreTrainedTokenizerFast

    # As a bare PreTrainedTokenizerFast it puts a space of its own behind a special token.
    real = PreTrainedTokenizerFast.from_pretrained(real_folder() / "phi-3-mini-128k-instruct-apr2024")
    ids = real("<|end|>\nOK", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, "<|end|>\nOK", Encoder(real))[0] == ["<|end|>", "", "\n", "OK"]


def test_parts_of_a_character_and_ids_that_no_text_gives_again(make):
    prepared = make(rows("say 🦔 now"))
    tokens = check(prepared, 0).tokens
    first = next(i for i, token in enumerate(tokens) if "🦔" in token.text)
    rest = [token.shown for token in tokens[first + 1 :][:5] if token.text.startswith("part ")]
    assert "🦔" in tokens[first].shown and len(rest) >= 2 and set(rest) == {"⋯"}
    ids = prepared.tokenizer.convert_tokens_to_ids(["h", "i", "<|im_end|>"])
    assert token_texts(ids, "another text", prepared.encoder) == (["h", "i", "<|im_end|>"], None)


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
    assert len(outside) < min(1800, len(page.tokens)) and "more tokens without loss … " in "".join(page.folds)
    if "Title" in prompt:
        shown = "".join(token.shown for token in outside).replace("·", " ")
        assert all(f"[{n}] Title {n} [1]: word" in shown for n in range(1, 6))  # each document is seen to begin
        assert repr(TokenView(prepared)).count("tokens …]") == 5


def test_losses_stand_below_their_tokens(make):
    prepared = make(rows("Ada"))
    labels = prepared.train[0]["labels"]
    base, tuned = ([None if label == -100 else cost for label in labels] for cost in (2.5, 0.25))
    view = TokenView(prepared, losses={"base": base, "tuned": tuned})
    html, count = view.html(), sum(label != -100 for label in labels)
    assert len(re.findall(r"loss 2.50 → 0.25.*?<sub [^>]*>2\.50 </sub><sub [^>]*>0\.25 </sub>", html)) == count
    assert f"loss, base: {', '.join(['2.50'] * count)}\n" in repr(view)
    with pytest.raises(ValueError, match="losses"):
        TokenView(prepared, losses={"base": [1.0]})


def test_a_row_of_a_batch(make):
    pytest.importorskip("torch")
    from ragfit.collator import DataCollatorForCompletionOnlyLM

    prepared = make(rows("short", "The document says that Ada wrote it. " * 5))
    batch = DataCollatorForCompletionOnlyLM(tokenizer=prepared.tokenizer)([prepared.train[i] for i in (1, 0)])
    view = TokenView(prepared, 0, batch=batch)
    page, padding = Reader(view.html()), (batch["attention_mask"][1] == 0).tolist()
    assert [token.id for token in page.tokens] == batch["input_ids"][1].tolist()
    assert [token.label for token in page.tokens] == batch["labels"][1].tolist()
    assert [token.shown == prepared.tokenizer.pad_token for token in page.tokens] == padding
    assert "more padding tokens" in "".join(page.folds)
    assert f"+ {sum(padding)} padding" in view.html() and "padding …]" in repr(view)
    whole = BatchView(prepared, batch)
    assert (whole.indices, whole.shortest) == ([1, 0], 0) and assert_harmless(whole.html())
    assert f"{sum(padding)} of them padding" in whole.text()
    with pytest.raises(ValueError, match="does not hold this row"):
        TokenView(prepared, 0, batch={key: value[:1] for key, value in batch.items()})


def test_a_row_that_is_not_there(make):
    prepared = make(rows("Ada"))
    for view, *where in ((TokenView, 9), (PromptView, "0"), (TokenView, 0, "test"), (PromptView, 0, "dev")):
        with pytest.raises(ConfigError, match=r"^row .* of .*: there is no such prepared row. There are 1 in train"):
            view(prepared, *where)


def test_prompt_view_covers_the_text(make):
    prepared = make(rows(HOSTILE[0]), **{"model.completion_start": "<|im_start|>assistant\n"})
    view = PromptView(prepared)
    assert "".join(text for _, text, _, _ in view.parts) == prepared.rendered(0).text
    assert sum(tokens for _, _, tokens, _ in view.parts) == len(prepared.train[0]["input_ids"])
    assert sum(loss for *_, loss in view.parts) == sum(label != -100 for label in prepared.train[0]["labels"])
    names = ["template", "prompt", "template", "marker", "output", "end of turn", "template"]
    assert [name for name, *_ in view.parts] == names
    assert assert_harmless(view._repr_html_()) and "--- output (" in repr(view)


CHATML = CHAT_TEMPLATES["chatml"]
THINKS = "('<think></think>' if message['role'] == 'assistant' else '') + message['content']"


@pytest.mark.parametrize(
    ("template", "marker", "said", "only_in_training"),
    [
        (CHATML, "", "the same {count} tokens, ending in", []),
        (CHATML, "<|im_start|>", "which have loss: 'assistant\\n'", []),
        (CHATML.replace("message['content']", THINKS), "</think>", "they differ", ["<think></think>"]),
    ],
)
def test_the_inference_prompt_and_what_is_read_before_loss(make, template, marker, said, only_in_training):
    prepared = make(rows("<b>it</b>"), make_tokenizer("digits", template), **{"model.completion_start": marker})
    view = PromptView(prepared)
    told, *tables = view.row.comparison(prepared.encoder)
    count = next(i for i, label in enumerate(prepared.train[0]["labels"]) if label != -100)
    assert said.format(count=count) in told.text[1] and told.text[1] in view.text()
    assert [row[2].text for table in tables for row in table.rows] == only_in_training
    assert_harmless(view._repr_html_())
    assert ("only in training" in view.html()) == ("only in training" in repr(TokenView(prepared))) == bool(tables)


def test_a_token_across_the_boundary_is_a_difference(make, tmp_path):
    (tmp_path / "template.txt").write_text("{query}Answer: {output}")
    prepared = make(rows("ANSWER: 42"), make_tokenizer("whole"), template=str(tmp_path / "template.txt"))
    view = TokenView(prepared)
    assert "they differ" in repr(view) and "spans the boundary, no loss" in view.html()
    assert view.kinds[view.boundary] == "read"


def test_report_counts_and_finds(make):
    prepared = make(rows("<script>x</script><|im_end|>", "Ada", "Ada", "it " * 200), **{"model.max_sequence_len": 400})
    html = prepared.report._repr_html_()
    for text in ("dropped: too long", "special tokens in data", "duplicate rows", "&lt;|im_end|&gt;", "(row 3)"):
        assert text in html and assert_harmless(html)
    assert "last token with loss          '<|im_end|>' × 3" in repr(ReportView(prepared))
    assert "No findings." in repr(ReportView(make(rows("Ada"))))


def test_lengths_and_differences(make, tmp_path):
    keys = {"model.max_sequence_len": 400, "dev_split": 0.3, "train.hub_token": "hf_x", "train.output_dir": "<b>o</b>"}
    prepared = make(rows("Ada", "wrote it " * 9, "x " * 300), **keys)
    lengths = LengthsView(prepared)
    assert assert_harmless(lengths.html()) and len(lengths.html()) < 120_000
    assert "max_sequence_len is 400: 1 row dropped as too long, 0 cut" in repr(lengths)
    view = DifferencesView(prepared.cfg, differences(prepared.cfg, tmp_path / "views.yaml"), "views")
    assert assert_harmless(view.html()) and "hf_x" not in view.html() + view.text()
    assert "&lt;b&gt;o&lt;/b&gt;" in view.html() and "train.output_dir" in repr(view)
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
        "answers taken from the output, answer (3 rows), none, as they are labels (1 row), none, as there is no short",
        "rows with an answer in their documents 1 of 2 (50%) rows with no answer in their documents 1 (row 1)",
        # What the model does not read is not taken for its documents.
        "documents taken from the prompt (3 rows), none, those of ctxs are not in the prompt (1 row), none (1 row)",
        "documents per row 1 to 2 rows with a repeated document 1 (row 1) distinct documents 3 of 4",
        "supporting document at position 1 1 of 1 (100%) supporting document at position 2 0 of 1 (0%)",
    ):
        assert line in " ".join(repr(view).split())
    assert assert_harmless(view.html()) and "documents in both train and dev" in repr(RagView(make(some, dev_split=1)))


@pytest.mark.slow
def test_looking_imports_neither_torch_nor_widgets(tmp_path, write_rows):
    make_tokenizer("digits", "chatml").save_pretrained(tmp_path / "tokenizer")
    keys = [f"data_file={write_rows(rows('Ada'))}", "output_key=answer", "instruction=null", "model.completion_start="]
    keys.append(f"model.model_name_or_path={tmp_path / 'tokenizer'}")
    code = f"""
import sys, ragfit
from ragfit import views
of_a_model = {{"PreflightView", "LossCurve", "GroundingView", "load_tuned"}}
everything = [getattr(views, name) for name in views.__all__ if name not in of_a_model]
print(set(sys.modules) & {{"torch", "matplotlib", "IPython", "transformers", "ipywidgets"}})
prepared = ragfit.prepare(ragfit.load_config("training", {keys}))
made = [getattr(views, name)(prepared) for name in ("TokenView", "PromptView", "RagView", "LengthsView")]
print(*map(len, map(repr, [*views.rows_with_findings(prepared), *made])))
views.explore(prepared)._repr_mimebundle_()
print(set(sys.modules) & {{"torch", "matplotlib", "ipywidgets"}})
print(bool(views.explore(prepared).box), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert [done.stdout.splitlines()[i] for i in (0, 2, 3)] == ["set()", "set()", "True False"], done.stderr
