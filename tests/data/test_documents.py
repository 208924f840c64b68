"""Documents in a prompt: found, left out, exchanged and renumbered; which of them support the answer."""

import doctest
import json

import pytest
from conftest import make_config, make_tokenizer

import ragfit
import ragfit.data.documents
from ragfit.data.documents import find_documents, fixed_place, renumber, supporting
from ragfit.views import RagView

NUMBERED = "Question: Who?\n\nDocuments:\n[1] Ada wrote it.\n\n[2] Bob\n[7] read it.\n\n[3] Eve."
LISTED = "Context:\nDocument 1: Ada wrote it.\nDocument 2: Bob read it.\n\nQuestion: Who?"
ROW = {"documents": [{"title": "Ada", "text": "wrote it."}, "Bob read it.", "Not in the prompt."]}


def test_examples():
    assert doctest.testmod(ragfit.data.documents).failed == 0


@pytest.mark.parametrize(
    ("query", "row", "texts", "numbers", "origin"),
    [
        (NUMBERED, {}, ["Ada wrote it.", "Bob\n[7] read it.", "Eve."], [1, 2, 3], "the prompt"),
        (f"{NUMBERED}\n\nAnswer: ", {}, ["Ada wrote it.", "Bob\n[7] read it.", "Eve."], [1, 2, 3], "the prompt"),
        ("Passage [1]: Ada.\nPassage [2]: Bob.\n", {}, ["Ada.", "Bob."], [1, 2], "the prompt"),
        (LISTED, ROW, ["Ada wrote it.", "Bob read it."], [1, 2], "documents"),
        ("Ada wrote it. Who?", {"contexts": ["Ada wrote it."]}, ["Ada wrote it."], [1], "contexts"),
    ],
)
def test_documents_are_found_and_the_prompt_is_theirs(query, row, texts, numbers, origin):
    found = find_documents(query, row)
    assert [one.text for one in found.documents] == texts and [one.number for one in found.documents] == numbers
    assert found.prompt() == query and found.origin == origin


@pytest.mark.parametrize("row", [{}, {"documents": ["Somewhere else."]}, {"documents": "Ada"}, {"documents": []}])
def test_no_documents(row):
    assert find_documents("Who wrote it? [2] is not the first.", row) is None


@pytest.mark.parametrize(
    ("query", "row", "chosen", "prompt"),
    [
        (NUMBERED, {}, (0, 2), "Question: Who?\n\nDocuments:\n[1] Ada wrote it.\n\n[3] Eve."),
        (NUMBERED, {}, (), "Question: Who?\n\nDocuments:\n"),
        (LISTED, ROW, (1,), "Context:\nDocument 2: Bob read it.\n\nQuestion: Who?"),
        (LISTED, ROW, (), "Context:\n\n\nQuestion: Who?"),
    ],
)
def test_a_document_left_out_leaves_the_numbers_of_the_others(query, row, chosen, prompt):
    found = find_documents(query, row)
    assert found.prompt([found.documents[n] for n in chosen]) == prompt


def test_other_documents_are_numbered_anew():
    found = find_documents(LISTED, ROW)
    fresh = found.numbered(["Zoe sang.", "Ada wrote it.", "Bob read it."])
    assert found.prompt(fresh) == (
        "Context:\nDocument 1: Zoe sang.\nDocument 2: Ada wrote it.\nDocument 3: Bob read it.\n\nQuestion: Who?"
    )
    assert renumber("Ada [1], as Bob says [1, 2][9].", {1: 2, 2: 3}) == "Ada [2], as Bob says [2, 3][9]."


@pytest.mark.parametrize(
    ("row", "output", "expected"),
    [
        ({"positive_indices": [3, 1, 8]}, "Ada", {1, 3}),  # named, and there is no eighth
        ({}, "ada [2]", {1}),
        ({"short_answers": [["Bob", "Robert"], ["Eve"]]}, "Both.", {2, 3}),
        ({"answers": ["yes"]}, "yes", set()),
        ({}, "Somebody else", set()),
    ],
)
def test_supporting_documents(row, output, expected):
    assert supporting(find_documents(NUMBERED, row), row, output) == expected


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(1, 4)] * 18 + [(2, 4)] * 2, "first in 18 of 20 rows"),
        ([(n % 5 + 3, n % 5 + 3) for n in range(20)], "last in 20 of 20 rows"),
        ([(2, 4)] * 20, "at place 2 in 20 of 20 rows"),
        ([(1, 4)] * 17 + [(2, 4)] * 3, ""),
        ([(1, 4)] * 19, ""),
        ([(1, 2)] * 20, ""),  # of two, one is always the first
    ],
)
def test_a_fixed_place(places, expected):
    assert fixed_place(places) == expected


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_place_is_a_finding_and_is_shown(tmp_path, shuffled):
    rows = []
    for n in range(24):
        documents = [f"Number {n} is the answer.", *(f"Text {n} {k}." for k in range(3))]
        place = n % 4 if shuffled else 0
        documents[0], documents[place] = documents[place], documents[0]
        prompt = f"Which {n}?\n" + "\n".join(f"[{k}] {text}" for k, text in enumerate(documents, 1))
        rows.append({"prompt": prompt, "answers": [f"number {n}"]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = ragfit.prepare(make_config(path), make_tokenizer())
    found = [one.detail for one in prepared.report.findings if one.kind == "supporting document in one place"]
    assert found == ([] if shuffled else ["first in 24 of 24 rows"])
    first = "6 of 24 (25%)" if shuffled else "24 of 24 (100%)"
    text = " ".join(str(RagView(prepared)).split())
    assert f"supporting document comes first {first}" in text
    assert ("1: 25%, 2: 25%, 3: 25%, 4: 25%" if shuffled else "1: 100%") in text
