"""The documents in a row's prompt: where they stand, which of them support the answer, and prompts with others."""

import ast
import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ragfit.data.listed import listed_documents, listed_in, title_and_text
from ragfit.data.numbered import Span, numbered_documents
from ragfit.data.words import LABELS as LABELS
from ragfit.data.words import citations, is_label, question_of, word_count, words, words_of
from ragfit.data.words import renumber as renumber

ANSWER_KEYS = ("short_answers", "answers")
SUPPORT_KEYS = ("positive_indices", "supporting_indices", "gold_indices", "oracle_context")  # the last one is RAFT's
FINAL = "<ANSWER>:"  # what RAFT writes before an answer's last part
WORDS = 10  # a longer answer is a sentence, which no document holds word for word


@dataclass(frozen=True)
class Document:
    """A document as it stands in a prompt.

    Attributes:
        number: the number that a citation names it by.
        header: what stands before it with its number, such as `[2] `.
        text: the document itself, with its title.
    """

    number: int
    header: str
    text: str


@dataclass(frozen=True)
class Passages:
    """A prompt in which it is known where each document begins and ends.

    Attributes:
        query: the prompt.
        spans: for each document its number, where its header starts, where its text starts and where it ends, in the
            prompt's order, which need not be that of the numbers.
        origin: "the prompt" where the documents are marked in it, else the row's key that lists them.
    """

    query: str
    spans: tuple[Span, ...]
    origin: str

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        return tuple(Document(n, self.query[left:at], self.query[at:end]) for n, left, at, end in self.spans)

    @property
    def before(self) -> str:
        return self.query[: self.spans[0][1]]

    @property
    def after(self) -> str:
        return self.query[self.spans[-1][3] :]

    def prompt(self, documents: Sequence[Document]) -> str:
        """The prompt with these documents in their place, each under its own header.

        >>> passages = find_documents("Who?\\n\\n[1] Ada.\\n[2] Bob.\\n\\nAnswer:", {})
        >>> passages.prompt(passages.documents[1:])
        'Who?\\n\\n[2] Bob.\\n\\nAnswer:'
        """
        if tuple(documents) == self.documents:
            return self.query  # whose gaps may differ
        gap = self.query[self.spans[0][3] : self.spans[1][1]] if len(self.spans) > 1 else "\n\n"
        return self.before + gap.join(f"{one.header}{one.text}" for one in documents) + self.after

    def numbered(self, texts: Sequence[str]) -> tuple[Document, ...]:
        """Texts as documents of this prompt, numbered from 1 in their order, under headers such as it has."""
        like = self.documents[0]
        number = next((one for one in re.finditer(r"\d+", like.header) if int(one[0]) == like.number), None)
        if number is None:
            return tuple(Document(n, like.header, text) for n, text in enumerate(texts, 1))
        before, behind = like.header[: number.start()], like.header[number.end() :]
        return tuple(Document(n, f"{before}{n}{behind}", text) for n, text in enumerate(texts, 1))


def find_documents(query: str, row: Mapping) -> Passages | None:
    """The documents of a prompt: those marked in it (`[1] …`, `Document 1: …`), or else those of the row's own list.

    Args:
        query: the prompt's text, cut where it was cut for training.
        row: the row; its list (`ragfit.data.listed`) counts where its texts stand in the prompt word for word.

    Returns:
        Passages; None where there are none, or where it can't be told where each of them begins and ends.
    """
    if spans := numbered_documents(query, row):
        return Passages(query, tuple(spans), "the prompt")
    for key, documents in listed_documents(row):
        if spans := listed_in(query, documents):
            return Passages(query, tuple(spans), key)
    return None


BEGINNING = 12  # words by which a document is known in a prompt that writes or cuts it otherwise


def missing_documents(query: str, row: Mapping) -> str:
    """What is wrong where a row lists documents and its prompt holds nothing of any of them; else ""."""
    keys = []
    for key, documents in listed_documents(row):
        texts = [text for _, text in map(title_and_text, documents) if text]
        if any(text in query for text in texts):
            return ""
        said = words_of(query).replace(words_of(question_of(row, " ")), " ")  # which may repeat a title
        if any(f" {' '.join(words(text[:400])[:BEGINNING])} " in said for text in texts):
            return ""
        keys += [key] if texts else []
    return f"the prompt holds nothing of {' and '.join(keys)}" if keys else ""


def unread_documents(row: Mapping) -> str:
    """What is wrong where a row lists documents in which no text is found; else ""."""
    for key, documents in listed_documents(row):
        if not any(text for _, text in map(title_and_text, documents)):
            first = documents[0]
            named = f"a document has {', '.join(map(str, first))}" if isinstance(first, Mapping) else f"{first!r:.40}"
            return f"no text is found in {key} ({named})"
    return ""


# What supports the answer.


def supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> frozenset[int]:
    """The numbers of the documents that support the answer.

    They are those that the row names (`SUPPORT_KEYS`: by the numbers that cite them, or by their texts), or else those
    that the expected answer cites, or else those that hold an answer of `answers_of` word for word. Labels such as yes
    are looked for in no document.
    """
    for key in SUPPORT_KEYS:
        named = row.get(key)
        if isinstance(named, list) or (isinstance(named, str) and named.strip()):
            return _named(passages, named if isinstance(named, list) else [named])
    if cited := citations(output) & {one.number for one in passages.documents}:
        return frozenset(cited)
    answers, _ = answers_of(row, output, output_key)
    spellings = [text for group in answers for text in group if not is_label(text)]
    return frozenset(one.number for one in passages.documents if any(text in words_of(one.text) for text in spellings))


def _named(passages: Passages, named: Sequence[object]) -> frozenset[int]:
    """The numbers of the documents that a row names, by number or by text."""
    texts = [words_of(one) for one in named if isinstance(one, str)]
    found = {one for one in named if type(one) is int} & {one.number for one in passages.documents}
    for one in passages.documents:
        said = words_of(one.text)  # a title and a closing tag may stand around the text
        if any(text.strip() and text in said and 2 * len(text) >= len(said) for text in texts):
            found.add(one.number)
    return frozenset(found)


def first_supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> int | None:
    """The place, from 1, of the first document of `supporting`; None where there is none."""
    supports = supporting(passages, row, output, output_key)
    return next((place for place, one in enumerate(passages.documents, 1) if one.number in supports), None)


def answers_of(row: Mapping, output: str, output_key: str = "") -> tuple[list[list[str]], str]:
    """(answers, key): each answer is a list of its spellings as `words_of`; `([], "")` where none is short."""
    for key in ANSWER_KEYS:
        value = row.get(key)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not value:
            continue
        # Under short_answers each element is an answer; under answers, plain texts are spellings of one.
        groups = value if key == "short_answers" or any(isinstance(item, list) for item in value) else [value]
        answers = [_short(group if isinstance(group, list) else [group]) for group in groups]
        if answers := [spellings for spellings in answers if spellings]:
            return answers, key
    spellings = _short([output.rpartition(FINAL)[2]])
    return ([spellings], f"the output, {output_key}") if spellings else ([], "")


def _short(texts: Sequence[object]) -> list[str]:
    spelt = [words(text) for text in texts if isinstance(text, str)]
    return [f" {' '.join(one)} " for one in spelt if 0 < word_count(one) <= WORDS]


NOTHING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "undefined"}
_BEGINS = re.compile(r"[\[({]|b['\"]|array\(|(?:np|numpy)\.\w+\(")
_HOLDS = re.compile(r"['\"]|\b(?:None|nan|null|array\(|(?:np|numpy)\.)")
_AROUND = re.compile(r"\\.|\b(?:array|(?:np|numpy)\.\w+)(?=\()|,\s*dtype=[^,)\]]+", re.DOTALL)  # around NumPy's values


def answer_as_data(row: Mapping, output: str) -> str:
    """An answer that reads as Python, JSON or pandas write a list or a missing value, as a literal; "" where none does.

    >>> answer_as_data({"short_answers": [["Paris"], ["nan"]]}, "Paris")
    "'nan'"
    """
    texts: list[object] = [output, *(row.get(key) for key in ANSWER_KEYS)]
    for one in texts:  # which grows by the lists in it
        if isinstance(one, list):
            texts += one
        elif isinstance(one, str) and (one.strip() in NOTHING or _is_literal(one.strip())):
            return f"{one.strip()[:60]!r}"
    return ""


def _is_literal(text: str) -> bool:
    """Whether a text is a literal of Python or NumPy or a list in JSON, with texts or nothing in it, or bytes.

    Numbers alone may be a citation or a point, and objects in JSON may be what the model is to write.
    """
    if not _BEGINS.match(text) or re.search(r"\{\s*[\"}]", text):
        return False
    with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = ast.literal_eval(re.sub(r"\b(?:nan|null)\b", "None", _AROUND.sub("", text)))
        holds = isinstance(value, list | tuple | set | dict | bytes) or text.startswith("n")
        return holds and (not value or bool(_HOLDS.search(text)))
    return False


FEWEST_ROWS, NEARLY_ALL = 20, 0.9  # from which on a place is called fixed
FEWEST_DOCUMENTS = 3


def fixed_place(places: Sequence[tuple[int, int]]) -> str:
    """Where the supporting document stands in nearly all rows; "" where it moves, or where there are too few rows.

    Args:
        places: for each row the place of its first supporting document, from 1, and how many documents it has.

    >>> fixed_place([(1, 5)] * 19 + [(3, 5)])
    'first in 19 of 20 rows'
    """
    places = [(place, count) for place, count in places if count >= FEWEST_DOCUMENTS]
    if len(places) < FEWEST_ROWS:
        return ""
    named = [(f"at place {place}" if place > 1 else "first") for place, _ in places]
    named += ["last" for place, count in places if place == count]
    name, rows = Counter(named).most_common(1)[0]
    return f"{name} in {rows:,} of {len(places):,} rows" if rows >= NEARLY_ALL * len(places) else ""
