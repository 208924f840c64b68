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
pytestmark = pytest.mark.slow  # importing trl takes seconds


def batch(rows, **kwargs):
    return {key: value.tolist() for key, value in DataCollatorForCompletionOnlyLM(**kwargs)(rows).items()}


ROWS = [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7, 2], "labels": [-100, 2]}]
PACK = {"input_ids": [5, 6, 2, 7, 2], "labels": [-100, 6, 2, -100, 2], "seq_lengths": [3, 2]}


def test_the_docstrings_example():
    assert doctest.testmod(ragfit.collator) == (0, 2)


def test_the_types_and_keys_are_the_models():
    tensors = DataCollatorForCompletionOnlyLM(pad_token_id=0)([{**ROWS[0], "length": 3, "text": "x"}])
    assert set(tensors) == {"input_ids", "attention_mask", "labels"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}


ids = st.integers(0, 9)
learned = st.lists(st.tuples(ids, st.booleans()), min_size=1, max_size=7)  # an id, and whether it has loss
rows = st.lists(learned, min_size=1, max_size=4).map(
    lambda rows: [
        {"input_ids": [i for i, _ in row], "labels": [i if has_loss else -100 for i, has_loss in row]} for row in rows
    ]
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(rows, ids, st.sampled_from([None, 1, 4, 8]))
def test_without_padding_the_batch_is_the_rows(rows, pad, multiple):
    # Whatever the pad token is, also one that occurs in the rows: nothing loses its loss or its attention.
    found = batch(rows, pad_token_id=pad, pad_to_multiple_of=multiple)
    width = len(found["input_ids"][0])
    assert width % (multiple or 1) == 0 and width < max(len(row["input_ids"]) for row in rows) + (multiple or 1)
    for i, row in enumerate(rows):
        left = width - len(row["input_ids"])
        assert found["input_ids"][i] == row["input_ids"] + [pad] * left
        assert found["labels"][i] == row["labels"] + [-100] * left
        assert found["attention_mask"][i] == [1] * (width - left) + [0] * left


def test_packs_are_laid_end_to_end():
    found = DataCollatorForCompletionOnlyLM(pad_token_id=0)([PACK, PACK])
    assert "attention_mask" not in found
    assert found["input_ids"].tolist() == [PACK["input_ids"] * 2]
    assert found["labels"].tolist() == [PACK["labels"] * 2]
    assert found["position_ids"].tolist() == [[0, 1, 2, 0, 1] * 2]


@pytest.mark.parametrize(
    ("kwargs", "pad"),
    [({}, "<pad>"), ({"pad_token": None}, "</s>"), ({"pad_token": "</s>"}, "</s>"), ({"pad_token": "<s>"}, "<s>")],
)
def test_the_tokenizers_pad_token_fills_or_else_eos(kwargs, pad):
    tokenizer = make_tokenizer(**kwargs)
    assert batch(ROWS, tokenizer=tokenizer)["input_ids"][1][2] == tokenizer.convert_tokens_to_ids(pad)


@pytest.mark.parametrize("rows", [[{"input_ids": [1, 2], "labels": [1]}], [{**PACK, "labels": [-100, 6]}]])
def test_a_label_for_each_id(rows):
    with pytest.raises(ValueError, match=r"A row has \d input_ids and \d labels"):
        batch(rows)


# --- Rows that others tokenized: the marker decides -------------------------------------------------------------------

# Decoding gives the text back that was encoded; the others add spaces or lose them, and are refused.
EXACT = [kind for kind in KINDS_OF_TOKENIZER if kind not in ("legacy", "prefix space", "unigram", "wordpiece")]


def ids_of(tokenizer, template, query, output):
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": output}]
    if template not in NO_SYSTEM:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_the_labels_start_where_prepare_would_start_them(kind, template):
    tokenizer, marker = make_tokenizer(kind, template), MARKERS[template]
    renderer = Renderer(tokenizer, "" if template in NO_SYSTEM else "Be brief.", completion_start=marker)
    collator = DataCollatorForCompletionOnlyLM(marker, tokenizer)
    for query, output in (("Where? 12", "753 Paris"), (f"{marker} Where?", "753 Paris\n\nx")):
        ids = ids_of(tokenizer, template, query, output)
        try:
            labels = collator.label(ids)
        except PromptError:
            assert kind not in EXACT
            continue
        masked = Encoder(tokenizer).encode([renderer.render(query, output)])[0]
        assert labels == [-100] * masked.start + ids[masked.start :]


def test_rows_without_labels_are_refused_where_none_can_be_made():
    tokenizer, marker = make_tokenizer("digits", "chatml"), MARKERS["chatml"]
    collator = DataCollatorForCompletionOnlyLM(marker, tokenizer)
    for text in ("no chat", marker):
        with pytest.raises(PromptError, match=r"^completion_start: '<\|im_start\|>assistant\\n' does not occur .* Set"):
            collator([{"input_ids": tokenizer(text)["input_ids"]}])
    with pytest.raises(PromptError, match="^labels: a row has none, and the collator has no tokenizer .* Give both"):
        batch([{"input_ids": [1, 2]}])
    # The marker may be given as ids.
    marker = tokenizer(marker, add_special_tokens=False)["input_ids"]
    row = {"input_ids": ids_of(tokenizer, "chatml", "Where?", "753")}
    labels = DataCollatorForCompletionOnlyLM(marker, tokenizer)([row])["labels"][0].tolist()
    assert tokenizer.decode([label for label in labels if label != -100]) == "753<|im_end|>\n"
