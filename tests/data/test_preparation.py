"""`prepare`: from rows in a file to rows to train on, every one counted."""

import re
from functools import cache

import pytest
from conftest import CHAT_TEMPLATES, KINDS_OF_TOKENIZER, MARKERS, NO_SYSTEM, make_config, make_tokenizer, real_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ragfit
from ragfit.data.fit import Fitter
from ragfit.data.mask import Encoder
from ragfit.data.prepare import Preparer, Settings
from ragfit.data.prompt import Renderer
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


def texts(prepared):
    return [prepared.tokenizer.decode(row["input_ids"]) for row in prepared.train]


def learned(prepared):
    """For each row, the text that has loss."""
    return [prepared.tokenizer.decode([id for id in row["labels"] if id != -100]) for row in prepared.train]


def test_rows_as_they_are_trained_on(prepare):
    prepared = prepare(ROWS[:2], instruction="Be brief.")
    assert prepared.train.column_names == ["input_ids", "labels"]
    assert learned(prepared) == ["70 BC<|im_end|>", "71 BC<|im_end|>"]
    assert texts(prepared) == [
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nDocument {i}. Where?<|im_end|>\n<|im_start|>assistant\n7{i} BC<|im_end|>\n"
        for i in range(2)
    ]
    for row in prepared.train:
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert prepared.dev is None and prepared.instruction == "Be brief."


@pytest.mark.parametrize(
    ("settings", "train", "dev"),
    [
        ({}, list(range(10)), []),
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
        assert all(ROWS[number]["prompt"] in text for number, text in zip(train, texts(prepared), strict=True))
        assert (len(prepared.dev) if prepared.dev else 0) == len(dev)
        assert report.in_file == 10


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
    assert text.splitlines()[0].endswith("rows.jsonl, 12 rows in the file")
    assert f"{train.tokens:,}" in text and f"{train.loss_tokens:,} ({train.loss_share:.1%})" in text


def test_a_dev_set_of_which_nothing_is_left(prepare):
    prepared = prepare(dev_split=[{"prompt": "x" * 500, "answers": "7"}], max_sequence_len=100)
    assert prepared.dev is None
    assert prepared.report.dev.dropped == {"too long": [0]} and "1 (row 0)" in str(prepared.report)


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        (ROWS, {"input_key": None}, ConfigError, "input_key: it is not set. Set it, for instance input_key=prompt."),
        (ROWS, {"dev_split": []}, DataError, "dev.jsonl: the file has no rows. Check dev_split."),
        ([*ROWS[:3], {"prompt": "x"}], {}, DataError, "line 4: there is no key 'answers'; the row has 'prompt'. Set output_key"),
        ([*ROWS[:3], {"prompt": "x", "answers": 7}], {}, DataError, "line 4: 'answers' holds a value of type int, not text"),
        (ROWS, {"max_sequence_len": 5, "over_length": "cut_end"}, DataError, "none of its 10 rows can be trained on (10 too long). Raise"),
        (ROWS, {"template": "{query}{output}", "completion_start": "Answer:"}, PromptError,
         "rows.jsonl, line 1: model.completion_start: 'Answer:' does not"),
        ([{"no": "keys"}], {"completion_start": "### Answer"}, PromptError, "does not occur"),  # before any row is read
    ],
)  # fmt: skip
def test_errors_name_the_line_or_the_key(prepare, rows, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        prepare(rows, **settings)


WORDS = ["Rome", "was", "founded", "in", "753", "BC.", "東京は日本の首都です。", "Is", "it?", "\n\n", "two", "é"]
WORDS += ["", "spaces\t👩\u200d👩\u200d👧"]


@cache
def fitter(kind, template, marker):
    instruction = "" if template in NO_SYSTEM else "Be brief."
    start = MARKERS[template] if marker else ""
    renderer = Renderer(make_tokenizer(kind, template), instruction, completion_start=start)
    return renderer, Encoder(renderer.tokenizer, renderer.bos)


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
    found = Fitter(renderer, encoder, limit, policy).fit(query, output, {}, row, masked)
    if found is None:
        # Nothing of the prompt would have been left. What is left of a cut may weigh a token more than nothing.
        assert len(bare.input_ids) + 3 > limit
        return
    cut, fitted, result = found
    assert len(result.input_ids) <= limit
    left = cut.apply(query) if cut else query
    assert fitted == renderer.render(left, output)
    assert query.endswith(left) if policy == "cut_start" else query.startswith(left)
    # The completion, the instruction and the template's text are the same, and so are the tokens with loss.
    assert fitted.text[fitted.completion_char : fitted.end_char] == row.text[row.completion_char : row.end_char]
    assert fitted.text[: row.text.index("Be brief.") + 9 if "Be brief." in row.text else 0] in row.text
    assert result.input_ids[result.start : result.end] == masked.input_ids[masked.start : masked.end]
    if len(masked.input_ids) <= limit:
        assert cut is None and result == masked
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
    assert 112 <= len(prepared.train[10]["input_ids"]) <= 120
    query, output, source = prepared.row(10)
    assert query == cut.apply(rows[10]["prompt"]) and (output, source) == ("753", rows[10])
    assert texts(prepared)[10] == prepared.rendered(10).text
    assert texts(prepared)[10].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + query)
    assert [finding.rows for finding in prepared.report.findings if finding.kind == "cut"] == [(("train", 10),)]


@pytest.mark.parametrize(("policy", "kept"), [("cut_end", [0]), ("cut_start", [0, 1]), ("drop", [0])])
def test_a_marker_in_the_rows_own_prompt_is_not_cut_away(prepare, policy, kept):
    rows = [{"prompt": "Where?\nAnswer:", "answers": " 7"}, {"prompt": "word " * 60 + "\nAnswer:", "answers": " 7"}]
    own = {"template": "{query}{output}", "completion_start": "Answer:"}
    prepared = prepare(rows, max_sequence_len=60, over_length=policy, **own)
    assert prepared.report.train.kept == kept and set(learned(prepared)) == {" 7</s>"}


@pytest.mark.parametrize("kind", ["digits", "trimming", "baked", "metaspace"])
def test_batches_in_flight_are_what_each_row_is_alone(prepare, monkeypatch, kind):
    """Rows are rendered, tokenized and cut in two threads; none of it may depend on the rows around."""
    import ragfit.data.prepare as preparation

    rows = ((f"Document {i}. " + "word é " * (i * 7 % 90), f"{i} BC" * (i % 3)) for i in range(300))
    rows = [{"prompt": prompt, "answers": answer} for prompt, answer in rows]
    monkeypatch.setattr(preparation, "_BATCH", 7)
    prepared = prepare(rows, make_tokenizer(kind), max_sequence_len=150, over_length="cut_end")
    assert prepared.report.train.kept == list(range(300)) and prepared.report.train.cut
    work = Preparer(prepared.cfg, prepared.renderer, prepared.sources)
    as_it_is = Settings(max_sequence_len=150, over_length="cut_end")
    for number, row in enumerate(prepared.train):
        rendered, alone, _ = work.one(number, "train", as_it_is)
        assert (row["input_ids"], row["labels"]) == (alone.input_ids, alone.labels())
        assert rendered == prepared.rendered(number)


def test_a_slow_tokenizer_is_one_clear_error(prepare):
    from transformers import ByT5Tokenizer

    with pytest.raises(ConfigError, match=r"model_name_or_path: .*ByT5Tokenizer.* Use a model with a fast tokenizer"):
        prepare(ROWS, ByT5Tokenizer(), template="Q: {query}\nA: {output}")


def test_one_row_under_other_settings(prepare):
    prepared = prepare(instruction="Be brief.")
    work = Preparer(prepared.cfg, prepared.renderer, prepared.sources)

    def one(number=3, **settings):
        row, masked, found = work.one(number, "train", Settings(**settings))
        return row, masked, [finding.kind for finding in found]

    row, masked, found = one(template="Q: {query}\nA:{output}", completion_start="A:")
    assert row.text == "Q: Document 3. Where?\nA:73 BC</s>" and found == []
    assert prepared.tokenizer.decode(masked.input_ids[masked.start : masked.end]) == "73 BC</s>"
    row, masked, found = one(max_sequence_len=10)
    assert found == ["dropped: too long"] and "Document 3. Where?" in row.text and len(masked.input_ids) > 10
    limit = len(masked.input_ids) - 2
    row, masked, found = one(max_sequence_len=limit, over_length="cut_start")
    assert "cut" in found and len(masked.input_ids) == limit and "Where?<|im_end|>" in row.text
    assert "Be brief.\nDocument 3." in one(instruction="Be brief.", instruction_in_prompt=True)[0].text
    with pytest.raises(PromptError, match="does not occur"):
        one(completion_start="### Answer")
    assert prepared.report == prepare(instruction="Be brief.").report  # nothing of it is counted


THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
HEADER, BLOCK = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("marker", "kwargs", "loss", "kind"),
    [
        ("", None, f"{BLOCK}Rome<|im_end|>", "other text has loss"),
        (HEADER, None, f"{BLOCK}Rome<|im_end|>", "other text has loss"),
        (HEADER + BLOCK, None, "Rome<|im_end|>", "loss behind the prompt"),
        ("", {"enable_thinking": False}, "Rome<|im_end|>", None),
        (HEADER + BLOCK, {"enable_thinking": False}, "Rome<|im_end|>", None),
        ("</think>", {"enable_thinking": False}, "\n\nRome<|im_end|>", "loss within the prompt"),
    ],
)
@pytest.mark.parametrize("real", [False, True])
def test_what_the_inference_prompt_lacks(prepare, real, marker, kwargs, loss, kind):
    from ragfit.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(real_folder() / "qwen3")) if real else make_tokenizer("metaspace", THINKS)
    rows = [{"prompt": "Where? " + "word " * 60, "answers": "Rome"}]
    prepared = prepare(rows, tokenizer, completion_start=marker, chat_template_kwargs=kwargs)
    assert learned(prepared) == [loss]
    found = {one.kind: one.fix for one in prepared.report.findings}
    assert set(found) == ({kind} if kind else set())
    if kwargs is None:
        assert "Set model.chat_template_kwargs={enable_thinking: false}, and leave" in found[kind]
    prompt = prepared.rendered(0).prompt
    assert prompt.endswith(HEADER + BLOCK * bool(kwargs))
    if kind is None:
        alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = next(i for i, label in enumerate(prepared.train[0]["labels"]) if label != -100)
        assert prepared.train[0]["input_ids"][:start] == alone


@pytest.mark.parametrize("length", [1, 80])
def test_a_prompt_whose_last_tokens_are_others_before_the_answer(prepare, length):
    # GPT-2's rule splits two line breaks before a word, and keeps them together at the end of a text.
    rows = [{"prompt": "Where? " * length, "answers": answer} for answer in ("Rome", "")]
    report = prepare(rows, make_tokenizer("trimming", "llama-3")).report
    warnings = {one.kind: one.rows for one in report.findings if one.severity == "warning"}
    assert warnings["prompt tokenized otherwise"] == (("train", 0),)
    assert "prompt tokenized otherwise" not in str(prepare(rows, make_tokenizer("metaspace", "llama-3")).report)


@pytest.mark.parametrize(
    ("kwargs", "settings", "message"),
    [
        ({"enable_thinkin": False}, {}, "chat_template_kwargs: the chat template reads no variable 'enable_thinkin'"),
        ({"add_generation_prompt": False}, {}, "multiple values for keyword argument 'add_generation_prompt'"),
        ({"messages": []}, {}, "multiple values for keyword argument 'messages'"),
        ({"tokenize": True}, {}, "reads no variable 'tokenize'"),
        ({"enable_thinking": False}, {"template": "{query}{output}"}, "chat_template_kwargs: a template of your own"),
    ],
)
def test_kwargs_that_nothing_reads(prepare, kwargs, settings, message):
    with pytest.raises(PromptError, match=message):
        prepare(ROWS, make_tokenizer("digits", THINKS), chat_template_kwargs=kwargs, **settings)


def test_added_tokens_in_a_rows_text_are_found_special_or_not(prepare):
    from tokenizers import AddedToken

    tokenizer = make_tokenizer("digits")
    tokenizer.add_tokens([AddedToken("<doc>", special=False), AddedToken("<|im_end|>", special=False)])
    added = (("<doc>", ""), ("", "<doc>"), ("<|im_end|>", ""), ("", ""))
    rows = [{"prompt": f"Where? {text}", "answers": f"{answer}Rome"} for text, answer in added]
    found = {one.kind: one for one in prepare(rows, tokenizer).report.findings}
    assert found["added tokens in data"].rows == (("train", 0), ("train", 1))
    assert found["added tokens in data"].severity == "note" and found["added tokens in data"].detail == "'<doc>'"
    assert found["special tokens in data"].rows == (("train", 2),)


DOCUMENTS = [f"[{k}] Town {k} was founded in 110{k} by {'many ' * 12}people." for k in range(1, 6)]
QUESTION = "When was town 3 founded?"
FIRST, LAST = f"Question: {QUESTION}\n\nDocuments:\n{{}}", f"Documents:\n{{}}\n\nQuestion: {QUESTION}"


def cut_row(prepare, form, policy, limit, **row):
    rows = [{"prompt": form.format("\n".join(DOCUMENTS)), "answers": ["1103"], **row}]
    prepared = prepare(rows, max_sequence_len=limit, over_length=policy)
    return prepared, prepared.row(0)[0], {one.kind for one in prepared.report.findings}


@pytest.mark.parametrize("form", [FIRST, LAST])
@pytest.mark.parametrize(("limit", "left"), [(400, [1, 2, 3, 4, 5]), (260, [1, 2, 3]), (150, [3]), (60, [])])
def test_whole_documents_go_and_the_supporting_one_last(prepare, form, limit, left):
    prepared, query, found = cut_row(prepare, form, "cut_documents", limit)
    assert [k for k in range(1, 6) if DOCUMENTS[k - 1] in query] == left
    assert query == form.format("\n".join(DOCUMENTS[k - 1] for k in left))
    assert found == {5: set(), 0: {"cut", "cut: supporting document"}}.get(len(left), {"cut"})
    assert len(prepared.train[0]["input_ids"]) <= limit
    assert prepared.tokenizer.decode(prepared.train[0]["input_ids"]) == prepared.rendered(0).text


@pytest.mark.parametrize("named", [{}, {"question": QUESTION}])
@pytest.mark.parametrize(
    ("form", "policy", "limit", "taken"),
    [
        (FIRST, "cut_start", 150, {"question", "supporting document"}),
        (FIRST, "cut_end", 150, {"supporting document"}),
        (FIRST, "cut_end", 300, set()),
        (LAST, "cut_end", 300, {"question"}),
        (LAST, "cut_start", 300, set()),
        (LAST, "cut_start", 150, {"supporting document"}),
    ],
)
def test_a_cut_that_takes_the_question_or_the_supporting_document_says_so(prepare, form, policy, limit, taken, named):
    _, _, found = cut_row(prepare, form, policy, limit, **named)
    assert found == {"cut", *(f"cut: {what}" for what in taken)}


def test_a_prompt_without_documents_is_dropped_rather_than_cut(prepare):
    rows = [*ROWS, {"prompt": "word " * 200, "answers": "7"}]
    report = prepare(rows, max_sequence_len=120, over_length="cut_documents").report
    assert report.train.dropped == {"too long": [10]} and "model.over_length=cut_documents" in str(report)
