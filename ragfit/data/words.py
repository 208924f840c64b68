"""The words of a text, as documents, answers and metrics are compared by, and the documents that it cites."""

import re
import unicodedata
from collections.abc import Mapping

LABELS = {"yes", "no", "maybe", "true", "false"}
CITATION = re.compile(r"\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")


class _Marks(dict):
    """For `str.translate`: what becomes of each character, found once. Letters stay, with marks that tell words apart.

    Vowel points of Hebrew and Arabic (combining classes 10 to 36) may be left out in writing; accents may not.
    """

    def __init__(self, between: str):
        super().__init__({ord("ё"): "е", ord("ـ"): ""})
        self.between = between  # what punctuation becomes

    def __missing__(self, code: int) -> str:
        char = chr(code)
        kind = unicodedata.category(char)
        if kind[0] == "Z" or kind == "Cc" or code == 0x200B:
            self[code] = " "  # a zero-width space stands between words
        elif kind == "Nd":
            self[code] = str(unicodedata.decimal(char))
        elif kind == "Cf" or 0xFE00 <= code <= 0xFE0F or 10 <= unicodedata.combining(char) <= 36:
            self[code] = ""  # joiners, soft hyphens, directions and variants show nothing
        elif kind == "So":
            self[code] = f" {char} "  # ° and emoji are words of their own
        else:
            self[code] = self.between if kind[0] in "PS" else char
        return self[code]


_APART, _JOINED = _Marks(" "), _Marks("")
# Scripts without spaces: Thai and Lao, Burmese, Khmer, in which marks stand on a character; Chinese and Japanese.
_MARKED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_UNSPACED = (
    _MARKED + "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_MINUS = re.compile(r"(?<!\S)[-\u2212](?=\d)")  # the sign of a number, which is no punctuation: -1 is not 1
_ON_IT = "".join(char for char in map(chr, range(0xE00, 0xAA80)) if unicodedata.category(char) in ("Mn", "Mc"))
_WORD = re.compile(rf"[{_UNSPACED}][{_ON_IT}]*|[^\s{_UNSPACED}]+")


def words(text: str, joined: bool = False) -> list[str]:
    """A text's words as they are compared: NFKC, case folded, without citations and the punctuation of any script.

    In scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a word.
    Digits of all scripts are 0 to 9, and vowel points of Hebrew and Arabic, the tatweel and the dots of ё are left out.

    Args:
        joined: whether punctuation vanishes within a word, as in SQuAD's script, or stands between two words.

    >>> words("“Beyoncé’s” U.S. visit, 1914–18 [1]"), words("长安，ＵＳ。")
    (['beyoncé', 's', 'u', 's', 'visit', '1914', '18'], ['长', '安', 'us'])
    >>> words("The U.S.'s well-known", joined=True)
    ['the', 'uss', 'wellknown']
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
    return sum(0.5 if _CHARACTER.match(word) else 1 for word in said)


def is_label(answer: str) -> bool:
    """Whether an answer is a label, such as yes or the letter of a choice: texts hold it without meaning it."""
    said = " ".join(words(answer))
    return said in LABELS or (len(said) == 1 and said.isascii() and said.isalpha())


def question_of(row: Mapping, query: str) -> str:
    """What a row asks: its `query` or `question`, or else its whole prompt."""
    asked = (row.get(key) for key in ("query", "question"))
    return next((text for text in asked if isinstance(text, str) and text.strip()), query)


_RANGE = re.compile(r"(\d+)\s*[–-]\s*(\d+)")


def citations(text: str) -> set[int]:
    """The set of document numbers that a text cites: `[1]`, `[1][2]`, `[1, 2]` or `[1-3]`."""
    groups = (_RANGE.sub(_spelt_out, match[1]) for match in CITATION.finditer(text))
    return {int(number) for group in groups for number in re.findall(r"\d+", group)}


def renumber(answer: str, numbers: Mapping[int, int]) -> str:
    """An answer whose citations name documents by their new numbers; a document that is not there keeps its own.

    >>> renumber("Ada [1][3], Bob [2, 1], Eve [1-3].", {1: 2, 2: 1})
    'Ada [2][3], Bob [1, 2], Eve [2, 1, 3].'
    """

    def new(number: re.Match) -> str:
        return str(numbers.get(int(number[0]), int(number[0])))

    return CITATION.sub(lambda match: re.sub(r"\d+", new, _RANGE.sub(_spelt_out, match[0])), answer)


def _spelt_out(match: re.Match) -> str:
    first, last = int(match[1]), int(match[2])
    return ", ".join(map(str, range(first, last + 1) if first < last else (first, last)))
