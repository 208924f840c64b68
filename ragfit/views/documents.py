"""What the rows of a data set hold for RAG: documents, and whether the answer stands in them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ragfit.data.documents import LABELS, answers_of, find_documents, first_supporting, fixed_place, words_of
from ragfit.data.listed import listed_documents
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Callout, Line, Note, Picture, Table
from ragfit.draw.figure import count_on, figure, finish
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 12  # places told in a log
_FROM_LABELS, _FROM_NOTHING = "none, as they are labels", "none, as there is no short answer"


class RagView(View):
    """Documents per row, documents that repeat, and answers that stand in the documents, over all prepared rows.

    Only documents that the model reads count: those that are found in a row's prompt, cut where it was cut
    (`ragfit.data.documents.find_documents`). A row's short answers are those under `short_answers` (each an answer or a
    list of its spellings), under `answers` (spellings of one answer), or its output. An answer is found where its words
    follow each other in a document, whatever their case and punctuation.

    Args:
        prepared: of `ragfit.prepare`.
    """

    title = "Documents and answers"

    def __init__(self, prepared: Prepared):
        numbers = {part: prepared.report.part(part).kept for part in ("train", "dev")}
        self.parts = {part: [_read(prepared, n, part) for n in kept] for part, kept in numbers.items() if kept}

    def blocks(self) -> list[Block]:
        rows = [row for part in self.parts.values() for row in part]
        counts = [_counts(part) for part in self.parts.values()]
        table = [[label, *(count[label] for count in counts)] for label in counts[0]]
        if len(self.parts) == 2:
            train, dev = ({text for row in part for text in row.documents} for part in self.parts.values())
            table.append(["documents in both train and dev", f"{len(train & dev):,}", ""])
        blocks: list[Block] = [Table(["", *self.parts], [row for row in table if any(row[1:])], widths=("290px",))]
        placed = [row for row in rows if row.place]
        if where := fixed_place([(row.place, len(row.documents)) for row in placed]):
            said = f"The supporting document stands {where}: a model learns the place instead of reading."
            blocks.insert(0, Callout(f"{said} Shuffle each row's documents before its prompt is written."))
        if any(row.answers_from == _FROM_LABELS for row in rows):
            blocks.append(Note("Answers such as yes and no are labels, which documents need not contain."))
        if placed:
            places, most = Counter(row.place for row in placed), max(len(row.documents) for row in rows)
            shares = (f"{place}: {count / len(placed):.0%}" for place, count in sorted(places.items())[:SHOWN])
            what = f"Position of the first supporting document, {counted(len(placed), 'row')}"
            blocks.append(Picture(lambda: _figure(places, most, what), what, f"{what}: {', '.join(shares)}"))
        return blocks


def _figure(places: Counter[int], most: int, title: str) -> "Figure":
    drawn = figure(1.8)
    axes = drawn.subplots()
    axes.bar(list(places), list(places.values()), color=style.BLUE, width=0.7)
    axes.set(xlabel="position among the row's documents", ylabel="rows", xlim=(0.4, most + 0.6))
    finish(axes, title)
    count_on(axes)
    return drawn


class _Row(NamedTuple):
    """What one row holds: its documents as fingerprints of 8 bytes, as a large data set has millions of them."""

    number: int
    answers_from: str
    documents_from: str
    documents: Sequence[int] = ()
    found: Sequence[bool] = ()  # for each answer that was looked for, whether a document holds it
    place: int | None = None  # of the first document that supports the answer, from 1


def _read(prepared: Prepared, number: int, part: str) -> _Row:
    query, output, row = prepared.row(number, part)
    answers, key = answers_of(row, output, prepared.cfg.output_key)
    if all(spelling.strip() in LABELS for spellings in answers for spelling in spellings):
        answers, key = [], _FROM_LABELS if answers else _FROM_NOTHING
    passages = find_documents(query, row)
    if not passages:
        own = next((key for key, _ in listed_documents(row)), "")
        return _Row(number, key, f"none, those of {own} are not in the prompt" if own else "none")
    texts = [words_of(one.text) for one in passages.documents]
    found = [any(spelling in text for spelling in spellings for text in texts) for spellings in answers]
    place = first_supporting(passages, row, output, prepared.cfg.output_key)
    return _Row(number, key, passages.origin, list(map(hash, texts)), found, place)


def _counts(rows: list[_Row]) -> dict[str, Line]:
    """What stands in a column of the table; "" where it says nothing of these rows."""
    asked = [row for row in rows if row.found]
    placed = [row.place for row in rows if row.place]
    texts = Counter(text for row in rows for text in set(row.documents))
    none = [row.number for row in asked if not any(row.found)]
    twice = [row.number for row in rows if len(set(row.documents)) < len(row.documents)]
    sizes = sorted(len(row.documents) for row in rows if row.documents)
    spread = f"{sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}" if sizes else ""
    return {
        "prepared rows": f"{len(rows):,}",
        "answers taken from": _sources(row.answers_from for row in rows),
        "rows with an answer in their documents": _share(len(asked) - len(none), len(asked)),
        "rows with no answer in their documents": _numbers(none) if asked else "",
        "supporting document comes first": _share(placed.count(1), len(placed)),
        "documents taken from": _sources(row.documents_from for row in rows),
        "documents per row": f"{sizes[0]}" if sizes and sizes[0] == sizes[-1] else spread,
        "rows with a repeated document": _numbers(twice) if texts else "",
        "distinct documents": f"{len(texts):,} of {texts.total():,}" if texts else "",
    }


def _sources(names: Iterable[str]) -> str:
    counts = sorted(Counter(names).most_common(), key=lambda pair: pair[0].startswith("none"))
    return ", ".join(f"{name} ({counted(count, 'row')})" for name, count in counts)


def _share(part: int, whole: int) -> Line:
    return (Bar(part / whole), f"{part:,} of {whole:,} ({part / whole:.0%})") if whole else ""


def _numbers(numbers: list[int]) -> str:
    return f"{len(numbers):,} (row{'s' * (len(numbers) != 1)} {listed(numbers)})" if numbers else "0"
