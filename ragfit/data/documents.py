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
NOTHING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "undefined"}


@dataclass(frozen=True)
class Document:
    """A document as it stands in a prompt: with its title, behind the header that holds its number, such as `[2] `."""

    number: int
    header: str
    text: str


@dataclass(frozen=True)
class Passages:
    """A prompt in which it is known where each document begins and ends, in the prompt's own order."""

    query: str
    spans: tuple[Span, ...]
    origin: str  # "the prompt" where the documents are marked in it, else the row's key that lists them

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
        """The prompt with these documents in their place, each under its own header."""
        if tuple(documents) == self.documents:
            return self.query  # whose gaps may differ
        gap = self.query[self.spans[0][3] : self.spans[1][1]] if len(self.spans) > 1 else "\n\n"
        return self.before + gap.join(f"{one.header}{one.text}" for one in documents) + self.after

    def numbered(self, texts: Sequence[str]) -> tuple[Document, ...]:
        """Texts as documents of this prompt, numbered from 1 in their order, under headers such as it has."""
        number, header = self.documents[0].number, self.documents[0].header
        place = next((one.span() for one in re.finditer(r"\d+", header) if int(one[0]) == number), None)
        headers = [
            f"{header[: place[0]]}{n}{header[place[1] :]}" if place else header for n in range(1, len(texts) + 1)
        ]
        return tuple(Document(n, *pair) for n, pair in enumerate(zip(headers, texts, strict=True), 1))


def find_documents(query: str, row: Mapping) -> Passages | None:
    """The documents marked in a prompt, or else those of the row's list; None where it can't be told where they are."""
    if spans := numbered_documents(query, row):
        return Passages(query, tuple(spans), "the prompt")
    found = ((listed_in(query, documents), key) for key, documents in listed_documents(row))
    return next((Passages(query, tuple(spans), key) for spans, key in found if spans), None)


def missing_documents(query: str, row: Mapping) -> str:
    """What is wrong where a row lists documents and its prompt holds nothing of any of them; else ""."""
    listed = {key: [text for _, text in map(title_and_text, many) if text] for key, many in listed_documents(row)}
    texts = sum(listed.values(), [])
    if not texts or any(text in query for text in texts):
        return ""
    said = words_of(query).replace(words_of(question_of(row, " ")), " ")  # which may repeat a title
    # A prompt may write or cut a document otherwise, which is known by its first words then.
    known = any(f" {' '.join(words(text[:400])[:12])} " in said for text in texts)
    return "" if known else f"the prompt holds nothing of {' and '.join(key for key in listed if listed[key])}"


def unread_documents(row: Mapping) -> str:
    """What is wrong where a row lists documents in which no text is found; else ""."""
    listed = ((key, many) for key, many in listed_documents(row) if not any(title_and_text(one)[1] for one in many))
    return next((f"no text is found in {key} ({many[0]!r:.40})" for key, many in listed), "")


def supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> frozenset[int]:
    """The numbers of the documents that support the answer.

    The row names them (`SUPPORT_KEYS`, by number or text), or else the expected answer cites them, or else they hold an
    answer of `answers_of` word for word. Labels such as yes are looked for in no document.
    """
    said = {one.number: words_of(one.text) for one in passages.documents}
    for named in map(row.get, SUPPORT_KEYS):
        if isinstance(named, list) or (isinstance(named, str) and named.strip()):
            named = named if isinstance(named, list) else [named]
            texts = [words_of(one) for one in named if isinstance(one, str) and words(one)]
            # A title and a closing tag may stand around a text.
            whole = [n for n in said if any(text in said[n] and 2 * len(text) >= len(said[n]) for text in texts)]
            return frozenset(whole) | {one for one in named if type(one) is int and one in said}
    if cited := citations(output) & said.keys():
        return frozenset(cited)
    spellings = [text for group in answers_of(row, output, output_key)[0] for text in group if not is_label(text)]
    return frozenset(n for n in said if any(text in said[n] for text in spellings))


def first_supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> int | None:
    """The place, from 1, of the first document of `supporting`; None where there is none."""
    supports = supporting(passages, row, output, output_key)
    return next((place for place, one in enumerate(passages.documents, 1) if one.number in supports), None)


def answers_of(row: Mapping, output: str, output_key: str = "") -> tuple[list[list[str]], str]:
    """(answers, key): each answer is a list of its spellings as `words_of`; `([], "")` where none is short."""
    for key in ANSWER_KEYS:
        value = [row[key]] if isinstance(row.get(key), str) else row.get(key)
        if isinstance(value, list):
            # Under short_answers each element is an answer; under answers, plain texts are spellings of one.
            groups = value if key == "short_answers" or any(isinstance(item, list) for item in value) else [value]
            answers = [_short(group if isinstance(group, list) else [group]) for group in groups]
            if any(answers):
                return [spellings for spellings in answers if spellings], key
    spellings = _short([output.rpartition("<ANSWER>:")[2]])  # which RAFT writes before an answer's last part
    return ([spellings], f"the output, {output_key}") if spellings else ([], "")


def _short(texts: Sequence[object]) -> list[str]:
    spelt = [words(text) for text in texts if isinstance(text, str)]
    return [f" {' '.join(one)} " for one in spelt if 0 < word_count(one) <= 10]  # a longer one is a sentence


def answer_as_data(row: Mapping, output: str) -> str:
    """An answer that reads as Python, JSON or pandas write a list or a missing value, as a literal; or ""."""
    texts: list[object] = [output, *(row.get(key) for key in ANSWER_KEYS)]
    for one in texts:  # which grows by the lists in it
        if isinstance(one, list):
            texts += one
        elif isinstance(one, str) and (one.strip() in NOTHING or _is_literal(one.strip())):
            return f"{one.strip()[:60]!r}"
    return ""


def _is_literal(text: str) -> bool:
    """Whether a text is bytes, or a list in Python or JSON with texts or nothing in it; numbers may be a citation."""
    if text[:1] not in ("[", "(", "{", "b") or text[-1:] not in ("]", ")", "}", "'", '"'):
        return False
    with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = ast.literal_eval(re.sub(r"\b(?:nan|null)\b", "None", text))
        holds = isinstance(value, list | tuple | set) and any(isinstance(one, str | bytes | None) for one in value)
        return isinstance(value, bytes) or value in ([], ()) or holds
    return False


def fixed_place(places: Sequence[tuple[int, int]]) -> str:
    """Where the supporting document stands in 90 % of at least 20 rows: "first in 19 of 20 rows"; "" where it moves.

    `places` has its place, from 1, and the number of documents, for each row; rows of fewer than 3 do not count.
    """
    places = [(place, count) for place, count in places if count >= 3]
    named = [(f"at place {place}" if place > 1 else "first") for place, _ in places]
    named += ["last" for place, count in places if place == count]
    name, rows = Counter(named).most_common(1)[0] if len(places) >= 20 else ("", 0)
    return f"{name} in {rows:,} of {len(places):,} rows" if name and rows >= 0.9 * len(places) else ""
