"""Documents in a prompt: found, left out, exchanged and renumbered; which of them support the answer."""

import doctest
import json
import time

import pytest
from conftest import make_config, make_tokenizer

import ragfit
import ragfit.data.documents
import ragfit.data.listed
from ragfit.data.documents import citations, documents_of, find_documents, fixed_place, renumber, supporting
from ragfit.views import RagView

NUMBERED = "Question: Who?\n\nDocuments:\n[1] Ada wrote it.\n\n[2] Bob\n[7] read it.\n\n[3] Eve."
LISTED = "Context:\n(1) Ada wrote it.\n(2) Bob read it.\n\nQuestion: Who?"
ROW = {"documents": [{"title": "Ada", "text": "wrote it."}, "Bob read it.", "Not in the prompt."]}


def test_examples():
    assert doctest.testmod(ragfit.data.documents).failed == doctest.testmod(ragfit.data.listed).failed == 0


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


ASKED = "\n\nQuestion: Who?\nAnswer:"


@pytest.mark.parametrize(
    ("query", "texts", "numbers"),
    [
        ("Document [1](Title: A) Ada.\nDocument [2](Title: B) Bob.", ["(Title: A) Ada.", "(Title: B) Bob."], [1, 2]),
        ("Passage 1: Ada.\nPassage 2: Bob.\n[1] is cited.", ["Ada.", "Bob.\n[1] is cited."], [1, 2]),
        ("## Document 1\nAda.\n\n## Document 2\nBob.", ["\nAda.", "\nBob."], [1, 2]),
        ("Document 1 (Title: A): Ada.\nDocument 2 (Title: B): Bob.", ["(Title: A): Ada.", "(Title: B): Bob."], [1, 2]),
        ("[Doc 1]: Ada.\n[Doc 2]: Bob.", ["Ada.", "Bob."], [1, 2]),
        ('<doc id="1">\nAda.\n</doc>\n<doc id="2">\nBob.\n</doc>', ["Ada.\n</doc>", "Bob.\n</doc>"], [1, 2]),
        ("[0] Ada.\r\n[1] Bob.", ["Ada.", "Bob."], [0, 1]),
        ("[1] \n[2] Ada.\n[3] Ada.", ["", "Ada.", "Ada."], [1, 2, 3]),
    ],
)
def test_numbered_documents(query, texts, numbers):
    found = find_documents(query + ASKED, {})
    assert [one.text for one in found.documents] == texts and [one.number for one in found.documents] == numbers
    assert found.prompt() == query + ASKED and found.prompt([]) == ASKED


@pytest.mark.parametrize(
    ("after", "row"),
    [
        ("\n\nQ: Who?\nA:", {}),
        ("\nQuestion: Who?", {}),
        ("\n\n**Question:** Who?", {}),
        ("\n\nWho sang?", {"query": "Who sang?"}),
        ("\nNow: Who sang?", {"question": "Who sang?"}),
    ],
)
def test_a_question_after_the_documents_is_none_of_them(after, row):
    found = find_documents(f"[1] Ada.\n[2] Bob.{after}", row)
    assert found.after == after and [one.text for one in found.documents] == ["Ada.", "Bob."]


@pytest.mark.parametrize(
    "query",
    [
        "[1] Ada.\n[2] as Bob said.\n[2] Bob.",  # which is the second?
        "[1] Ada.\nReferences\n[1] X\n[2] Y\n[2] Bob.",
        "Cite so:\n[1] means the first.\n\n[1] Ada.\n[2] Bob.",
        "[1] Ada. [2] Bob.",
        "Use these.\n\n[1] Ada.\n\n[2] Bob.\n\nSo who sang?",  # is the question a part of the last one?
        "[2] Bob.\n[3] Eve.",  # the first was cut off
        "1. Ada.\n2. Bob.",  # so are instructions numbered
    ],
)
def test_what_cannot_be_told_is_not_guessed(query):
    assert find_documents(query, {}) is None and documents_of(query, {}) == ([], "nowhere")
    if "Bob." in query:  # the row's own list knows
        assert [one.text for one in find_documents(query, {"docs": ["Bob."]}).documents] in (["Bob."], ["[2] Bob."])


def test_many_empty_lines_take_no_time():
    started = time.perf_counter()
    assert find_documents(f"Question: Who?\n\n[1] Ada.{chr(10) * 20_000}End", {}).documents[0].text.startswith("Ada.")
    assert time.perf_counter() - started < 5  # quadratic, it was a minute


CONTEXT = {"title": ["Ada", "Bob"], "sentences": [["She wrote.", " It ran."], ["He read."]]}
SPELT = ["Ada: She wrote. It ran.", "Bob: He read."]


@pytest.mark.parametrize(
    ("query", "row", "texts"),
    [
        ("\n".join(SPELT), {"context": CONTEXT}, SPELT),  # HotpotQA on the hub
        ("\n".join(SPELT), {"context": [["Ada", ["She wrote.", " It ran."]], ["Bob", ["He read."]]]}, SPELT),
        ("Ada\nA.\n\nBob\nB.", {"ctxs": [{"title": "Ada", "text": "A."}, {"title": "Bob", "text": "B."}]},
         ["Ada\nA.", "Bob\nB."]),  # DPR
        ("Title: Ada Text: A.\nTitle: Bob Text: B.", {"ctxs": [{"title": "Ada", "text": "A."}, {"title": "Bob", "text": "B."}]},
         ["Title: Ada Text: A.", "Title: Bob Text: B."]),
        ("One.\nTwo.", {"CONTEXTS": ["One.", "Two."]}, ["One.", "Two."]),  # PubMedQA
        ("One.\nTwo.", {"context": {"contexts": ["One.", "Two."]}}, ["One.", "Two."]),
        ("One.", {"context": "One."}, ["One."]),  # SQuAD
        ("One.\n\nOne.\n\nTwo.", {"docs": ["One.", "One.", "Two.\n"]}, ["One.", "One.", "Two."]),
        ("<D>One.</D>\n<D>Two.</D>\nEnd", {"docs": ["One.", "Two."]}, ["<D>One.</D>", "<D>Two.</D>"]),
    ],
)  # fmt: skip
def test_lists_of_other_forms(query, row, texts):
    found = find_documents(query + ASKED, row)
    documents = found.documents
    bare = [one.header + one.text for one in documents]
    assert bare == texts and found.prompt() == query + ASKED
    for dropped, kept in zip(documents, texts[::-1], strict=True) if len(texts) == 2 else ():
        assert found.prompt([one for one in documents if one is not dropped]).startswith(kept)


def test_a_title_stays_with_its_document():
    query = "Doc (1) Apollo 11: it flew.\nDoc (2) Apollo 11: it landed."
    found = find_documents(query, {"docs": ["it flew.", "it landed."]})
    assert [one.number for one in found.documents] == [1, 2]
    moved = found.numbered([one.text for one in found.documents[::-1]])
    assert found.prompt(moved) == "Doc (1) Apollo 11: it landed.\nDoc (2) Apollo 11: it flew."


@pytest.mark.parametrize(
    ("query", "documents"),
    [
        ("Who is Ada?\n- Ada\n- Bob", ["Ada", "Bob"]),  # the question's or the document's?
        (f"- Ada wrote it.\n- {'A text that the row does not list. ' * 9}\n- Bob.", ["Ada wrote it.", "Bob."]),
    ],
)
def test_a_list_that_is_not_the_prompts(query, documents):
    assert find_documents(query, {"docs": documents}) is None


def test_a_listed_document_is_found_where_the_prompt_is_cut():
    documents = ["Ada wrote the first program.", "Bob read it in the city of Paris."]
    query = "- " + "\n- ".join(documents)
    assert [one.text for one in find_documents(query[:-5], {"docs": documents}).documents] == [
        documents[0], documents[1][:-5],
    ]  # fmt: skip
    assert [one.text for one in find_documents(query[6:], {"docs": documents}).documents] == [
        documents[0][4:], documents[1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("named", "expected"),
    [([True, False, True], {1, 3}), ([True, False], set()), (["Bob\n[7] read it."], {2}), (["read"], set()), ([0], set())],
)  # fmt: skip
def test_supporting_documents_named_otherwise(named, expected):
    assert supporting(find_documents(NUMBERED, {}), {"positive_indices": named}, "Ada") == expected


@pytest.mark.parametrize(("text", "numbers"), [("a [1-3]", {1, 2, 3}), ("a [2–3, 7]", {2, 3, 7}), ("a [3-1]", {1, 3})])
def test_ranges_are_citations(text, numbers):
    assert citations(text) == numbers


@pytest.mark.parametrize("row", [{}, {"documents": ["Somewhere else."]}, {"documents": "Ada"}, {"documents": []}])
def test_no_documents(row):
    assert find_documents("Who wrote it? [2] is not the first.", row) is None


@pytest.mark.parametrize(
    ("query", "row", "chosen", "prompt"),
    [
        (NUMBERED, {}, (0, 2), "Question: Who?\n\nDocuments:\n[1] Ada wrote it.\n\n[3] Eve."),
        (NUMBERED, {}, (), "Question: Who?\n\nDocuments:\n"),
        (LISTED, ROW, (1,), "Context:\n(2) Bob read it.\n\nQuestion: Who?"),
        (LISTED, ROW, (), "Context:\n\n\nQuestion: Who?"),
    ],
)
def test_a_document_left_out_leaves_the_numbers_of_the_others(query, row, chosen, prompt):
    found = find_documents(query, row)
    assert found.prompt([found.documents[n] for n in chosen]) == prompt


def test_other_documents_are_numbered_anew():
    found = find_documents(LISTED, ROW)
    fresh = found.numbered(["Zoe sang.", "Ada wrote it.", "Bob read it."])
    assert found.prompt(fresh) == ("Context:\n(1) Zoe sang.\n(2) Ada wrote it.\n(3) Bob read it.\n\nQuestion: Who?")
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
