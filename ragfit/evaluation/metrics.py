"""How close an answer is to the expected ones: exact match, token F1, answer recall and citations, without torch."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ragfit.data.rows import text_of
from ragfit.data.words import citations, is_label, words

SHORT_ANSWERS = "short_answers"
Z = 1.959964  # standard deviations of a normal distribution that hold 95 % of it, both sides together


@dataclass(frozen=True)
class Gold:
    """What a row expects: acceptable answers, the first of which is trained on, and short ones by their spellings."""

    answers: tuple[str, ...]
    short: tuple[tuple[str, ...], ...]


def gold_of(row: dict[str, Any], output_key: str, where: str = "row", marker: str | None = None) -> Gold:
    """What a row expects; DataError where its output is no text.

    Acceptable answers are all texts under `output_key`; with a marker such as `<ANSWER>:`, what follows it. Short
    answers are those under `short_answers`, each a text or a list of its spellings; without that key, the acceptable
    answers are the spellings of one.
    """
    first, listed = text_of(row, output_key, where, "output_key"), row.get(SHORT_ANSWERS)
    answers = tuple(dict.fromkeys(after_marker(text, marker) for text in (first, *_texts(row[output_key]))))
    short = [tuple(_texts(one)) for one in listed] if isinstance(listed, list) else []
    return Gold(answers, tuple(filter(None, short)) or (answers,))


def scores(answer: str, gold: Gold, marker: str | None = None) -> dict[str, float | None]:
    """The `METRICS` of one answer, each between 0 and 1, or None where the row gives nothing to measure.

    Exact match and F1 (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) are the best over the acceptable
    answers, on texts as `normalize` leaves them, which says what differs from SQuAD's script. Recall is ASQA's string
    exact match (Stelmakh et al. 2022, https://arxiv.org/abs/2204.06092), but on whole words, and not of labels: a short
    answer counts where the words of one of its spellings follow each other in the answer. Citations such as `[2]` are
    left out of all three, as in ALCE (Gao et al. 2023, https://arxiv.org/abs/2305.14627), and compared on their own.
    """
    answer = after_marker(answer, marker)
    said, expected, cited = normalize(answer), [normalize(text) for text in gold.answers], citations(gold.answers[0])
    short = [[one for one in spellings if words(one)] for spellings in gold.short]  # an empty one is in every answer
    held = [any(holds(answer, one) for one in some) for some in short if not all(map(is_label, some))]
    return {
        "exact_match": float(said in expected),
        "f1": max(token_f1(said, text) for text in expected),
        "recall": sum(held) / len(held) if held else None,
        "citations": float(citations(answer) == cited) if cited else None,
    }


def normalize(text: str, joined: bool = True) -> str:
    """A text as SQuAD's script compares it: its words in lower case, without punctuation and English articles.

    What differs: words are those of `ragfit.data.words.words` (NFKC, punctuation and digits of all scripts, characters
    of scripts without spaces as words, no citations), and a text of nothing but articles (`A`, of several choices)
    keeps them. `joined`: whether punctuation vanishes within a word, as in that script, or stands between two.

    >>> normalize("The “U.S.” [1]"), normalize("长安。")
    ('us', '长 安')
    """
    said = words(text, joined)
    return " ".join([word for word in said if word not in ("a", "an", "the")] or said)


def holds(answer: str, short: str) -> bool:
    """Whether the words of a short answer follow each other in an answer, however punctuation is read."""
    return any(f" {normalize(short, joined)} " in f" {normalize(answer, joined)} " for joined in (True, False))


def token_f1(said: str, expected: str) -> float:
    """F1 of two normalized texts; where one is empty, whether both are."""
    tokens, wanted = said.split(), expected.split()
    if not tokens or not wanted:
        return float(tokens == wanted)
    return 2 * sum((Counter(tokens) & Counter(wanted)).values()) / (len(tokens) + len(wanted))


def share_interval(hits: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927, https://doi.org/10.2307/2276774), which holds for small numbers.

    >>> [round(bound, 2) for bound in share_interval(8, 8)]
    [0.68, 1.0]
    """
    if not n:
        return 0.0, 1.0
    share, spread = hits / n, Z**2 / n
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = ((share + spread / 2 + side) / (1 + spread) for side in (-half, half))
    return max(0.0, low), min(1.0, high)


def after_marker(text: str, marker: str | None) -> str:
    """What follows the last occurrence of the marker; the whole text where there is none."""
    return text.rpartition(marker)[2].strip() if marker else text


def _texts(value: Any) -> list[str]:
    """All texts in a text or a list (of lists), in order."""
    if isinstance(value, str):
        return [value]
    return [text for one in value for text in _texts(one)] if isinstance(value, list | tuple) else []
