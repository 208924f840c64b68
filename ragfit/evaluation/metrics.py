"""How close an answer is to the expected ones: exact match, token F1, answer recall and citations, without torch."""

import math
from collections import Counter
from typing import Any, NamedTuple

from ragfit.data.rows import text_of
from ragfit.data.words import citations, is_label, words

SHORT_ANSWERS = "short_answers"
Z = 1.959964  # standard deviations of a normal distribution that hold 95 % of it, both sides together


class Gold(NamedTuple):
    """What a row expects: acceptable answers, and short ones that a full answer has to hold, each in its spellings."""

    answers: tuple[str, ...]
    short: tuple[tuple[str, ...], ...]


def gold_of(row: dict[str, Any], output_key: str, where: str = "row", marker: str | None = None) -> Gold:
    """What a row expects; of its answers only what follows the marker, such as `<ANSWER>:`.

    Acceptable answers are all texts under `output_key`, of which the first is trained on. Short answers are those under
    `short_answers`, each a text or a list of its spellings; without that key the acceptable answers are the spellings
    of one.
    """
    first = text_of(row, output_key, where, "output_key")
    answers = tuple(dict.fromkeys(after_marker(text, marker) for text in (first, *_texts(row[output_key]))))
    listed = row.get(SHORT_ANSWERS)
    short = [tuple(_texts(one)) for one in listed] if isinstance(listed, list) else []
    return Gold(answers, tuple(filter(None, short)) or (answers,))


def scores(answer: str, gold: Gold, marker: str | None = None) -> dict[str, float | None]:
    """Score one answer, or what follows the marker in it: each between 0 and 1, None where there is nothing to measure.

    Exact match and F1 (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) are the best over the acceptable
    answers, on texts as `normalize` leaves them. Recall is the string exact match of ASQA (Stelmakh et al. 2022,
    https://arxiv.org/abs/2204.06092), but on whole words, and not of labels. Citations such as `[2]` are left out of
    all three, as in ALCE (Gao et al. 2023, https://arxiv.org/abs/2305.14627): `citations` is whether the answer cites
    exactly the documents that the trained output cites.
    """
    answer = after_marker(answer, marker)
    said, expected = normalize(answer), [normalize(text) for text in gold.answers]
    short = [[one for one in spellings if words(one)] for spellings in gold.short]  # an empty one is in every answer
    held = [any(holds(answer, one) for one in spellings) for spellings in short if not all(map(is_label, spellings))]
    cited = citations(gold.answers[0])
    return {
        "exact_match": float(said in expected),
        "f1": max(token_f1(said, text) for text in expected),
        "recall": sum(held) / len(held) if held else None,
        "citations": float(citations(answer) == cited) if cited else None,
    }


def normalize(text: str, joined: bool = True) -> str:
    """A text as SQuAD's script compares it: in lower case, without punctuation, English articles and white space.

    What differs is how `ragfit.data.words.words` reads other scripts and Unicode, that citations are left out, and that
    a text of nothing but articles (`A`, of several choices) keeps them. `joined`: whether punctuation vanishes within a
    word, as in that script, or stands between two words.

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
    """Wilson's 95 % interval of a share (1927, https://doi.org/10.2307/2276774), which holds for small numbers."""
    share, spread = hits / n, Z**2 / n
    middle, half = share + spread / 2, Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def after_marker(text: str, marker: str | None) -> str:
    """What follows the last occurrence of the marker; the whole text where there is none."""
    return text.rpartition(marker)[2].strip() if marker else text


def _texts(value: Any) -> list[str]:
    """All texts in a text or a list (of lists), in order."""
    if isinstance(value, str):
        return [value]
    return [text for one in value for text in _texts(one)] if isinstance(value, list | tuple) else []
