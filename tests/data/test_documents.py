"""Documents in a prompt: found, left out, exchanged and renumbered; which support the answer; and the words of texts."""

import doctest
import importlib

import pytest

from ragfit.data.documents import (
    answer_as_data,
    answers_of,
    find_documents,
    fixed_place,
    missing_documents,
    supporting,
    unread_documents,
)
from ragfit.data.words import renumber, words, words_of

NUMBERED = "Question: Who?\n\nDocuments:\n[1] Ada wrote it.\n\n[2] Bob\nread it.\n\n[3] Eve."
LISTED = "Context:\n(1) Ada wrote it.\n(2) Bob read it.\n\nQuestion: Who?"
ROW = {"documents": [{"title": "Ada", "text": "wrote it."}, "Bob read it.", "Not in the prompt."]}
ASKED = "\n\nQuestion: Who?\nAnswer:"


@pytest.mark.parametrize("module", ["data.documents", "data.listed", "data.words", "evaluation.metrics"])
def test_examples(module):
    assert doctest.testmod(importlib.import_module(f"ragfit.{module}")).failed == 0


@pytest.mark.parametrize(
    ("query", "texts", "numbers"),
    [
        (NUMBERED, ["Ada wrote it.", "Bob\nread it.", "Eve."], [1, 2, 3]),
        ("Passage [1]: Ada.\nPassage [2]: Bob.\n", ["Ada.", "Bob."], [1, 2]),
        ("Document [1](Title: A) Ada.\nDocument [2](Title: B) Bob.", ["(Title: A) Ada.", "(Title: B) Bob."], [1, 2]),
        ("Passage 1: Ada.\nPassage 2: Bob.\n[1] is cited.", ["Ada.", "Bob.\n[1] is cited."], [1, 2]),
        ("## Document 1\nAda.\n\n## Document 2\nBob.", ["\nAda.", "\nBob."], [1, 2]),
        ("Document 1 (Title: A): Ada.\nDocument 2 (Title: B): Bob.", ["(Title: A): Ada.", "(Title: B): Bob."], [1, 2]),
        ('<doc id="1">\nAda.\n</doc>\n<doc id="2">\nBob.\n</doc>', ["Ada.\n</doc>", "Bob.\n</doc>"], [1, 2]),
        ("[0] Ada.\r\n[1] Bob.", ["Ada.", "Bob."], [0, 1]),
        ("[1] \n[2] Ada.\n[3] Ada.", ["", "Ada.", "Ada."], [1, 2, 3]),
        # Reranked, with the numbers they had.
        ("[3] Eve.\n[1] Ada.\n[2] Bob.", ["Eve.", "Ada.", "Bob."], [3, 1, 2]),
        # RAFT's.
        ("<DOCUMENT>Ada.\nEve.</DOCUMENT>\n<DOCUMENT>Bob.</DOCUMENT>\nWho?",
         ["Ada.\nEve.</DOCUMENT>", "Bob.</DOCUMENT>"], [1, 2]),
        ("<context>\n[1] Ada.\n[2] Bob.\n</context>", ["Ada.", "Bob."], [1, 2]),
        ("<context>Ada. Bob.</context>", ["Ada. Bob.</context>"], [1]),
        # In other words and scripts.
        ("Document 1: Ada.\nReference 1: hers.\nDocument 2: Bob.", ["Ada.\nReference 1: hers.", "Bob."], [1, 2]),
        ("文档1：Ada。\n文档2：Bob。", ["Ada。", "Bob。"], [1, 2]),
        ("文档[1] Ada\n文档[2] Bob", ["Ada", "Bob"], [1, 2]),
        ("[文档 1]: Ada\n[文档 2]: Bob", ["Ada", "Bob"], [1, 2]),
        ("【1】Ada\n【2】Bob", ["Ada", "Bob"], [1, 2]),
        ("参考资料２：Bob\n参考资料１：Ada", ["Bob", "Ada"], [2, 1]),
        ("資料1（東京）Ada\n資料2（京都）Bob", ["（東京）Ada", "（京都）Bob"], [1, 2]),
        ("문서 1: Ada\n문서 2: Bob", ["Ada", "Bob"], [1, 2]),
        ("Документ 1: Ada\nДокумент 2: Bob", ["Ada", "Bob"], [1, 2]),
        ("المستند ١: Ada\nالمستند ٢: Bob", ["Ada", "Bob"], [1, 2]),
        ("**Fuente 1:** Ada\n**Fuente 2:** Bob", ["Ada", "Bob"], [1, 2]),
    ],
)  # fmt: skip
def test_documents_that_are_marked(query, texts, numbers):
    for prompt in (query, query + ASKED):
        found = find_documents(prompt, {})
        assert [one.text for one in found.documents] == texts and [one.number for one in found.documents] == numbers
        assert found.prompt(found.documents) == prompt and found.origin == "the prompt"
    assert "Ada" not in found.prompt([]) and found.prompt([]).endswith(ASKED)


@pytest.mark.parametrize(
    "query",
    [
        "[1] Ada.\n[2] as Bob said.\n[2] Bob.",  # which is the second?
        "[1] Ada.\nReferences\n[1] X\n[2] Y\n[2] Bob.", "Cite so:\n[1] means the first.\n\n[1] Ada.\n[2] Bob.", "[1] Ada. [2] Bob.",
        "Use these.\n\n[1] Ada.\n\n[2] Bob.\n\nSo who sang?",  # is the question a part of the last one?
        "[2] Bob.\n[3] Eve.",  # the first was cut off
        "[1] Ada.\n[5] Bob.\n[2] Eve.", "[1] Ada.\n[7] is cited.\n[2] Bob.",  # two, or three that keep their numbers?
        "<DOCUMENT>Ada.</DOCUMENT>\n<DOCUMENT>Bob.", "Ada.</DOCUMENT>\n<DOCUMENT>Bob.</DOCUMENT>",  # one was cut
        "1. Ada.\n2. Bob.", "Step 1: Ada.\nStep 2: Bob.", "步骤1：Ada\n步骤2：Bob",  # so are instructions numbered
        "文档1：Ada\n文档3：Bob", "Who wrote it? [2] is not the first.",
    ],
)  # fmt: skip
def test_what_cannot_be_read_whole_is_not_read(query):
    assert find_documents(query, {}) is None
    if query.startswith("[1] Ada.\n[2] as"):  # the row's own list knows
        assert [one.text for one in find_documents(query, {"docs": ["Bob."]}).documents] == ["Bob."]


@pytest.mark.parametrize(
    ("after", "row"),
    [
        ("\n\nQ: Who?\nA:", {}), ("\n\n**Question:** Who?", {}), ("\n\n问题：谁？\n答案：", {}),
        ("\nВопрос: кто?", {}), ("\n질문: 누구?", {}), ("\nالسؤال: من؟", {}),
        ("\n\nWho sang?", {"query": "Who sang?"}),
        ("\nNow: Who sang?", {"question": "Who sang?"}),
    ],
)  # fmt: skip
def test_a_question_after_the_documents_is_none_of_them(after, row):
    found = find_documents(f"[1] Ada.\n[2] Bob.{after}", row)
    assert found.after == after and [one.text for one in found.documents] == ["Ada.", "Bob."]


DPR = {"ctxs": [{"title": "Ada", "text": "A."}, {"title": "Bob", "text": "B."}]}
HOTPOT = {"title": ["Ada", "Bob"], "sentences": [["She wrote.", " It ran."], ["He read."]]}
SPELT = ["Ada: She wrote. It ran.", "Bob: He read."]
TWO = ["One.", "Two."]


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (SPELT, {"context": HOTPOT}),  # as on the hub
        (SPELT, {"context": [["Ada", ["She wrote.", " It ran."]], ["Bob", ["He read."]]]}),
        (["Ada\nA.", "Bob\nB."], DPR),
        (["Title: Ada Text: A.", "Title: Bob Text: B."], DPR),
        (TWO, {"CONTEXTS": TWO}),  # PubMedQA
        (TWO, {"context": {"contexts": TWO}}),
        (TWO, {"context": {"title": [["placeholder_title"] * 2], "sentences": [TWO]}}),  # RAFT
        (TWO, {"documents": [{"page_content": text, "metadata": {}} for text in TWO]}),  # LangChain
        (SPELT, {"paragraphs": [{"title": one[:3], "paragraph_text": one[5:]} for one in SPELT]}),
        (TWO, {"search_results": {"title": ["a", "b"], "search_context": TWO}}),  # TriviaQA
        (TWO, {"documents": [{"document": {"text": text}, "score": 0.5} for text in TWO]}),
        (["One."], {"context": "One."}),  # SQuAD
        (["One."], {"context": {"title": "A", "text": "One."}}),
        (["One.", "One.", "Two."], {"docs": ["One.", "One.", "Two.\n"]}),
    ],
)
def test_documents_that_the_row_lists(texts, row):
    query = "\n".join(texts) + ASKED
    found = find_documents(query, row)
    assert [one.header + one.text for one in found.documents] == texts
    assert found.prompt(found.documents) == query and found.origin in row
    if len(texts) == 2:
        assert found.prompt(found.documents[1:]).startswith(texts[1])


LONG = "How old is the tower bridge that leads over the river Thames in London?"


@pytest.mark.parametrize(
    ("query", "row", "why"),
    [
        ("Who is Ada?", {"ctxs": ["Ada wrote it."]}, "the prompt holds nothing of ctxs"),
        ("[1] Ada\n[2] Bob", DPR, "the prompt holds nothing of ctxs"),  # titles alone
        ("Who?", {"documents": [{"id": 3, "score": 1}]}, "no text is found in documents ({'id': 3, 'score': 1})"),
        ("Who is 3?", {"docs": [3, 4]}, "no text is found in docs (3)"),
        ("Who?", {"docs": []}, ""),
        # A document may begin as the question does.
        (LONG, {"query": LONG, "docs": [f"{LONG} It is so since 1894."]}, "the prompt holds nothing of docs"),
        # Which of them is the question's, and is the long one a document?
        ("Who is Ada?\n- Ada\n- Bob", {"docs": ["Ada", "Bob"]}, ""),
        (f"- Ada wrote it.\n- {'It is not in the list. ' * 9}\n- Bob.", {"docs": ["Ada wrote it.", "Bob."]}, ""),
        ("<D>One.</D>\n<D>Two.</D>", {"docs": TWO}, ""),  # in tags that are not known
    ],
)
def test_what_the_model_does_not_read_is_not_said_to_be_read(query, row, why):
    found = find_documents(query, row)
    assert (missing_documents(query, row) or unread_documents(row)) == why
    assert found is None or found.origin == "the prompt"


def test_a_title_stays_with_its_document():
    query = "Doc (1) Apollo 11: it flew.\nDoc (2) Apollo 11: it landed."
    found = find_documents(query, {"docs": ["it flew.", "it landed."]})
    assert [one.number for one in found.documents] == [1, 2]
    moved = found.numbered([one.text for one in found.documents[::-1]])
    assert found.prompt(moved) == "Doc (1) Apollo 11: it landed.\nDoc (2) Apollo 11: it flew."


def test_a_listed_document_is_found_where_the_prompt_is_cut():
    documents = ["Ada wrote the first program.", "Bob read it in the city of Paris."]
    query = "- " + "\n- ".join(documents)
    for cut, texts in (
        (query[:-5], [documents[0], documents[1][:-5]]),
        (query[6:], [documents[0][4:], documents[1]]),
    ):
        assert [one.text for one in find_documents(cut, {"docs": documents}).documents] == texts


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
    assert found.prompt(fresh) == "Context:\n(1) Zoe sang.\n(2) Ada wrote it.\n(3) Bob read it.\n\nQuestion: Who?"
    found = find_documents("المستند ١: Ada\nالمستند ٢: Bob", {})
    assert found.prompt(found.numbered(["Bob", "Ada"])) == "المستند 1: Bob\nالمستند 2: Ada"
    assert renumber("Ada [1], as Bob says [1, 2][9].", {1: 2, 2: 3}) == "Ada [2], as Bob says [2, 3][9]."


@pytest.mark.parametrize(
    ("row", "output", "expected"),
    [
        ({"positive_indices": [3, 1, 8]}, "Ada [2]", {1, 3}),  # named, and there is no eighth
        ({"positive_indices": ["Bob\nread it."]}, "Ada", {2}),
        ({"positive_indices": ["read"]}, "Ada", set()),
        ({"positive_indices": [0]}, "Ada", set()),
        ({"oracle_context": "Ada wrote it."}, "Bob", {1}),  # RAFT's
        ({}, "It was Ada [2], as [9] says", {2}),  # cited
        ({}, "ada", {1}),
        ({}, "##begin_quote##It is so.##end_quote## <ANSWER>: Eve", {3}),
        ({"short_answers": [["Bob", "Robert"], ["Eve"]]}, "Both.", {2, 3}),
        ({"answers": ["yes"]}, "yes", set()),
        ({}, "Somebody else", set()),
    ],
)
def test_supporting_documents(row, output, expected):
    assert supporting(find_documents(NUMBERED, row), row, output) == expected


@pytest.mark.parametrize(
    ("document", "other", "answer"),
    [
        ("唐朝的都城是长安。", "洛阳是一座城市。", "长安"),
        ("日本の首都は東京です。", "大阪は都市です。", "東京"),
        ("เมืองหลวงคือกรุงเทพมหานคร", "เชียงใหม่อยู่ทางเหนือ", "กรุงเทพ"),
        ("وُلِدَ عامَ ١٩٧٩.", "ولد عام ١٩٨٠.", "عام 1979"),
        ("Пётр I основал город.", "Павел I правил.", "Петр I"),
        ("Die Hauptstadt ist „Wien“.", "Wiener Walzer", "WIEN"),
        ("It is called the ﬁrst — 1914–18.", "In 191418 it was.", "1914-18"),
    ],
)
def test_answers_stand_in_documents_of_any_script(document, other, answer):
    found = find_documents(f"Q: ?\n\n[1] {other}\n[2] {document}", {})
    assert supporting(found, {}, answer) == {2}


@pytest.mark.parametrize(
    ("row", "output", "answers", "key"),
    [
        ({"short_answers": [["Joe", "Joe Miller"], ["Rome"]]}, "x", [[" joe ", " joe miller "], [" rome "]],
         "short_answers"),
        ({"short_answers": ["Joe", "Rome"]}, "x", [[" joe "], [" rome "]], "short_answers"),
        ({"short_answers": [], "answers": ["Joe", "Joey"]}, "x", [[" joe ", " joey "]], "answers"),
        ({"answers": ["Mars [2][3]"]}, "x", [[" mars "]], "answers"),
        ({"answers": ["word " * 30]}, "In 1843.", [[" in 1843 "]], "the output, answer"),
        ({"answers": None}, "word " * 30, [], ""),
    ],
)  # fmt: skip
def test_answers_of(row, output, answers, key):
    assert answers_of(row, output, "answer") == (answers, key)


@pytest.mark.parametrize(
    "text",
    [
        "['Paris', 'paris']", '["Paris"]', '["Paris", null]', "['a' 'b'\n 'c']", "['it\\'s', \"it's\", '\\alpha']",
        "('a', 'b')", "{'a', 'b'}", "b'Paris'", "[b'a']", "[None]", "[nan]", "[]", "()", "nan", " None", "null",
    ],
)  # fmt: skip
def test_answers_that_are_data(text):
    assert answer_as_data({}, text) and answer_as_data({"short_answers": [["ok"], [text]]}, "Paris")


@pytest.mark.parametrize(
    "text",
    [
        "Paris", "[1]", "[1, 2]", "(3, 4)", "[1] says that 'Paris' is it.", "Nan Goldin", "none", "",
        "He said ['x'] there", '{"answer": "Paris"}', '[{"name": "search", "arguments": {"q": "Paris"}}]', "{}",
        '["Yes," he said, "no"]', "('a' is a letter)", "('Paris')", "(It is called 'Paris', 'the city')",
        "array(s) of things (such as 'x')", "[Paris]", "[x for x in 'ab']", "np.array is a function.", "[" * 999,
        "[\0'a']",
    ],
)  # fmt: skip
def test_answers_that_begin_as_data_does(text):
    assert not answer_as_data({"answers": [text, None, 3]}, text)


def test_a_fixed_place():
    assert fixed_place([(1, 4)] * 18 + [(2, 4)] * 2) == "first in 18 of 20 rows"
    assert fixed_place([(n % 5 + 3, n % 5 + 3) for n in range(20)]) == "last in 20 of 20 rows"
    assert fixed_place([(2, 4)] * 20) == "at place 2 in 20 of 20 rows"
    # It moves; too few rows; and of two documents one is always the first.
    assert fixed_place([(1, 4)] * 17 + [(2, 4)] * 3) == fixed_place([(1, 4)] * 19) == fixed_place([(1, 2)] * 20) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S., “1843”!", "the u s 1843"),
        ("party [1][2–3]", "party"),
        ("don’t – don't — don´t", "don t don t don t"),
        ("Ｔｏｋｙｏ　２０２０、ﬁn。", "tokyo 2020 fin"),
        ("STRASSE straße Ισοσ ΙΣΟΣ", "strasse strasse ισοσ ισοσ"),
        ("20 °C, 20℃ −5€", "20 ° c 20 ° c minus5"),
        ("हिन्दी।", "हिन्दी"),  # marks belong to their letters
        ("a\u200bb so\u00adft 👍\ufe0f", "a b soft 👍"),
        ("2008年北京", "2008 年 北 京"),
        ("مُحَمَّد محمـــد هٰذا", "محمد محمد هذا"),  # harakat and tatweel
        ("שָׁלוֹם שלום", "שלום שלום"),
        ("آب ا\u0653ب اب", "آب آب اب"),  # a letter of its own, in one character or two
        ("١٤٣٦ ۱۹۷۹ २०२४ ๒๕๖๗", "1436 1979 2024 2567"),
        ("-٥ ٥", "minus5 5"),
        ("Ёлка е\u0308лка елка мой мои", "елка елка елка мой мои"),
        ("año ano schön Việt", "año ano schön việt"),
        ("กี่ ປີ ឆ្នាំ မြို့", "กี่ ປີ ឆ្ នាំ မြို့"),
    ],
)
def test_words(text, expected):
    assert " ".join(words(text)) == expected and words_of(text) == f" {expected} "
