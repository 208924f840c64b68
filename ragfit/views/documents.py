"""What the rows of a data set hold for RAG: documents, and whether the answer stands in them."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ragfit.data.report import Prepared
from ragfit.draw.blocks import Bar, Block, Line, Note, Table
from ragfit.draw.view import View

DOCUMENT_KEYS = ("positive_passages", "documents", "passages", "contexts", "docs")
ANSWER_KEYS = ("short_answers", "answers")
LABELS = {"yes", "no", "maybe", "true", "false"}
WORDS = 10  # a longer answer is a sentence, which no document holds word for word
FIRST = 6  # row numbers listed
_FROM_LABELS, _FROM_NOTHING = "none: labels", "none: no short answer"


class RagView(View):
    """Documents per row, documents that repeat, and answers that stand in the documents, over all prepared rows.

    A row's documents are those numbered `[1]`, `[2]` … in its prompt as the model reads it (cut where it was cut), or
    else the list under one of `DOCUMENT_KEYS`. Its short answers are those under `short_answers` (each an answer or a
    list of its spellings), under `answers` (spellings of one answer), or its output. An answer is found where its words
    follow each other in a document, whatever their case and punctuation.

    Args:
        prepared: of `ragfit.prepare`.
    """

    title = "Documents and answers"

    def __init__(self, prepared: Prepared):
        self.parts = {
            part: [_read(prepared, number, part) for number in prepared.report.part(part).kept]
            for part in ("train", "dev")
            if prepared.report.part(part).kept
        }

    def blocks(self) -> list[Block]:
        counts = [dict(_counts(rows)) for rows in self.parts.values()]
        table = [[label, *(count[label] for count in counts)] for label in counts[0]]
        if len(self.parts) == 2:
            train, dev = ({text for row in rows for text in row.documents} for rows in self.parts.values())
            table.append(["documents in both train and dev", f"{len(train & dev):,}", ""])
        labels = "Answers such as yes and no are labels: no document has to hold them, so they are not looked for."
        any_labels = any(row.answers_from == _FROM_LABELS for rows in self.parts.values() for row in rows)
        return [
            Table(["", *self.parts], [row for row in table if any(row[1:])], widths=("270px",)),
            *([Note(labels)] if any_labels else []),
        ]


@dataclass(frozen=True)
class _Row:
    """What one row holds.

    Attributes:
        documents: a fingerprint of 8 bytes of each document, not its text: a large data set has millions of them.
        words: of each document.
        documents_from, answers_from: where they were found.
        found: for each answer that was looked for, whether a document holds it.
    """

    number: int
    documents: list[int]
    words: list[int]
    documents_from: str
    answers_from: str
    found: list[bool]


def _read(prepared: Prepared, number: int, part: str) -> _Row:
    query, output, row = prepared.row(number, part)
    documents, place = documents_of(query, row)
    texts = [words_of(text) for text in documents]
    answers, key = answers_of(row, output, prepared.cfg.output_key)
    if all(spelling.strip() in LABELS for spellings in answers for spelling in spellings):
        answers, key = [], _FROM_LABELS if answers else _FROM_NOTHING
    text = " ".join(texts or [words_of(query)]) if answers else ""
    found = [any(spelling in text for spelling in spellings) for spellings in answers]
    return _Row(number, list(map(hash, texts)), [text.count(" ") - 1 for text in texts], place, key, found)


def _counts(rows: list[_Row]) -> Iterator[tuple[str, Line]]:
    """What stands in a column of the table; "" where it says nothing of these rows."""
    asked = [row for row in rows if row.found]
    texts = Counter(text for row in rows for text in set(row.documents))
    yield "prepared rows", f"{len(rows):,}"
    yield "answers looked for", _sources(row.answers_from for row in rows)
    yield "rows with an answer in their documents", _share(sum(any(row.found) for row in asked), len(asked))
    several = any(len(row.found) > 1 for row in asked)
    yield (
        "rows with all their answers there",
        _share(sum(all(row.found) for row in asked), len(asked)) if several else "",
    )
    yield "rows with none there", _numbers([row.number for row in asked if not any(row.found)]) if asked else ""
    yield "documents taken from", _sources(row.documents_from for row in rows)
    yield "documents per row", _spread([len(row.documents) for row in rows if row.documents])
    yield "words per document", _spread([words for row in rows for words in row.words])
    twice = [row.number for row in rows if len(set(row.documents)) < len(row.documents)]
    yield "rows that hold a document twice", _numbers(twice) if texts else ""
    yield "different documents", f"{len(texts):,} of {sum(texts.values()):,}" if texts else ""
    yield "documents in more than one row", f"{sum(count > 1 for count in texts.values()):,}" if texts else ""


def documents_of(query: str, row: Mapping[str, object]) -> tuple[list[str], str]:
    """(documents, where they were found): those numbered in the prompt, or a list of the row.

    >>> documents_of("Question: who?\\n\\nDocuments:\\n[1] Ada.\\n[2] Bob\\nand Eve.", {})
    (['Ada.', 'Bob\\nand Eve.'], 'the prompt')
    """
    starts, wanted = [], 1
    for match in re.finditer(r"^[ \t]*(?:Document |Passage )?\[(\d+)\]:?[ \t]?", query, re.MULTILINE):
        if int(match[1]) == wanted:  # a [7] at the start of a document's own line is no new document
            starts.append(match.span())
            wanted += 1
    if starts:
        ends = [*(start for start, _ in starts[1:]), len(query)]
        # A question or an instruction may follow the last document after an empty line.
        texts = [query[begin:end].strip() for (_, begin), end in zip(starts, ends, strict=True)]
        texts[-1] = re.split(r"\n\s*\n(?=(?:Question|Answer|Query|Instruction)\b)", texts[-1])[0].strip()
        return texts, "the prompt"
    for key in DOCUMENT_KEYS:
        if isinstance(row.get(key), list) and row[key]:
            return [_document_text(document) for document in row[key]], key
    return [], "nowhere"


def _document_text(document: object) -> str:
    if isinstance(document, dict):
        return " ".join(str(document[key]) for key in ("title", "text", "content", "contents") if document.get(key))
    return str(document)


def answers_of(row: Mapping[str, object], output: str, output_key: str = "") -> tuple[list[list[str]], str]:
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
    """A text's words in lower case, a space before, between and after them, without punctuation."""
    text = unicodedata.normalize("NFKC", re.sub(r"\[\d+\]", " ", text)).casefold()
    return f" {' '.join(text.translate(_DROP).split())} "


def _sources(names: Iterator[str]) -> str:
    counts = Counter(names).most_common()
    counts.sort(key=lambda pair: pair[0].startswith("none"))
    return ", ".join(f"{name} ({count:,} row{'s' * (count != 1)})" for name, count in counts)


def _share(part: int, whole: int) -> Line:
    return (Bar(part / whole), f"{part:,} of {whole:,} ({part / whole:.0%})") if whole else ""


def _numbers(numbers: list[int]) -> str:
    if not numbers:
        return "0"
    first = ", ".join(map(str, numbers[:FIRST])) + (", …" if len(numbers) > FIRST else "")
    return f"{len(numbers):,} (row{'s' * (len(numbers) != 1)} {first})"


def _spread(values: list[int]) -> str:
    if not values:
        return ""
    values = sorted(values)
    low, high = f"{values[0]:,}", f"{values[-1]:,}"
    return low if low == high else f"{low} to {high}, median {values[len(values) // 2]:,}"
