"""The documents in a row's prompt: where they stand, which of them support the answer, and prompts with others."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DOCUMENT_KEYS = ("positive_passages", "documents", "passages", "contexts", "docs")
ANSWER_KEYS = ("short_answers", "answers")
SUPPORT_KEYS = ("positive_indices", "supporting_indices", "gold_indices")  # numbers as they are cited, from 1
LABELS = {"yes", "no", "maybe", "true", "false"}
WORDS = 10  # a longer answer is a sentence, which no document holds word for word
CITATION = re.compile(r"\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")

_NUMBERED = re.compile(r"^[ \t]*(?:Document |Passage )?\[(\d+)\]:?[ \t]?", re.MULTILINE)
_AFTER_THE_LAST = re.compile(r"\n\s*\n(?=(?:Question|Answer|Query|Instruction)\b)")
_HEADER = 60  # characters; what stands before a document on its line is its header, if it is no longer


@dataclass(frozen=True)
class Document:
    """A document as it stands in a prompt.

    Attributes:
        number: the number that a citation names it by.
        header: what stands before it on its line, such as `[2] `.
        text: the document itself.
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
    """The documents of a prompt: those numbered `[1]`, `[2]` … in it, or else those of the row's own list.

    Args:
        query: the prompt's text, cut where it was cut for training.
        row: the row; its list of documents (`DOCUMENT_KEYS`) counts where its texts stand in the prompt.

    Returns:
        Passages; None where there are no documents to be found.
    """
    headers, wanted = [], 1
    for match in _NUMBERED.finditer(query):
        if int(match[1]) == wanted:  # a [7] at the start of a document's own line is no new document
            headers.append(match.span())
            wanted += 1
    if headers:
        ends = [*(start for start, _ in headers[1:]), len(query)]
        # A question or an instruction may follow the last document after an empty line.
        tail = _AFTER_THE_LAST.search(query, headers[-1][1])
        ends[-1] = tail.start() if tail else ends[-1]
        spans = [
            (left, right, right + len(query[right:end].rstrip()))
            for (left, right), end in zip(headers, ends, strict=True)
        ]
        return _passages(query, spans, list(range(1, wanted)), "the prompt")
    for key in DOCUMENT_KEYS:
        spans = _listed(query, row.get(key))
        if spans:
            numbers = [_number(query[left:right], place) for place, (left, right, _) in enumerate(spans, 1)]
            return _passages(query, spans, numbers, key)
    return None


def documents_of(query: str, row: Mapping) -> tuple[list[str], str]:
    """(documents, where they were found): those of `find_documents`, or else the row's own list as it is.

    >>> documents_of("Question: who?\\n\\nDocuments:\\n[1] Ada.\\n[2] Bob\\nand Eve.", {})
    (['Ada.', 'Bob\\nand Eve.'], 'the prompt')
    """
    if passages := find_documents(query, row):
        return [one.text.strip() for one in passages.documents], passages.origin
    key = next((key for key in DOCUMENT_KEYS if isinstance(row.get(key), list) and row[key]), None)
    return ([document_text(one) for one in row[key]], key) if key else ([], "nowhere")


def _passages(query: str, spans: list[tuple[int, int, int]], numbers: list[int], origin: str) -> Passages:
    documents = tuple(
        Document(number, query[left:right], query[right:end])
        for number, (left, right, end) in zip(numbers, spans, strict=True)
    )
    gaps = tuple(query[end:left] for (_, _, end), (left, _, _) in zip(spans, spans[1:], strict=False))
    return Passages(query[: spans[0][0]], documents, gaps, query[spans[-1][2] :], origin)


def _listed(query: str, listed: object) -> list[tuple[int, int, int]]:
    """(header's start, text's start, end) of a row's own documents where they stand in the prompt, in its order."""
    found, end = [], 0
    places = sorted(
        (place, place + len(text))
        for text in (map(document_text, listed) if isinstance(listed, list) else ())
        if text.strip() and (place := query.find(text)) >= 0
    )
    for left, right in places:
        if left < end:
            continue  # inside the document before it
        line = max(query.rfind("\n", 0, left) + 1, end)
        found.append((line if left - line <= _HEADER else left, left, right))
        end = right
    return found


def _number(header: str, place: int) -> int:
    numbers = re.findall(r"\d+", header)
    return int(numbers[-1]) if numbers else place


def document_text(document: object) -> str:
    """The text of a row's own document: a text, or a mapping with a title and a text."""
    if isinstance(document, dict):
        return " ".join(str(document[key]) for key in ("title", "text", "content", "contents") if document.get(key))
    return str(document)


def renumber(answer: str, numbers: Mapping[int, int]) -> str:
    """An answer whose citations name documents by their new numbers; a document that is not there keeps its own.

    >>> renumber("Ada [1][3], Bob [2, 1].", {1: 2, 2: 1})
    'Ada [2][3], Bob [1, 2].'
    """

    def one(match: re.Match) -> str:
        return re.sub(r"\d+", lambda number: str(numbers.get(int(number[0]), int(number[0]))), match[0])

    return CITATION.sub(one, answer)


def supporting(passages: Passages, row: Mapping, output: str, output_key: str = "") -> frozenset[int]:
    """The numbers of the documents that support the answer.

    They are those that the row names (`SUPPORT_KEYS`) or, where it names none, those that hold an answer of
    `answers_of` word for word. Labels such as yes are looked for in no document.
    """
    there = {one.number for one in passages.documents}
    for key in SUPPORT_KEYS:
        if isinstance(row.get(key), list):
            return frozenset(number for number in row[key] if isinstance(number, int)) & there
    answers, _ = answers_of(row, output, output_key)
    spellings = [text for group in answers for text in group if text.strip() not in LABELS]
    return frozenset(one.number for one in passages.documents if any(text in words_of(one.text) for text in spellings))


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
