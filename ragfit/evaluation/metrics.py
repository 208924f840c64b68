"""How close an answer is to the expected ones: exact match, token F1, answer recall and citations, without torch."""

import re
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ragfit.data.documents import CITATION, citations
from ragfit.data.rows import text_of

SHORT_ANSWERS = "short_answers"
_CITATION = re.compile(rf"\s*{CITATION.pattern}")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Gold:
    """What a row expects.

    Attributes:
        answers: acceptable answers, of which the first was (or would be) trained on.
        short: what a full answer has to hold: a list of spellings for each.
    """

    answers: tuple[str, ...]
    short: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scores:
    """One answer's scores, each between 0 and 1; None where the row gives nothing to measure.

    Attributes:
        exact_match: the answer is one of the expected ones.
        f1: the harmonic mean of the precision and recall of its tokens, with the expected answer that it fits best.
        recall: the share of short answers that it holds.
        citations: it cites exactly the documents that the trained output cites; None where that cites none.
    """

    exact_match: float
    f1: float
    recall: float | None
    citations: float | None

    as_dict = asdict


def gold_of(row: dict[str, Any], output_key: str, where: str = "row", marker: str | None = None) -> Gold:
    """What a row expects.

    Acceptable answers are all texts under `output_key`: the text itself, or every text of a list (of lists), whose
    first is the one trained on. Short answers are those under the key `short_answers`, each a text or a list of its
    spellings; without that key, the acceptable answers are taken for the spellings of one.

    Args:
        row: a row of the data file.
        where: names the row in messages.
        marker: with `"<ANSWER>:"`, only what follows its last occurrence in an acceptable answer counts.

    Raises:
        DataError: as `ragfit.data.rows.text_of`.
    """
    first = text_of(row, output_key, where, "output_key")
    answers = tuple(dict.fromkeys(after_marker(text, marker) for text in (first, *_texts(row[output_key]))))
    listed = row.get(SHORT_ANSWERS)
    short = tuple(tuple(_texts(one)) for one in listed) if isinstance(listed, list) else ()
    return Gold(answers, tuple(spellings for spellings in short if spellings) or (answers,))


def question_of(row: Mapping, query: str) -> str:
    """What a row asks: its `query` or `question`, or else its whole prompt."""
    return next((row[key] for key in ("query", "question") if isinstance(row.get(key), str)), query)


def scores(answer: str, gold: Gold, marker: str | None = None) -> Scores:
    """Score one answer.

    Texts are compared as SQuAD's script does (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): in lower case,
    without punctuation, articles and surplus white space; exact match and F1 are the best over the acceptable answers.
    Recall is the string exact match of ASQA (Stelmakh et al. 2022, https://arxiv.org/abs/2204.06092): a short answer
    counts where one of its spellings is a part of the answer. Citations such as `[2]` are left out of all three, as in
    ALCE (Gao et al. 2023, https://arxiv.org/abs/2305.14627), and compared on their own. Articles are English ones, and
    tokens stand between white space: F1 says little for languages written without it.

    Args:
        answer: what a model wrote.
        gold: of `gold_of`.
        marker: only what follows its last occurrence counts; the whole answer where it does not occur.
    """
    answer = after_marker(answer, marker)
    said = normalize(without_citations(answer))
    expected = [normalize(without_citations(text)) for text in gold.answers]
    # An empty spelling would be a part of every answer.
    short = [[text for one in spellings if (text := normalize(without_citations(one)))] for spellings in gold.short]
    found = [any(text in said for text in spellings) for spellings in short if spellings]
    cited = citations(gold.answers[0])
    return Scores(
        exact_match=float(said in expected),
        f1=max(token_f1(said, text) for text in expected),
        recall=sum(found) / len(found) if found else None,
        citations=float(citations(answer) == cited) if cited else None,
    )


def normalize(text: str) -> str:
    """SQuAD's normalization; a text of nothing but articles (`A`, of several choices) keeps them."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split()) or " ".join(text.split())


def token_f1(said: str, expected: str) -> float:
    """F1 of two normalized texts; where one is empty, whether both are."""
    words, wanted = said.split(), expected.split()
    if not words or not wanted:
        return float(words == wanted)
    return 2 * sum((Counter(words) & Counter(wanted)).values()) / (len(words) + len(wanted))


def without_citations(text: str) -> str:
    return _CITATION.sub("", text)


def after_marker(text: str, marker: str | None) -> str:
    """What follows the last occurrence of the marker; the whole text where there is none."""
    return text.rpartition(marker)[2].strip() if marker else text


def _texts(value: Any) -> list[str]:
    """All texts in a text or a list (of lists), in order."""
    if isinstance(value, str):
        return [value]
    return [text for one in value for text in _texts(one)] if isinstance(value, list | tuple) else []


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson's (1927), which holds for small numbers too.

    >>> [round(bound, 2) for bound in share_interval(8, 8)]
    [0.68, 1.0]
    """
    z = 1.959964
    middle = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (hits * (n - hits) / n + z * z / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
