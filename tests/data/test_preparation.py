"""`prepare`: from rows in a file to rows to train on, every one counted."""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import (
    CHAT_TEMPLATES,
    KINDS_OF_TOKENIZER,
    MARKERS,
    NO_SYSTEM,
    make_config,
    make_tokenizer,
    real_rows,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ragfit
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.data.fit import Fitter, TooLong
from ragfit.data.mask import Encoder
from ragfit.data.prompt import Renderer
from ragfit.data.report import Cut
from ragfit.data.rows import choose, split
from ragfit.errors import ConfigError, DataError, PromptError

ROWS = [{"prompt": f"Document {i}. Where?", "answers": [f"7{i} BC"]} for i in range(10)]


@pytest.fixture
def prepare(write_rows):
    """`prepare(rows, tokenizer=None, **settings)`."""

    def run(rows=ROWS, tokenizer=None, **settings):
        for name in ("instruction", "template"):
            if name in settings:
                path = write_rows([], f"{name}.txt")
                path.write_text(settings[name], encoding="utf-8")
                settings[name] = path
        if isinstance(settings.get("dev_split"), list):
            settings["dev_split"] = write_rows(settings["dev_split"], "dev.jsonl")
        return ragfit.prepare(make_config(write_rows(rows), **settings), tokenizer or make_tokenizer("digits"))

    return run


def texts(prepared, part="train"):
    tokenizer, dataset = prepared.tokenizer, getattr(prepared, part)
    return [tokenizer.decode(row["input_ids"]) for row in dataset]


# --- What comes out ---------------------------------------------------------------------------------------------------


def test_rows_as_they_are_trained_on(prepare):
    prepared = prepare(ROWS[:2], instruction="Be brief.")
    assert prepared.train.column_names == ["input_ids", "labels"]
    tokenizer = prepared.tokenizer
    for i, row in enumerate(prepared.train):
        with_loss = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(with_loss) == f"7{i} BC<|im_end|>"
        assert tokenizer.decode(row["input_ids"]) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            f"<|im_start|>user\nDocument {i}. Where?<|im_end|>\n<|im_start|>assistant\n7{i} BC<|im_end|>\n"
        )
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert prepared.dev is None and prepared.instruction == "Be brief."


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_the_dataset_is_what_the_renderer_and_the_encoder_make(prepare, kind, template):
    rows = [*ROWS[:2], {"prompt": " 東京 é\n", "answers": ["\n 7 👩‍👩‍👧 "]}]
    prepared = prepare(rows, make_tokenizer(kind, template), completion_start=MARKERS[template])
    rendered = [prepared.rendered(i) for i in range(3)]
    masked = prepared.encoder.encode(rendered)
    assert prepared.train["input_ids"][:] == [m.input_ids for m in masked]
    assert prepared.train["labels"][:] == [m.labels() for m in masked]


def test_more_rows_than_a_batch_keep_their_order(prepare):
    rows = [{"prompt": f"q{i}", "answers": f"{i}"} for i in range(600)]
    prepared = prepare(rows)
    assert [text.split("<|im_start|>assistant\n")[1] for text in texts(prepared)] == [
        f"{i}<|im_end|>\n" for i in range(600)
    ]
    assert prepared.report.train.kept == list(range(600))


@pytest.mark.parametrize(
    ("settings", "train", "dev"),
    [
        ({}, list(range(10)), []),
        ({"limit": 3}, [0, 1, 2], []),
        ({"shuffle": 42}, choose(10, 42), []),
        ({"shuffle": 42, "limit": 4}, choose(10, 42, 4), []),
        ({"dev_split": 2}, *split(list(range(10)), 2)),
        ({"dev_split": 0.3, "shuffle": 7}, *split(choose(10, 7), 0.3, 7)),
        ({"dev_split": 0.5, "shuffle": 7, "limit": 4}, *split(choose(10, 7, 4), 0.5, 7)),
        ({"dev_split": [{"prompt": "x", "answers": "y"}] * 2, "limit": 3}, [0, 1, 2], [0, 1]),
    ],
)
def test_which_rows(prepare, settings, train, dev):
    for _ in range(2):  # the same configuration always chooses the same rows
        prepared = prepare(**dict(settings))
        report = prepared.report
        assert (report.train.kept, report.dev.kept) == (train, dev)
        assert [prepared.row(number)[0] for number in train] == [ROWS[number]["prompt"] for number in train]
        assert [ROWS[number]["prompt"] in text for number, text in zip(train, texts(prepared), strict=True)] == [
            True
        ] * len(train)
        assert (len(prepared.dev) if prepared.dev else 0) == len(dev)
        assert report.in_file == 10


def test_columns_named_like_the_trainers_are_only_data(prepare):
    rows = [
        {
            "prompt": "Where?",
            "answers": "7",
            "labels": [1, 2, 3],
            "input_ids": "no",
            "attention_mask": None,
            "length": 3,
        }
    ]
    prepared = prepare(rows)
    assert prepared.train.column_names == ["input_ids", "labels"]
    assert prepared.train[0]["labels"].count(-100) == len(prepared.train[0]["input_ids"]) - 2  # "7" and its end
    prepared = prepare([{"labels": "Where?", "input_ids": "7"}], input_key="labels", output_key="input_ids")
    assert "Where?" in texts(prepared)[0] and prepared.row(0)[:2] == ("Where?", "7")


def test_the_batch_is_the_datasets_rows(prepare):
    pytest.importorskip("torch")
    prepared = prepare()
    rows = [prepared.train[i] for i in range(3)]
    batch = DataCollatorForCompletionOnlyLM(tokenizer=prepared.tokenizer)(rows)
    for i, row in enumerate(rows):
        assert batch["input_ids"][i][: len(row["input_ids"])].tolist() == row["input_ids"]
        assert batch["labels"][i][: len(row["labels"])].tolist() == row["labels"]


def test_bos_of_a_template_of_ones_own_is_in_the_rows(prepare):
    prepared = prepare(template="{query}\nAnswer:{output}", completion_start="Answer:")
    bos = prepared.tokenizer.bos_token_id
    for row in prepared.train:
        assert row["input_ids"][0] == bos and row["input_ids"].count(bos) == 1 and row["labels"][0] == -100
    assert texts(prepared)[0] == "<s>Document 0. Where?\nAnswer:70 BC</s>"


def test_data_is_never_executed(prepare):
    rows = [{"prompt": "{{ 7*7 }} {query}", "answers": "{% raw %} {output} {{ cycler }}"}]
    for custom in ({}, {"template": "{{}}{query}|{output}"}):
        (text,) = texts(prepare(rows, **custom))
        assert "{{ 7*7 }} {query}" in text and "{% raw %} {output} {{ cycler }}" in text and "49" not in text


# --- The report -------------------------------------------------------------------------------------------------------


def test_the_report_counts(prepare):
    rows = [*ROWS, {"prompt": "x" * 400, "answers": "7"}, {"prompt": "Where?", "answers": ["\n\n\n7"]}]
    prepared = prepare(rows, make_tokenizer("trimming"), max_sequence_len=200, dev_split=2)
    report, train = prepared.report, prepared.report.train
    assert (report.in_file, train.rows, report.dev.rows) == (12, 10, 2)
    gone = [10] if 10 in train.dropped.get("too long", []) else []
    assert train.dropped == ({"too long": gone} if gone else {}) and len(train.kept) == 10 - len(gone)
    assert len(train.rejected_lengths) == len(gone) and all(length > 200 for length in train.rejected_lengths)
    assert train.lengths == [
        (sum(label == -100 for label in row["labels"]), sum(label != -100 for label in row["labels"]))
        for row in prepared.train
    ]
    assert train.tokens == sum(len(row["input_ids"]) for row in prepared.train)
    assert report.last_labels == {"<|im_end|>": len(train.kept) + len(report.dev.kept)}
    assert report.last_ids == [prepared.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert sum(report.first_labels.values()) == len(train.kept) + len(report.dev.kept)
    assert report.boundary == {"\n\n": 1}
    text = str(report)
    assert text.splitlines()[0].endswith("rows.jsonl: 12 rows")
    assert (
        f"train: {len(train.kept)} of 10 rows kept" in text
        and f"{train.tokens:,} tokens, {train.loss_tokens:,} with loss" in text
    )


def test_tokens_that_are_parts_of_a_character_are_counted_together(prepare):
    # "é" and "東" begin with different bytes, and neither token is a character.
    rows = [{"prompt": "q", "answers": answer} for answer in ("é", "東", "東", "7")]
    report = prepare(rows, make_tokenizer("metaspace")).report
    assert sum(report.first_labels.values()) == 4 and report.first_labels["7"] == 1


def test_an_empty_output_learns_to_end(prepare):
    prepared = prepare([{"prompt": "Where?", "answers": answers} for answers in ([], None, "", [[]])])
    for row in prepared.train:
        assert prepared.tokenizer.decode([label for label in row["labels"] if label != -100]) == "<|im_end|>"


def test_a_dev_set_of_which_nothing_is_left(prepare):
    prepared = prepare(dev_split=[{"prompt": "x" * 500, "answers": "7"}], max_sequence_len=100)
    assert prepared.dev is None
    assert prepared.report.dev.dropped == {"too long": [0]} and "dev: 0 of 1 rows kept, 1 too long" in str(
        prepared.report
    )


def test_the_rows_outlive_their_file(prepare):
    prepared = prepare()
    few = prepared.train.select(range(3))
    del prepared
    gc.collect()
    assert len(few[2]["input_ids"]) > 0


# --- What cannot be prepared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        (ROWS, {"input_key": None}, ConfigError, "input_key: it is not set. Set it, for instance input_key=prompt."),
        (ROWS, {"dev_split": []}, DataError, "dev.jsonl: the file has no rows. Check dev_split."),
        ([*ROWS[:3], {"prompt": "x"}], {}, DataError, "line 4: there is no key 'answers'; the row has 'prompt'. Set output_key"),
        ([*ROWS[:3], {"prompt": "x", "answers": 7}], {}, DataError, "line 4: 'answers' holds a number, not text"),
        (ROWS, {"max_sequence_len": 5, "over_length": "cut_end"}, DataError, "none of its 10 rows can be trained on (10 too long). Raise"),
        (
            ROWS, {"template": "{query}{output}", "completion_start": "Answer:"}, PromptError,
            "rows.jsonl, line 1: model.completion_start: 'Answer:' does not",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_line_or_the_key(prepare, rows, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        prepare(rows, **settings)


def test_a_bad_marker_is_told_before_any_row_is_read(prepare):
    with pytest.raises(PromptError, match="does not occur"):
        prepare([{"no": "keys"}], completion_start="### Answer")


def test_a_row_that_speaks_of_its_place_in_the_text_is_not_dropped_for_it(prepare):
    template = "{query}{output}"
    with pytest.raises(PromptError, match="line 2: model.completion_start: .* Leave model.completion_start empty"):
        prepare(
            [{"prompt": "q A:", "answers": "7"}, {"prompt": "its place in the text", "answers": "7"}],
            template=template,
            completion_start="A:",
        )


# --- Rows that are too long -------------------------------------------------------------------------------------------

WORDS = [
    "Rome",
    "was",
    "founded",
    "in",
    "753",
    "BC.",
    "東京は日本の首都です。",
    "Is",
    "it?",
    "\n\n",
    "two",
    "",
    "spaces\t👩\u200d👩\u200d👧",
    "é",
    "",
]
_fitters = {}


def fitter(kind, template, marker):
    if (kind, template, marker) not in _fitters:
        renderer = Renderer(
            make_tokenizer(kind, template),
            "" if template in NO_SYSTEM else "Be brief.",
            completion_start=MARKERS[template] if marker else "",
        )
        _fitters[kind, template, marker] = renderer, Encoder(renderer.tokenizer, renderer.bos)
    return _fitters[kind, template, marker]


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(KINDS_OF_TOKENIZER),
    st.sampled_from(sorted(CHAT_TEMPLATES)),
    st.sampled_from(["cut_end", "cut_start"]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(" ".join),
    st.sampled_from(["753", " Rome\n", "", "\n\n7", "東京 <|im_end|>"]),
    st.floats(0, 1.05),
    st.booleans(),
)
def test_only_the_rows_own_prompt_is_cut(kind, template, policy, query, output, share, marker):
    renderer, encoder = fitter(kind, template, marker)
    row = renderer.render(query, output)
    masked = encoder.encode([row])[0]
    bare = encoder.encode([renderer.render("", output)])[0]
    limit = max(1, round(len(bare.input_ids) - 3 + share * (len(masked.input_ids) - len(bare.input_ids) + 3)))
    whole = Cut(0, len(query), len(query))
    try:
        cut, fitted, result = Fitter(renderer, encoder, limit, policy).fit(query, output, whole, row, masked)
    except TooLong as error:
        # Nothing of the prompt would have been left. What is left of a cut may weigh a token more than nothing.
        assert len(bare.input_ids) + 3 > limit
        assert error.tokens == len(masked.input_ids)
        return
    assert len(result.input_ids) <= limit
    left = cut.apply(query)
    assert fitted == renderer.render(left, output)
    assert query.endswith(left) if policy == "cut_start" else query.startswith(left)
    # The completion, the instruction and the template's text are the same, and so are the tokens with loss.
    assert fitted.text[fitted.completion_char : fitted.end_char] == row.text[row.completion_char : row.end_char]
    assert fitted.text[: row.text.index("Be brief.") + 9 if "Be brief." in row.text else 0] in row.text
    assert result.input_ids[result.start : result.end] == masked.input_ids[masked.start : masked.end]
    if len(masked.input_ids) <= limit:
        assert cut == whole and result == masked
    else:
        assert len(left) < len(query)
        # As few tokens as possible, but for characters of several tokens and white space that the template strips.
        assert len(result.input_ids) >= limit - 12 or kind == "whole"


@pytest.mark.parametrize("policy", ["cut_end", "cut_start"])
def test_cut_rows_as_they_are_shown_and_trained_on(prepare, policy):
    rows = [*ROWS, {"prompt": " ".join(f"Word{i}." for i in range(200)), "answers": "753"}]
    prepared = prepare(rows, max_sequence_len=120, over_length=policy, instruction="Be brief.")
    assert list(prepared.report.train.cut) == [10] and prepared.report.train.kept == list(range(11))
    cut = prepared.report.train.cut[10]
    assert (cut.length, cut.stop - cut.start < cut.length) == (len(rows[10]["prompt"]), True)
    assert 112 <= len(prepared.train[10]["input_ids"]) <= 120
    query, output, source = prepared.row(10)
    assert query == cut.apply(rows[10]["prompt"]) and (output, source) == ("753", rows[10])
    assert texts(prepared)[10] == prepared.rendered(10).text
    assert texts(prepared)[10].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + query)
    assert [finding.rows for finding in prepared.report.findings if finding.kind == "cut"] == [(("train", 10),)]
    assert "1 cut" in str(prepared.report)


def test_a_row_that_fits_nowhere_leaves_nothing_behind_for_the_dev_row_of_its_number(prepare):
    # The training row is cut to a piece before it is tokenized, and dropped for its answer.
    rows = [{"prompt": "word " * 4000, "answers": "7" * 300}, *ROWS]
    dev = [{"prompt": " ".join(f"Word{i}." for i in range(200)), "answers": "753"}]
    prepared = prepare(rows, max_sequence_len=120, over_length="cut_start", dev_split=dev)
    assert prepared.report.train.dropped == {"too long": [0]} and list(prepared.report.dev.cut) == [0]
    query, _, _ = prepared.row(0, "dev")
    assert query and dev[0]["prompt"].endswith(query)
    assert prepared.tokenizer.decode(prepared.dev[0]["input_ids"]) == prepared.rendered(0, "dev").text


def test_a_row_just_as_long_as_the_limit_stays(prepare):
    length = len(prepare(ROWS[:1]).train[0]["input_ids"])
    assert prepare(ROWS[:1], max_sequence_len=length).report.train.kept == [0]
    with pytest.raises(DataError, match="1 too long"):
        prepare(ROWS[:1], max_sequence_len=length - 1)
    assert list(prepare(ROWS[:1], max_sequence_len=length - 1, over_length="cut_end").report.train.cut) == [0]


@pytest.mark.parametrize("policy", ["cut_end", "cut_start"])
@pytest.mark.parametrize("limit", [40, 61, 100])
def test_no_token_more_than_needed_is_cut(prepare, policy, limit):
    # Each digit is a token of its own, so the limit can be met exactly.
    prepared = prepare([{"prompt": "0123456789" * 20, "answers": "7"}], max_sequence_len=limit, over_length=policy)
    assert len(prepared.train[0]["input_ids"]) == limit


@pytest.mark.parametrize(("policy", "prompt"), [("cut_end", "{}" + "\n" * 2000), ("cut_start", "\n" * 2000 + "{}")])
def test_white_space_that_the_template_strips_is_not_cut_for_words(prepare, policy, prompt):
    tokenizer, rows = make_tokenizer("digits", "trims"), [{"prompt": prompt.format("0123456789" * 20), "answers": "7"}]
    limit = len(prepare(rows, tokenizer).train[0]["input_ids"]) - 2
    prepared = prepare(rows, tokenizer, max_sequence_len=limit, over_length=policy)
    assert len(prepared.train[0]["input_ids"]) == limit


@pytest.mark.parametrize(("policy", "kept"), [("cut_end", [0]), ("cut_start", [0, 1]), ("drop", [0])])
def test_a_marker_in_the_rows_own_prompt_is_not_cut_away(prepare, policy, kept):
    rows = [{"prompt": "Where?\nAnswer:", "answers": " 7"}, {"prompt": "word " * 60 + "\nAnswer:", "answers": " 7"}]
    prepared = prepare(
        rows, template="{query}{output}", completion_start="Answer:", max_sequence_len=60, over_length=policy
    )
    assert prepared.report.train.kept == kept
    for row in prepared.train:
        assert prepared.tokenizer.decode([label for label in row["labels"] if label != -100]) == " 7</s>"


def test_a_completion_is_never_cut(prepare):
    rows = [ROWS[0], {"prompt": "Where?", "answers": "7" * 300}]
    for policy in ("drop", "cut_end", "cut_start"):
        prepared = prepare(rows, max_sequence_len=150, over_length=policy)
        assert prepared.report.train.dropped == {"too long": [1]} and prepared.report.train.rejected_lengths[0] > 300


def test_without_offsets_rows_are_cut_too(prepare):
    from transformers import ByT5Tokenizer

    rows = [{"prompt": "word é " * 60, "answers": "Rome"}]
    for policy in ("cut_end", "cut_start"):
        prepared = prepare(
            rows, ByT5Tokenizer(), template="Q: {query}\nA: {output}", max_sequence_len=80, over_length=policy
        )
        assert 70 <= len(prepared.train[0]["input_ids"]) <= 80
        assert (
            prepared.tokenizer.decode([label for label in prepared.train[0]["labels"] if label != -100]) == "Rome</s>"
        )


# --- Tokenizers -------------------------------------------------------------------------------------------------------


def test_real_rows_under_real_tokenizers(prepare, real_tokenizers):
    rows = [{"prompt": row["prompt"], "answers": row["answers"]} for row in real_rows("asqa-prefix-train.jsonl", 12)]
    plain = prepare(
        rows,
        real_tokenizers,
        instruction="Use the documents.",
        instruction_in_prompt="mistral" in real_tokenizers.kit_name,
    )
    ends = set(plain.report.last_labels)
    assert len(ends) == 1 and len(plain.train) == 12
    longest = max(sum(pair) for pair in plain.report.train.lengths)
    for policy in ("cut_end", "cut_start"):
        limit = longest // 2
        prepared = prepare(
            rows, real_tokenizers, over_length=policy, max_sequence_len=limit, instruction_in_prompt=False
        )
        assert len(prepared.train) == 12
        for i, row in enumerate(prepared.train):
            assert len(row["input_ids"]) <= limit
            assert len(row["input_ids"]) >= limit - 4 or i not in prepared.report.train.cut
            with_loss = [label for label in row["labels"] if label != -100]
            assert with_loss[-1:] == plain.report.last_ids
            answer = prepared.tokenizer.decode(with_loss, clean_up_tokenization_spaces=False)
            assert rows[i]["answers"][0].strip() in answer


@pytest.mark.slow
def test_a_tokenizers_folder_is_loaded_without_torch(tiny_tokenizer, tmp_path, write_rows):
    folder = tmp_path / "model"
    tiny_tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    code = (
        "import sys, ragfit; sys.path.insert(0, sys.argv[3]); from conftest import make_config\n"
        "p = ragfit.prepare(make_config(sys.argv[1], model_name_or_path=sys.argv[2]))\n"
        "print(len(p.train), 'torch' in sys.modules, p.train[0]['input_ids'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(write_rows(ROWS)), str(folder), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    ids = ragfit.prepare(make_config(write_rows(ROWS)), tiny_tokenizer).train[0]["input_ids"]
    assert run.stdout.strip() == f"10 False {ids}"


def test_a_folder_without_a_tokenizer(tmp_path, write_rows):
    with pytest.raises(ConfigError, match="model.model_name_or_path: no tokenizer could be loaded from"):
        ragfit.prepare(make_config(write_rows(ROWS), model_name_or_path=str(tmp_path)))


# --- Many rows at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["digits", "trimming", "baked", "metaspace", "slow"])
def test_batches_in_flight_are_what_each_row_is_alone(prepare, monkeypatch, kind):
    """Rows are rendered, tokenized and cut in several threads; none of it may depend on the rows around."""
    from transformers import ByT5Tokenizer

    import ragfit.data.prepare as preparation
    from ragfit.data.prepare import Part, Preparer

    rows = [
        {"prompt": f"Document {i}. " + "word é " * (i * 7 % 90), "answers": f"{i} BC" * (i % 3)} for i in range(300)
    ]
    monkeypatch.setattr(preparation, "_BATCH_ROWS", 7)
    monkeypatch.setattr(preparation, "_BATCH_CHARACTERS", 2000)
    tokenizer = ByT5Tokenizer() if kind == "slow" else make_tokenizer(kind)
    template = {"template": "Q: {query}\nA: {output}"} if kind == "slow" else {}
    prepared = prepare(rows, tokenizer, max_sequence_len=150, over_length="cut_end", **template)
    assert prepared.report.train.kept == list(range(300)) and prepared.report.train.cut
    work = Preparer(prepared.cfg, prepared.renderer)
    for number, row in enumerate(prepared.train):
        alone = work.prepare_row("train", prepared.sources["train"], number, Part())[0]
        assert (row["input_ids"], row["labels"]) == (alone.input_ids, alone.labels())


def test_a_bar_shows_for_many_rows_and_none_for_few(prepare, capsys):
    prepare([{"prompt": f"q{i}", "answers": "a"} for i in range(2000)])
    assert re.search(r"preparing train: 100%.* 2000/2000 ", capsys.readouterr().err)
    prepare(ROWS)
    assert capsys.readouterr().err == ""


def test_the_bar_counts_dropped_rows_too(prepare, capsys):
    prepare([{"prompt": f"q{i}" + " word" * (i % 2 * 40), "answers": "a"} for i in range(2000)], max_sequence_len=60)
    assert re.search(r"preparing train: 100%.* 2000/2000 ", capsys.readouterr().err)
