"""The words of a text, as documents, answers and metrics are compared by, and the documents that it cites."""

import re
import unicodedata
from collections.abc import Mapping

LABELS = {"yes", "no", "maybe", "true", "false"}
CITATION = re.compile(r"\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")
_RANGE = re.compile(r"(\d+)\s*[–-]\s*(\d+)")


class _Marks(dict):
    """For `str.translate`: what becomes of each character, found once. `between` is what punctuation becomes."""

    def __init__(self, between: str):
        super().__init__({ord("ё"): "е", ord("ـ"): ""})
        self.between = between

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))
        space = kind[0] == "Z" or kind == "Cc" or code == 0x200B  # a zero-width space stands between words
        unseen = 0xFE00 <= code <= 0xFE0F or 10 <= unicodedata.combining(char) <= 36  # variants, Semitic vowel points
        own = {"Nd": str(unicodedata.decimal(char, "")), "Cf": "", "So": f" {char} "}  # ° and emoji are words
        self[code] = " " if space else "" if unseen else own.get(kind, self.between if kind[0] in "PS" else char)
        return self[code]


_APART, _JOINED = _Marks(" "), _Marks("")
_UNSPACED = (  # scripts without spaces: Thai and Lao, Burmese, Khmer, in which marks stand on a character; CJK
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MINUS = re.compile(r"(?<!\S)[-\u2212](?=\d)")  # the sign of a number, which is no punctuation: -1 is not 1
_ON_IT = "".join(char for char in map(chr, range(0xE00, 0xAA80)) if unicodedata.category(char) in ("Mn", "Mc"))
_WORD = re.compile(rf"[{_UNSPACED}][{_ON_IT}]*|[^\s{_UNSPACED}]+")


def words(text: str, joined: bool = False) -> list[str]:
    """A text's words as they are compared: NFKC, case folded, without citations and the punctuation of any script.

    Where scripts have no spaces, each character is a word. With `joined`, punctuation in words vanishes, as in SQuAD.

    >>> words("“Beyoncé’s” U.S. visit, 1914–18 [1]"), words("长安，ＵＳ。"), words("The U.S.'s", joined=True)
    (['beyoncé', 's', 'u', 's', 'visit', '1914', '18'], ['长', '安', 'us'], ['the', 'uss'])
    """
    marks, text = (_JOINED if joined else _APART), _MINUS.sub("minus", text)
    # Once before NFKC, which makes a space and an accent of ´, and once after it, which makes … three periods.
    text = unicodedata.normalize("NFKC", CITATION.sub(" ", text).translate(marks)).casefold().translate(marks)
    return text.split() if text.isascii() else _WORD.findall(text)


def words_of(text: str) -> str:
    """A text's words with a space before, between and after them: one text's run of words is a part of another's."""
    return f" {' '.join(words(text))} "


def word_count(said: list[str]) -> float:
    """How many words there are, where two characters of a script without spaces count as one."""
    return sum(0.5 if re.match(f"[{_UNSPACED}]", word) else 1 for word in said)


def is_label(answer: str) -> bool:
    """Whether an answer is a label, such as yes or the letter of a choice: texts hold it without meaning it."""
    said = " ".join(words(answer))
    return said in LABELS or (len(said) == 1 and said.isascii() and said.isalpha())


def question_of(row: Mapping, query: str) -> str:
    """What a row asks: its `query` or `question`, or else its whole prompt."""
    asked = [text for text in (row.get("query"), row.get("question")) if isinstance(text, str) and text.strip()]
    return asked[0] if asked else query


def citations(text: str) -> set[int]:
    """The set of document numbers that a text cites: `[1]`, `[1][2]`, `[1, 2]` or `[1-3]`."""
    return {int(n) for one in CITATION.finditer(text) for n in re.findall(r"\d+", _RANGE.sub(_spelt_out, one[1]))}


def renumber(answer: str, numbers: Mapping[int, int]) -> str:
    """An answer whose citations name documents by their new numbers; a document that is not there keeps its own."""

    def new(group: re.Match) -> str:
        return re.sub(r"\d+", lambda one: str(numbers.get(int(one[0]), int(one[0]))), _RANGE.sub(_spelt_out, group[0]))

    return CITATION.sub(new, answer)


def _spelt_out(match: re.Match) -> str:
    first, last = int(match[1]), int(match[2])
    return ", ".join(map(str, range(first, last + 1) if first < last else (first, last)))
