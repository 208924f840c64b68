"""What the rows of a data set hold for RAG: documents, and whether the answer stands in them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.data.documents import LABELS, answers_of, documents_of, find_documents, first_supporting, words_of
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Line, Note, Picture, Table
from ragfit.draw.figure import figure, finish
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 12  # places told in a log
_FROM_LABELS, _FROM_NOTHING = "none, as they are labels", "none, as there is no short answer"


class RagView(View):
    """Documents per row, documents that repeat, and answers that stand in the documents, over all prepared rows.

    A row's documents are those numbered in its prompt as the model reads it (`[1] …`, `Document 1: …`; cut where it was
    cut), or else its own list (`ragfit.data.listed.DOCUMENT_KEYS`). Its short answers are those under `short_answers`
    (each an answer or a list of its spellings), under `answers` (spellings of one answer), or its output. An answer is
    found where its words follow each other in a document, whatever their case and punctuation.

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
        labels = "Answers such as yes and no are labels. Documents need not contain them, so they are not searched for."
        any_labels = any(row.answers_from == _FROM_LABELS for rows in self.parts.values() for row in rows)
        return [
            Table(["", *self.parts], [row for row in table if any(row[1:])], widths=("290px",)),
            *([Note(labels)] if any_labels else []),
            *([self._picture()] if any(row.place for rows in self.parts.values() for row in rows) else []),
        ]

    def _picture(self) -> Picture:
        places = [row.place for rows in self.parts.values() for row in rows if row.place]
        shares = (f"{place}: {places.count(place) / len(places):.0%}" for place in sorted(set(places))[:SHOWN])
        what = f"Position of the first supporting document, {counted(len(places), 'row')}"
        return Picture(lambda: self._figure(places, what), what, f"{what}: {', '.join(shares)}")

    def _figure(self, places: list[int], title: str) -> "Figure":
        drawn = figure(1.8)
        axis = drawn.subplots()
        axis.bar(*zip(*sorted(Counter(places).items()), strict=True), color=style.BLUE, width=0.7)
        axis.set_xlabel("position among the row's documents")
        axis.set_ylabel("rows")
        axis.set_xlim(left=0.4)
        axis.locator_params(integer=True)
        finish(axis, title)
        return drawn


@dataclass(frozen=True)
class _Row:
    """What one row holds.

    Attributes:
        documents: a fingerprint of 8 bytes of each document, not its text: a large data set has millions of them.
        words: of each document.
        documents_from, answers_from: where they were found.
        place: of the first document that supports the answer, from 1; None where it is not known.
        found: for each answer that was looked for, whether a document holds it.
    """

    number: int
    documents: list[int]
    words: list[int]
    documents_from: str
    answers_from: str
    found: list[bool]
    place: int | None


def _read(prepared: Prepared, number: int, part: str) -> _Row:
    query, output, row = prepared.row(number, part)
    documents, origin = documents_of(query, row)
    passages = find_documents(query, row)
    texts = [words_of(text) for text in documents]
    answers, key = answers_of(row, output, prepared.cfg.output_key)
    if all(spelling.strip() in LABELS for spellings in answers for spelling in spellings):
        answers, key = [], _FROM_LABELS if answers else _FROM_NOTHING
    text = " ".join(texts or [words_of(query)]) if answers else ""
    found = [any(spelling in text for spelling in spellings) for spellings in answers]
    place = first_supporting(passages, row, output, prepared.cfg.output_key) if passages else None
    words = [text.count(" ") - 1 for text in texts]
    return _Row(number, list(map(hash, texts)), words, origin, key, found, place)


def _counts(rows: list[_Row]) -> Iterator[tuple[str, Line]]:
    """What stands in a column of the table; "" where it says nothing of these rows."""
    asked = [row for row in rows if row.found]
    texts = Counter(text for row in rows for text in set(row.documents))
    yield "prepared rows", f"{len(rows):,}"
    yield "answers taken from", _sources(row.answers_from for row in rows)
    yield "rows with an answer in their documents", _share(sum(any(row.found) for row in asked), len(asked))
    whole = len(asked) if any(len(row.found) > 1 for row in asked) else 0
    yield "rows with all answers in their documents", _share(sum(all(row.found) for row in asked), whole)
    yield (
        "rows with no answer in their documents",
        _numbers([row.number for row in asked if not any(row.found)]) if asked else "",
    )
    placed = [row.place for row in rows if row.place]
    yield "supporting document comes first", _share(placed.count(1), len(placed))
    yield "documents taken from", _sources(row.documents_from for row in rows)
    yield "documents per row", _spread([len(row.documents) for row in rows if row.documents])
    yield "words per document", _spread([words for row in rows for words in row.words])
    twice = [row.number for row in rows if len(set(row.documents)) < len(row.documents)]
    yield "rows with a repeated document", _numbers(twice) if texts else ""
    yield "distinct documents", f"{len(texts):,} of {sum(texts.values()):,}" if texts else ""
    yield "documents in more than one row", f"{sum(count > 1 for count in texts.values()):,}" if texts else ""


def _sources(names: Iterator[str]) -> str:
    counts = sorted(Counter(names).most_common(), key=lambda pair: pair[0].startswith("none"))
    return ", ".join(f"{name} ({counted(count, 'row')})" for name, count in counts)


def _share(part: int, whole: int) -> Line:
    return (Bar(part / whole), f"{part:,} of {whole:,} ({part / whole:.0%})") if whole else ""


def _numbers(numbers: list[int]) -> str:
    if not numbers:
        return "0"
    return f"{len(numbers):,} (row{'s' * (len(numbers) != 1)} {listed(numbers)})"


def _spread(values: list[int]) -> str:
    if not values:
        return ""
    values = sorted(values)
    low, high = f"{values[0]:,}", f"{values[-1]:,}"
    return low if low == high else f"{low} to {high}, median {values[len(values) // 2]:,}"
