"""Metrics against their published definitions."""

import pytest

import ragfit
from ragfit.evaluation.metrics import Gold, citations, gold_of, holds, normalize, scores, share_interval


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As SQuAD's script has it, and what differs.
        ("The Norman conquest, of  England!", "norman conquest of england"), ("a b-c's\tan 'apple'", "bcs apple"),
        ("Beyoncé’s a’s", "beyoncés as"), ("“Ｒｏｍｅ”…", "rome"), ("1914–18", "191418"), ("A", "a"),  # a choice
        ("Danube [1][3].", "danube"), ("长安。", "长 安"),
    ],
)  # fmt: skip
def test_normalization(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("answer", "expected", "exact_match", "f1"),
    [
        ("1976", ["1976"], 1, 1),  # the example of the squad metric's documentation
        ("Denver Broncos", ["Denver Broncos", "The Denver Broncos!"], 1, 1), ("Grendel", ["Grendel [1]"], 1, 1),
        ("in the 10th and 11th centuries", ["10th and 11th centuries", "late 900s"], 0, 2 * 0.8 * 1 / 1.8),
        ("„Köln“ — 1914–1918。", ["Ko\u0308ln 1914-1918"], 1, 1), ("首都は東京", ["東京"], 0, 2 * 2 / 7),
        ("", ["no"], 0, 0), ("", [""], 1, 1), ("B", ["A"], 0, 0), ("The", ["A"], 0, 0),
    ],
)  # fmt: skip
def test_exact_match_and_f1(answer, expected, exact_match, f1):
    found = scores(answer, gold_of({"answers": expected}, "answers"))
    assert (found["exact_match"], found["f1"]) == (exact_match, pytest.approx(f1))


@pytest.mark.parametrize(
    ("answer", "short", "held"),
    [
        ("at the party", "art", False), ("Monet’s house", "Monet", True), ("from 1914–18", "1914", True),
        ("in the US", "U.S.", True), ("Beatles sang", "The Beatles", True), ("唐朝的都城是长安。", "长安", True),
        ("เมืองหลวงคือกรุงเทพมหานคร", "กรุงเทพ", True),
    ],
)  # fmt: skip
def test_whole_words_are_held(answer, short, held):
    assert holds(answer, short) is held


def test_recall_of_short_answers():
    short = [["Joe", "Joe Miller"], ["Matthew Gravelle"], "Tom", []]
    gold = gold_of({"answers": ["long one", "long two"], "short_answers": short}, "answers")
    assert gold == Gold(("long one", "long two"), (("Joe", "Joe Miller"), ("Matthew Gravelle",), ("Tom",)))
    answers = ("It was joe, played by Matthew Gravelle.", "Nobody", "Joe [1] Matthew Gravelle and Tom in the end")
    assert [scores(answer, gold)["recall"] for answer in answers] == [pytest.approx(2 / 3), 0, 1]
    # Without short answers, the expected ones are spellings of one.
    assert scores("I think it is the Nile.", gold_of({"a": [["Nile", "The Nile"]]}, "a"))["recall"] == 1


@pytest.mark.parametrize("expected", ["", "yes", "No.", "B", ["maybe"], "..."])
def test_recall_says_nothing_of_labels(expected):
    assert scores("yes, no, maybe, a or b", gold_of({"a": expected}, "a"))["recall"] is None
    assert scores("no", Gold(("x",), (("Paris",), ("no",))))["recall"] == 0  # of Paris alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Danube [1][3]", {1, 3}), ("a [2, 4] b[1;2]", {1, 2, 4}), ("[x] (1) 12 [1234]", set()), ("1889 [ 2]", set()),
        ("a [1-3]", {1, 2, 3}), ("a [2–3, 7]", {2, 3, 7}), ("a [3-1]", {1, 3}),
    ],
)  # fmt: skip
def test_citations(text, expected):
    assert citations(text) == expected


def test_citations_are_compared_on_their_own():
    gold = gold_of({"answers": ["Danube [1][3]", "the river Danube"]}, "answers")
    found = [scores(text, gold) for text in ("Danube [3][1]", "Danube [1]", "danube", "river Danube [1, 3]")]
    assert [one["citations"] for one in found] == [1, 0, 0, 1]
    assert all(one["exact_match"] == one["recall"] == 1 for one in found)
    assert scores("Danube [1]", Gold(("Danube",), (("Danube",),)))["citations"] is None


def test_only_what_follows_the_marker_counts():
    row = {"generated_answer": "Document 1 says Rome. <ANSWER>: Paris", "answers": ["x"]}
    gold = gold_of(row, "generated_answer", marker="<ANSWER>:")
    assert gold == Gold(("Paris",), (("Paris",),))
    assert scores("<ANSWER>: no, <ANSWER>: paris.", gold, "<ANSWER>:")["exact_match"] == 1
    assert scores("Paris <ANSWER>: Rome", gold, "<ANSWER>:")["recall"] == 0
    assert scores("Paris", gold, "<ANSWER>:")["exact_match"] == 1  # without the marker the whole answer counts


def test_expected_answers_are_all_under_the_key():
    assert gold_of({"a": [["x", "y"], ["z", "x"]]}, "a").answers == ("x", "y", "z")
    assert gold_of({"a": None}, "a").answers == gold_of({"a": []}, "a").answers == ("",)
    with pytest.raises(ragfit.errors.DataError, match="line 3: there is no key 'a'"):
        gold_of({"b": 1}, "a", "x.jsonl, line 3")


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17), table I: Wilson's score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
     (8, 8, 0.6756, 1.0)],
)  # fmt: skip
def test_a_share_and_its_interval(hits, n, low, high):
    assert share_interval(hits, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
