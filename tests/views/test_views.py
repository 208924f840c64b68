"""Views: the same ids and labels as the trainer's, hostile text harmless, small, and readable as text."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_config, make_tokenizer
from harmless import HOSTILE, Reader, assert_harmless
from omegaconf import OmegaConf

from ragfit.config.load import differences, load_config
from ragfit.config.overrides import override
from ragfit.data.mask import Encoder
from ragfit.data.prepare import prepare
from ragfit.draw import html as style
from ragfit.errors import ConfigError
from ragfit.views import (
    DifferencesView,
    LengthsView,
    LossCurve,
    PreflightView,
    PromptView,
    ReportView,
    SavedView,
    TokenView,
    report_html,
)
from ragfit.views.token_text import token_texts

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NAMES = sorted(p.name for p in Path(os.environ.get("RAGFIT_TOKENIZERS") or "/nowhere").glob("*"))


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE trained here, so that any text has tokens, and some characters have several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["Who wrote it? The document says that Ada wrote it in 1843.\n\nDocuments:"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(rows, tokenizer=tokenizer, **keys):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / "views.yaml").write_text("model:\n  model_name_or_path: none\n", encoding="utf-8")
        values = {"data_file": str(tmp_path / "rows.jsonl"), "input_key": "prompt", "output_key": "answer", **keys}
        cfg = load_config(tmp_path / "views.yaml", overrides=[override(key, value) for key, value in values.items()])
        return prepare(cfg, tokenizer)

    return make


def rows(*texts):
    return [{"prompt": f"Question: {text}\n" + f"{text} " * 6, "answer": text} for text in texts]


def check(view, prepared, index):
    """The view shows the trainer's row: every token once, its label, its text."""
    page = assert_harmless(view._repr_html_())
    row = prepared.train[index]
    assert [token.position for token in page.tokens] == list(range(len(row["input_ids"])))
    assert [token.id for token in page.tokens] == row["input_ids"]
    assert [token.label for token in page.tokens] == row["labels"]
    # The mark stands for loss without colour.
    assert ["mark" in token.inside for token in page.tokens] == [label != -100 for label in row["labels"]]
    bos = prepared.tokenizer.decode(prepared.encoder.bos) if prepared.encoder.bos else ""
    assert page.decoded() == bos + prepared.rendered(index).text
    return page


@pytest.mark.parametrize("text", HOSTILE)
def test_tokens_of_hostile_text(make, text):
    prepared = make(rows(text, f"all {text} {text}"))
    for index in range(2):
        view = TokenView(prepared, index)
        check(view, prepared, index)
        assert "with loss" in repr(view)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", repr(view).replace("\t", ""))


@pytest.mark.parametrize("name", NAMES or [pytest.param("", marks=pytest.mark.skip("RAGFIT_TOKENIZERS is not set"))])
def test_tokens_of_real_tokenizers(make, name):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(Path(os.environ["RAGFIT_TOKENIZERS"]) / name)
    prepared = make(rows("Who wrote it?", *HOSTILE), real)
    for index in range(len(prepared.train)):
        check(TokenView(prepared, index), prepared, index)
    assert_harmless(PromptView(prepared, 1)._repr_html_())


@pytest.mark.skipif("phi-3-mini-128k-instruct-apr2024" not in NAMES, reason="RAGFIT_TOKENIZERS is not set")
def test_a_space_that_sentencepiece_adds_takes_no_text():
    from transformers import PreTrainedTokenizerFast

    # As a bare PreTrainedTokenizerFast it puts a space of its own behind a special token.
    real = PreTrainedTokenizerFast.from_pretrained(
        Path(os.environ["RAGFIT_TOKENIZERS"]) / "phi-3-mini-128k-instruct-apr2024"
    )
    ids = real("<|end|>\nOK", add_special_tokens=False)["input_ids"]
    assert real.convert_ids_to_tokens(ids) == ["<|end|>", "▁", "<0x0A>", "OK"]
    assert token_texts(real, ids, "<|end|>\nOK", Encoder(real))[0] == ["<|end|>", "", "\n", "OK"]


def test_every_character_is_shown():
    assert style.visible("a\nb") == "a⏎\nb"
    assert style.visible("\x00\x1b\x7f") == "␀␛␡"
    assert style.visible("\u202ex\u2066\u200b\ufeff") == "⟨RLO⟩x⟨LRI⟩⟨ZWSP⟩⟨BOM⟩"
    assert style.visible("a b  c   d\u00a0e") == "a b··c···d⍽e"
    assert style.visible("\ud800\U000e0041") == "⟨U+D800⟩⟨U+E0041⟩"


def test_parts_of_a_character_are_marked(make):
    prepared = make(rows("say 👧 now"))
    tokens = check(TokenView(prepared), prepared, 0).tokens
    first = next(i for i, token in enumerate(tokens) if "👧" in token.text)
    rest = [token for token in tokens[first + 1 :][:5] if token.text.startswith("part ")]
    assert "👧" in tokens[first].shown and len(rest) >= 2
    assert {token.shown for token in rest} == {"⋯"}


def test_long_prompts_fold(make):
    prepared = make([{"prompt": "Documents: " + "The document says it. " * 200, "answer": "Ada"}, *rows("short")])
    page = check(TokenView(prepared, 0), prepared, 0)
    assert any(re.search(r"tokens without loss: ", fold) for fold in page.folds)
    outside = [token.position for token in page.tokens if "details" not in token.inside]
    start = next(token.position for token in page.tokens if token.label != -100)
    assert outside[:30] == list(range(30))
    assert set(range(start - 30, len(page.tokens))) <= set(outside)
    assert "…" in repr(TokenView(prepared, 0))


def test_size(make):
    prepared = make([{"prompt": "The document says that Ada wrote it in 1843. " * 400, "answer": "Ada wrote it."}])
    ids = prepared.train[0]["input_ids"]
    assert 3_500 < len(ids) < 5_000
    assert len(TokenView(prepared)._repr_html_().encode()) < 75 * len(ids)  # 300 kB for 4,000


def test_a_row_of_a_batch(make, tokenizer):
    pytest.importorskip("torch")
    from ragfit.collator import DataCollatorForCompletionOnlyLM

    prepared = make(rows("short", "The document says that Ada wrote it. " * 5))
    for side in ("left", "right"):
        collator = DataCollatorForCompletionOnlyLM(tokenizer=tokenizer, padding_side=side)
        batch = collator([prepared.train[i] for i in range(2)])
        view = TokenView(prepared, 0, batch=batch)
        page = Reader(view.html())
        assert [token.id for token in page.tokens] == batch["input_ids"][0].tolist()
        assert [token.label for token in page.tokens] == batch["labels"][0].tolist()
        padding = (batch["attention_mask"][0] == 0).tolist()
        assert ["small" in token.inside or token.shown == "<|pad|>" for token in page.tokens] == padding
        assert any("padding" in fold for fold in page.folds)
        assert f"+ {sum(padding)} padding" in view.html() and f"[{sum(padding)} padding]" in repr(view)
    with pytest.raises(ValueError, match="does not hold this row"):
        TokenView(prepared, 0, batch={key: value[1:] for key, value in batch.items()})


def test_ids_that_no_text_gives_again(tokenizer):
    pieces = [tokenizer.convert_tokens_to_ids(piece) for piece in "hi"]
    ids = [*pieces, *tokenizer("👧")["input_ids"], tokenizer.eos_token_id]
    texts, spans, _ = token_texts(tokenizer, ids, "another text", Encoder(tokenizer))
    assert "".join(texts) == "hi👧<|end|>" and spans is None
    assert texts[:3] == ["h", "i", "👧"] and set(texts[3:-1]) == {""}


def test_losses_stand_below_their_tokens(make):
    prepared = make(rows("Ada"))
    labels = prepared.train[0]["labels"]
    base = [None if label == -100 else 2.5 for label in labels]
    tuned = [None if label == -100 else 0.25 for label in labels]
    html = TokenView(prepared, losses={"base": base, "tuned": tuned}).html()
    count = sum(label != -100 for label in labels)
    assert len(re.findall(r"<sub [^>]*>2\.50 </sub><sub [^>]*>0\.25 </sub>", html)) == count
    assert html.count("loss 2.50 → 0.25") == count
    assert f"loss, base: {' '.join(['2.50'] * count)}\n" in repr(
        TokenView(prepared, losses={"base": base, "tuned": tuned})
    )
    with pytest.raises(ValueError, match="losses"):
        TokenView(prepared, losses=[1.0])


def test_prompt_view_covers_the_text(make):
    prepared = make(rows(HOSTILE[0]), **{"model.completion_start": "<|assistant|>\n"})
    view = PromptView(prepared)
    assert "".join(text for _, text, _, _ in view.parts) == prepared.rendered(0).text
    assert sum(tokens for _, _, tokens, _ in view.parts) == len(prepared.train[0]["input_ids"])
    assert sum(loss for *_, loss in view.parts) == sum(label != -100 for label in prepared.train[0]["labels"])
    assert [name for name, *_ in view.parts] == [
        "template",
        "prompt",
        "template",
        "marker",
        "output",
        "end of turn",
        "template",
    ]
    assert_harmless(view._repr_html_())
    assert "identical up to the completion" in view.html()
    assert "--- output (" in repr(view)


def test_prompt_view_shows_what_differs_at_inference(make, tokenizer):
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = TEMPLATE.replace(
        "<|{{ m['role'] }}|>", "{% if not add_generation_prompt %}Hello {% endif %}<|{{ m['role'] }}|>"
    )
    prepared = make(rows("<b>it</b>"), odd)
    view = PromptView(prepared)
    assert "only in training" in view.html()
    assert view.html().count("<bdi>Hello </bdi>") == len(view.differences) == 2
    assert re.search(r"only in training +before\n  … +Hello +<\|user\|>⏎", repr(view))
    assert_harmless(view._repr_html_())
    assert "prompt mismatch" in repr(ReportView(prepared))


def test_report_counts_and_finds(make):
    prepared = make(
        [*rows("<script>x</script><|end|>", "Ada", "Ada"), *rows("it " * 200)], **{"model.max_sequence_len": 400}
    )
    html = ReportView(prepared)._repr_html_()
    page = assert_harmless(html)
    assert html == report_html(prepared.report) == prepared.report._repr_html_()
    for text in ("dropped: too long", "special tokens in data", "duplicate rows", "&lt;|end|&gt;", "(row 3)"):
        assert text in html
    assert html.index(">warning<") < html.index(">note<")
    assert "table" in page.tags
    assert "last token with loss          '<|end|>' × 3" in repr(ReportView(prepared))
    calm = ReportView(make(rows("Ada")))
    assert "No findings." in calm.html() and "No findings." in repr(calm)


def test_lengths(make):
    prepared = make(
        rows("Ada", "wrote it " * 9, "x " * 300), **{"model.max_sequence_len": 400, "dev_split": 0.3, "shuffle": False}
    )
    view = LengthsView(prepared)
    html = view._repr_html_()
    assert_harmless(html)
    assert len(html) < 120_000
    assert "max_sequence_len is 400" in repr(view)


def test_differences(make):
    prepared = make(rows("Ada"), **{"train.hub_token": "hf_secret", "train.output_dir": "<b>out</b>"})
    folder = Path(prepared.cfg.data_file).parent
    found = differences(prepared.cfg, folder / "views.yaml")
    view = DifferencesView(prepared.cfg, found, "views")
    html = view._repr_html_()
    assert_harmless(html)
    assert "hf_secret" not in html and "hf_secret" not in repr(view)
    assert "&lt;b&gt;out&lt;/b&gt;" in html
    assert "train.output_dir" in repr(view)
    assert "Nothing" in DifferencesView(prepared.cfg, [], "views").html()
    noted = DifferencesView(
        OmegaConf.create({"translated": {"train.a": "became train.b", "x": "because"}}),
        [("train.b", None, 1), ("x", 1, 2)],
        "views",
    )
    assert "because" in repr(noted) and "became train.b" in repr(noted)


def test_preflight_and_saved(tmp_path):
    view = PreflightView([("device", HOSTILE[0], HOSTILE[1])], [HOSTILE[2]])
    assert_harmless(view._repr_html_())
    assert "device" in repr(view) and "! " in repr(view)
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1500))
    (tmp_path / "<b>").write_bytes(bytes(3))
    view = SavedView(tmp_path)
    assert "1.5 kB" in view.html() and "the trained adapter" in repr(view) and "3 B" in repr(view)
    assert_harmless(view._repr_html_())


def test_save_html_is_a_whole_page(make, tmp_path):
    path = TokenView(make(rows(*HOSTILE))).save_html(tmp_path / "new" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "://" not in text and "<script" not in text


def run(curve, steps, total, **more):
    args = SimpleNamespace(num_train_epochs=2, max_steps=-1)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=total, global_step=0, epoch=0.0, log_history=[])
    curve.on_train_begin(args, state, None)
    for step in range(1, steps + 1):
        state.global_step, state.epoch = step, 2 * step / total
        curve.on_step_end(args, state, None)
        curve.on_log(
            args, state, None, logs={"loss": 1 / step, "learning_rate": 1e-4, "num_tokens": 100.0 * step} | more
        )
        if step % 50 == 0:
            curve.on_log(args, state, None, logs={"eval_loss": 2 / step})
    curve.on_log(args, state, None, logs={"train_loss": 0.5, "train_runtime": 1.0})
    curve.on_train_end(args, state, None)


def test_curve_prints_few_lines_and_ends_with_all():
    lines = []
    curve = LossCurve(show=False, write=lines.append)
    run(curve, 1000, 1000)
    assert 10 < len(lines) <= 26
    assert re.match(r"step 1/1000  loss 1\.000  lr 1\.0e-04  \d+:\d\d elapsed, \d+:\d\d left", lines[1])
    assert lines[-1].startswith("done: step 1000/1000") and "dev loss 0.002" in lines[-1]
    html = curve._repr_html_()
    assert_harmless(html)
    assert "data:image/png" in html and len(html) < 150_000
    assert "1000/1000" in html and "▁" in repr(curve)


def test_curve_of_a_run_that_goes_on_and_is_stopped():
    lines = []
    curve = LossCurve(show=False, write=lines.append)
    before = [{"step": 2, "loss": 3.5}, {"step": 2, "eval_loss": 3.25}, {"step": 4, "loss": 3.0}]
    state = SimpleNamespace(is_world_process_zero=True, max_steps=9, global_step=5, epoch=0.5, log_history=before)
    curve.on_train_begin(SimpleNamespace(num_train_epochs=1, max_steps=9), state, None)
    state.global_step = 6
    curve.on_log(None, state, None, {"loss": 2.5})
    curve.on_train_end(None, state, None)
    assert curve.curves == {"loss": [(2, 3.5), (4, 3.0), (6, 2.5)], "eval_loss": [(2, 3.25)]}
    assert lines[0] == "training: 9 steps, going on from step 5" and lines[-1].startswith("stopped: step 6/9 in")
    assert "stopped" in curve._repr_html_()


def test_curve_calls_out_what_is_not_finite():
    lines = []
    curve = LossCurve(show=False, write=lines.append)
    run(curve, 60, 60, loss=math.nan)
    assert sum("loss is nan" in line for line in lines) == 3
    assert "59 more steps" in repr(curve) and "learning_rate" in curve._repr_html_()


def test_curve_updates_one_display(monkeypatch):
    import IPython.display

    shown = []
    handle = SimpleNamespace(update=lambda view: shown.append(view._repr_html_()))
    monkeypatch.setattr(IPython.display, "display", lambda view, display_id: shown.append(view._repr_html_()) or handle)
    run(LossCurve(show=True, write=lambda line: None), 200, 200)
    assert 2 <= len(shown) <= 4  # the first, the last, and one for each two seconds
    assert "running" in shown[0] and "done" in shown[-1] and "data:image/png" in shown[-1]


def test_curve_is_a_callback():
    pytest.importorskip("torch")
    from transformers import TrainerCallback

    from ragfit.training.live import loss_curve

    curve = loss_curve(show=False)
    assert isinstance(curve, TrainerCallback) and isinstance(curve, LossCurve)
    assert callable(curve.on_save)


def test_palette_has_contrast():
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    pairs = {name: value for name, value in vars(style).items() if isinstance(value, tuple) and len(value) == 2}
    pairs |= {f"heat {limit}": pair for limit, pair, *_ in style.HEAT}
    for name, pair in [*pairs.items(), ("quiet on paper", (style.PAPER[0], style.QUIET[1]))]:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_views_import_no_torch():
    code = (
        "import sys, ragfit.views as v; [getattr(v, name) for name in v.__all__]; "
        "sys.exit([m for m in ('torch', 'matplotlib', 'IPython', 'transformers') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", [(9,), ("0",), (0, "test"), (0, "dev")])
def test_a_row_that_is_not_there(write_rows, where):
    prepared = prepare(make_config(write_rows([{"prompt": "a", "answers": ["b"]}])), make_tokenizer())
    for view in (TokenView, PromptView):
        with pytest.raises(
            ConfigError, match="^row .* of .*: there is no such prepared row. There are 1 in train and 0"
        ):
            view(prepared, *where)
