"""The documents in a row's prompt: where they stand, which of them support the answer, and prompts with others."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragfit.data.listed import document_text, listed_documents, listed_in
from ragfit.data.numbered import Span, numbered_documents

ANSWER_KEYS = ("short_answers", "answers")
SUPPORT_KEYS = ("positive_indices", "supporting_indices", "gold_indices")
LABELS = {"yes", "no", "maybe", "true", "false"}
WORDS = 10  # a longer answer is a sentence, which no document holds word for word
CITATION = re.compile(r"\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]")


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
    """A prompt taken apart: the text before its documents, the documents, and the text after them.

    Attributes:
        gaps: what stands between two documents, one less than there are documents.
        origin: "the prompt" where they are numbered in it, else the row's key that lists them.
    """

    before: str
    documents: tuple[Document, ...]
    gaps: tuple[str, ...]
    after: str
    origin: str

    def prompt(self, documents: Sequence[Document] | None = None) -> str:
        """The prompt with these documents in their place, each under its own header; by default as it was.

        >>> passages = find_documents("Who?\\n\\n[1] Ada.\\n[2] Bob.\\n\\nAnswer:", {})
        >>> passages.prompt(passages.documents[1:])
        'Who?\\n\\n[2] Bob.\\n\\nAnswer:'
        """
        if documents is None or tuple(documents) == self.documents:
            parts = [f"{one.header}{one.text}{gap}" for one, gap in zip(self.documents, (*self.gaps, ""), strict=True)]
        else:
            gap = self.gaps[0] if self.gaps else "\n\n"
            parts = [gap.join(f"{one.header}{one.text}" for one in documents)]
        return "".join([self.before, *parts, self.after])

    def numbered(self, texts: Sequence[str]) -> tuple[Document, ...]:
        """Texts as documents of this prompt, numbered from 1 in their order, under headers such as it has."""
        like = self.documents[0]
        header = re.sub(rf"(?<!\d){like.number}(?!\d)", "\0", like.header, count=1)
        return tuple(Document(n, header.replace("\0", str(n)), text) for n, text in enumerate(texts, 1))


def find_documents(query: str, row: Mapping) -> Passages | None:
    """The documents of a prompt: those numbered in it (`[1] …`, `Document 1: …`), or else those of the row's own list.

    Args:
        query: the prompt's text, cut where it was cut for training.
        row: the row; its list (`ragfit.data.listed`) counts where its texts stand in the prompt word for word.

    Returns:
        Passages; None where there are no documents to be found.
    """
    if spans := numbered_documents(query, row):
        return _passages(query, spans, "the prompt")
    for key, documents in listed_documents(row):
        if spans := listed_in(query, documents):
            return _passages(query, spans, key)
    return None


def documents_of(query: str, row: Mapping) -> tuple[list[str], str]:
    """(documents, where they were found): those of `find_documents`, or else the row's own list as it is.

    >>> documents_of("Question: who?\\n\\nDocuments:\\n[1] Ada.\\n[2] Bob\\nand Eve.", {})
    (['Ada.', 'Bob\\nand Eve.'], 'the prompt')
    """
    if passages := find_documents(query, row):
        return [one.text.strip() for one in passages.documents], passages.origin
    key, documents = next(listed_documents(row), ("nowhere", []))
    return [document_text(one) for one in documents], key


def _passages(query: str, spans: Sequence[Span], origin: str) -> Passages:
    documents = tuple(Document(number, query[left:right], query[right:end]) for number, left, right, end in spans)
    gaps = tuple(query[end:left] for (*_, end), (_, left, *_) in zip(spans, spans[1:], strict=False))
    return Passages(query[: spans[0][1]], documents, gaps, query[spans[-1][3] :], origin)


def renumber(answer: str, numbers: Mapping[int, int]) -> str:
    """An answer whose citations name documents by their new numbers; a document that is not there keeps its own.

    >>> renumber("Ada [1][3], Bob [2, 1], Eve [1-3].", {1: 2, 2: 1})
    'Ada [2][3], Bob [1, 2], Eve [2, 1, 3].'
    """

    def one(match: re.Match) -> str:
        def new(number: re.Match) -> str:
            return str(numbers.get(int(number[0]), int(number[0])))

        return re.sub(r"\d+", new, _RANGE.sub(_spelt_out, match[0]))

    return CITATION.sub(one, answer)


_RANGE = re.compile(r"(\d+)\s*[–-]\s*(\d+)")


def _spelt_out(match: re.Match) -> str:
    first, last = int(match[1]), int(match[2])
    return ", ".join(map(str, range(first, last + 1) if first < last else (first, last)))


def citations(text: str) -> set[int]:
    """The set of document numbers that a text cites: `[1]`, `[1][2]`, `[1, 2]` or `[1-3]`."""
    groups = (_RANGE.sub(_spelt_out, match[1]) for match in CITATION.finditer(text))
    return {int(number) for group in groups for number in re.findall(r"\d+", group)}


def supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> frozenset[int]:
    """The numbers of the documents that support the answer.

    They are those that the row names (`SUPPORT_KEYS`: by the numbers that cite them, by their texts, or by true and
    false for each document) or, where it names none, those that hold an answer of `answers_of` word for word.
    Labels such as yes are looked for in no document.
    """
    for key in SUPPORT_KEYS:
        if isinstance(named := row.get(key), list):
            return _named(passages, named)
    answers, _ = answers_of(row, output, output_key)
    spellings = [text for group in answers for text in group if text.strip() not in LABELS]
    return frozenset(one.number for one in passages.documents if any(text in words_of(one.text) for text in spellings))


def _named(passages: Passages, named: Sequence[object]) -> frozenset[int]:
    """The numbers of the documents that a row names, in any of the ways of `supporting`."""
    there = [one.number for one in passages.documents]
    if any(isinstance(one, bool) for one in named):
        pairs = zip(there, named, strict=True) if len(there) == len(named) else ()
        return frozenset(number for number, one in pairs if one is True)
    texts = tuple(words_of(one) for one in named if isinstance(one, str) and words_of(one).strip())
    ending = {one.number for one in passages.documents if texts and words_of(one.text).endswith(texts)}
    return frozenset(ending | {one for one in named if isinstance(one, int)}) & frozenset(there)


def first_supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> int | None:
    """The place, from 1, of the first document of `supporting`; None where there is none."""
    supports = supporting(passages, row, output, output_key)
    return next((place for place, one in enumerate(passages.documents, 1) if one.number in supports), None)


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
    named = [(f"at place {place}" if place > 1 else "first") for place, _ in places]
    named += ["last" for place, count in places if place == count]
    if len(places) < FEWEST_ROWS:
        return ""
    name, rows = Counter(named).most_common(1)[0]
    return f"{name} in {rows:,} of {len(places):,} rows" if rows >= NEARLY_ALL * len(places) else ""


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
    spellings = _short([output])
    return ([spellings], f"the output, {output_key}") if spellings else ([], "")


def _short(texts: Sequence[object]) -> list[str]:
    spellings = [words_of(text) for text in texts if isinstance(text, str)]
    return [text for text in spellings if text.strip() and text.count(" ") - 1 <= WORDS]


_DROP = dict.fromkeys(map(ord, string.punctuation + "“”‘’´«»…–—"), " ")


def words_of(text: str) -> str:
    """A text's words in lower case, a space before, between and after them, without punctuation and citations."""
    text = unicodedata.normalize("NFKC", CITATION.sub(" ", text)).casefold()
    return f" {' '.join(text.translate(_DROP).split())} "
