"""The batch is the prepared rows plus padding, whatever the ids say."""

import doctest

import pytest
from conftest import CHAT_TEMPLATES, KINDS_OF_TOKENIZER, MARKERS, NO_SYSTEM, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import ragfit.collator
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.data.mask import Encoder
from ragfit.data.prompt import Renderer
from ragfit.errors import PromptError

torch = pytest.importorskip("torch")


def batch(rows, **kwargs):
    return {key: value.tolist() for key, value in DataCollatorForCompletionOnlyLM(**kwargs)(rows).items()}


ROWS = [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7, 2], "labels": [-100, 2]}]


@pytest.mark.parametrize(
    ("kwargs", "ids", "mask", "labels"),
    [
        ({"pad_token_id": 0}, [[5, 6, 2], [7, 2, 0]], [[1, 1, 1], [1, 1, 0]], [[-100, 6, 2], [-100, 2, -100]]),
        # Pad is EOS, or an id that occurs in the text: neither loses its loss or its attention.
        ({"pad_token_id": 2}, [[5, 6, 2], [7, 2, 2]], [[1, 1, 1], [1, 1, 0]], [[-100, 6, 2], [-100, 2, -100]]),
        ({"pad_token_id": 6}, [[5, 6, 2], [7, 2, 6]], [[1, 1, 1], [1, 1, 0]], [[-100, 6, 2], [-100, 2, -100]]),
        (
            {"pad_token_id": 7, "ignore_index": -9},
            [[5, 6, 2], [7, 2, 7]],
            [[1, 1, 1], [1, 1, 0]],
            [[-9, 6, 2], [-9, 2, -9]],
        ),
        (
            {"pad_token_id": 0, "padding_side": "left"},
            [[5, 6, 2], [0, 7, 2]],
            [[1, 1, 1], [0, 1, 1]],
            [[-100, 6, 2], [-100, -100, 2]],
        ),
        (
            {"pad_token_id": 0, "pad_to_multiple_of": 4},
            [[5, 6, 2, 0], [7, 2, 0, 0]],
            [[1, 1, 1, 0], [1, 1, 0, 0]],
            [[-100, 6, 2, -100], [-100, 2, -100, -100]],
        ),
        (
            {"pad_token_id": 0, "pad_to_multiple_of": 3},
            [[5, 6, 2], [7, 2, 0]],
            [[1, 1, 1], [1, 1, 0]],
            [[-100, 6, 2], [-100, 2, -100]],
        ),
        ({}, [[5, 6, 2], [7, 2, 0]], [[1, 1, 1], [1, 1, 0]], [[-100, 6, 2], [-100, 2, -100]]),
    ],
)
def test_padding(kwargs, ids, mask, labels):
    assert batch(ROWS, **kwargs) == {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_the_docstrings_example():
    assert doctest.testmod(ragfit.collator) == (0, 2)


def test_the_types_and_keys_are_the_models():
    tensors = DataCollatorForCompletionOnlyLM(pad_token_id=0)([{**ROWS[0], "length": 3, "text": "x"}])
    assert list(tensors) == ["input_ids", "attention_mask", "labels"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}


ids = st.integers(0, 9)
rows = st.lists(
    st.lists(ids, min_size=1, max_size=7).flatmap(
        lambda row: st.integers(0, len(row) - 1).map(
            lambda start: {"input_ids": row, "labels": [-100] * start + row[start:]}
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(rows, ids, st.sampled_from([-100, -9]), st.sampled_from(["left", "right"]), st.sampled_from([None, 1, 4, 8]))
def test_without_padding_the_batch_is_the_rows(rows, pad, ignore, side, multiple):
    found = batch(rows, pad_token_id=pad, ignore_index=ignore, padding_side=side, pad_to_multiple_of=multiple)
    width = len(found["input_ids"][0])
    assert width % (multiple or 1) == 0 and width < max(len(row["input_ids"]) for row in rows) + (multiple or 1)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        real = slice(0, length) if side == "right" else slice(width - length, width)
        assert found["input_ids"][i][real] == row["input_ids"]
        assert found["labels"][i][real] == [ignore if label == -100 else label for label in row["labels"]]
        assert found["attention_mask"][i][real] == [1] * length
        for key, fill in (("input_ids", pad), ("labels", ignore), ("attention_mask", 0)):
            rest = list(found[key][i])
            del rest[real]
            assert rest == [fill] * (width - length)


@pytest.mark.parametrize(
    ("kwargs", "pad"),
    [({}, "<pad>"), ({"pad_token": None}, "</s>"), ({"pad_token": "</s>"}, "</s>"), ({"pad_token": "<s>"}, "<s>")],
)
def test_the_tokenizers_pad_token_fills_or_else_eos(kwargs, pad):
    tokenizer = make_tokenizer(**kwargs)
    assert batch(ROWS, tokenizer=tokenizer)["input_ids"][1][2] == tokenizer.convert_tokens_to_ids(pad)


def test_a_tokenizer_without_pad_and_eos_still_pads():
    assert batch(ROWS, tokenizer=make_tokenizer(pad_token=None, eos_token=None))["labels"] == [
        [-100, 6, 2],
        [-100, 2, -100],
    ]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="padding_side is 'up'. Use 'right' or 'left'."):
        DataCollatorForCompletionOnlyLM(padding_side="up")
    with pytest.raises(ValueError, match="completion_start is given as ids. Give the tokenizer too"):
        DataCollatorForCompletionOnlyLM([5, 6])
    with pytest.raises(ValueError, match="Row 0 of the batch has 2 input_ids and 1 labels"):
        batch([{"input_ids": [1, 2], "labels": [1]}])
    with pytest.raises(
        PromptError, match="^labels: a row has none, and the collator has no tokenizer .* Give both, or rows"
    ):
        batch([{"input_ids": [1, 2]}])


# Rows that others tokenized: the marker decides.


# Decoding gives the text back that was encoded; the others add spaces or lose them.
EXACT = [kind for kind in KINDS_OF_TOKENIZER if kind not in ("legacy", "prefix space", "unigram", "wordpiece")]


def text_and_ids(tokenizer, template, query, output):
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": output}]
    if template not in NO_SYSTEM:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_the_labels_start_where_prepare_would_start_them(kind, template):
    tokenizer = make_tokenizer(kind, template)
    marker = MARKERS[template]
    instruction = "" if template in NO_SYSTEM else "Be brief."
    renderer = Renderer(tokenizer, instruction, completion_start=marker)
    collator = DataCollatorForCompletionOnlyLM(marker, tokenizer)
    for query, output in (("Where? 12", "753 Paris"), (f"{marker} Where?", "753 Paris\n\nx"), ("Where?", "753")):
        row = renderer.render(query, output)
        masked = Encoder(tokenizer).encode([row])[0]
        ids = text_and_ids(tokenizer, template, query, output)[1]
        labels = collator.label(ids)
        start = next(i for i, label in enumerate(labels) if label != -100)
        assert start == masked.start
        assert labels[start:] == ids[start:]


@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_TOKENIZER if kind not in EXACT])
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_without_exact_decoding_the_marker_is_found_by_its_ids_or_the_row_is_refused(kind, template):
    tokenizer = make_tokenizer(kind, template)
    collator = DataCollatorForCompletionOnlyLM(MARKERS[template], tokenizer)
    _, ids = text_and_ids(tokenizer, template, f"Where? {MARKERS[template]} 12", "753 paris")
    try:
        labels = collator.label(ids)
    except PromptError as error:
        assert "does not occur" in str(error)
    else:
        answer = tokenizer.decode([label for label in labels if label != -100])
        assert "paris" in answer and "where" not in answer.lower()


def test_a_marker_quoted_in_the_answer_is_told_from_the_templates_by_what_stands_before_it():
    # The template writes "<|im_end|>\n" before its marker. An answer that quoted that too could not be told apart.
    tokenizer = make_tokenizer("digits", "chatml")
    answer = "753, <|im_start|>assistant\n said"
    _, ids = text_and_ids(tokenizer, "chatml", "Where?", answer)
    labels = DataCollatorForCompletionOnlyLM(MARKERS["chatml"], tokenizer).label(ids)
    assert tokenizer.decode([label for label in labels if label != -100]) == f"{answer}<|im_end|>\n"


def test_an_answer_begins_after_the_last_header_with_something_behind_it():
    # Llama-3's template ends with a new assistant header, whose marker is the text's last.
    tokenizer = make_tokenizer("digits", "llama-3")
    text, ids = text_and_ids(tokenizer, "llama-3", "Where?", "753")
    assert text.endswith(MARKERS["llama-3"])
    labels = DataCollatorForCompletionOnlyLM(MARKERS["llama-3"], tokenizer).label(ids)
    assert tokenizer.decode([label for label in labels if label != -100]).startswith("753<|eot_id|>")


def test_the_next_turns_header_is_not_the_answers_where_ids_are_of_pieces():
    tokenizer, marker = make_tokenizer("digits", "llama-3"), MARKERS["llama-3"].rstrip()  # a line break is left out
    text, whole = text_and_ids(tokenizer, "llama-3", "Where?", "Paris")
    ids = [i for piece in text.partition("Par") for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    labels = DataCollatorForCompletionOnlyLM(marker, tokenizer).label(ids)
    assert ids != whole and "Paris<|eot_id|>" in tokenizer.decode([label for label in labels if label != -100])


def test_a_row_without_the_marker_or_without_an_answer_is_an_error():
    tokenizer = make_tokenizer("digits", "chatml")
    collator = DataCollatorForCompletionOnlyLM(MARKERS["chatml"], tokenizer)
    with pytest.raises(PromptError, match=r"^completion_start: '<\|im_start\|>assistant\\n' does not occur .* Set"):
        collator([{"input_ids": tokenizer("no chat")["input_ids"]}])
    with pytest.raises(PromptError, match="^completion_start: nothing follows .* Leave such rows out"):
        collator([{"input_ids": tokenizer("<|im_start|>assistant\n")["input_ids"]}])


def test_the_marker_may_be_given_as_ids():
    tokenizer = make_tokenizer("digits", "chatml")
    marker = tokenizer(MARKERS["chatml"], add_special_tokens=False)["input_ids"]
    _, ids = text_and_ids(tokenizer, "chatml", "Where?", "753")
    labels = DataCollatorForCompletionOnlyLM(marker, tokenizer, ignore_index=-9).label(ids)
    assert tokenizer.decode([label for label in labels if label != -9]) == "753<|im_end|>\n"
