"""What the rows of a data set hold for RAG: documents, and whether the answer stands in them."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ragfit.data.documents import LABELS, answers_of, find_documents, first_supporting, fixed_place, words_of
from ragfit.data.listed import listed_documents
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Bar, Block, Callout, Line, Table
from ragfit.draw.text import counted, listed
from ragfit.draw.view import View


class RagView(View):
    """Documents per row, documents that repeat, and answers that stand in the documents, over all prepared rows.

    Only documents that the model reads count: those in a row's prompt, cut where it was cut. A row's short answers are
    those under `short_answers` (each an answer or a list of its spellings), under `answers` (spellings of one answer),
    or its output. An answer is found where its words follow each other in a document, whatever case and punctuation.
    """

    title = "Documents and answers"

    def __init__(self, prepared: Prepared):
        numbers = {part: prepared.report.part(part).kept for part in ("train", "dev")}
        self.parts = {part: [_read(prepared, n, part) for n in kept] for part, kept in numbers.items() if kept}

    def blocks(self) -> list[Block]:
        rows, counts = sum(self.parts.values(), []), list(map(_counts, self.parts.values()))
        table = [[label, *(count.get(label, "") for count in counts)] for label in {**counts[0], **counts[-1]}]
        if len(self.parts) == 2:
            train, dev = ({text for row in part for text in row.documents} for part in self.parts.values())
            table.append(["documents in both train and dev", f"{len(train & dev):,}", ""])
        found = Table(["", *self.parts], [row for row in table if any(row[1:])], widths=("290px",))
        where = fixed_place([(row.place, len(row.documents)) for row in rows if row.place])
        said = f"The supporting document stands {where}: a model learns the place instead of reading."
        said += " Shuffle each row's documents before its prompt is written."
        return [*([Callout(said)] if where else []), found]


class _Row(NamedTuple):
    """What one row holds: its documents as fingerprints of 8 bytes, as a large data set has millions of them."""

    number: int
    answers_from: str
    documents_from: str
    documents: tuple[int, ...] = ()
    answered: bool | None = None  # whether a document holds one of the answers; None where none was looked for
    place: int | None = None  # of the first document that supports the answer, from 1


def _read(prepared: Prepared, number: int, part: str) -> _Row:
    query, output, row = prepared.row(number, part)
    answers, key = answers_of(row, output, prepared.cfg.output_key)
    spellings = [spelling for one in answers for spelling in one]
    if all(spelling.strip() in LABELS for spelling in spellings):  # which documents need not contain
        spellings, key = [], "none, as they are labels" if spellings else "none, as there is no short answer"
    passages = find_documents(query, row)
    if not passages:
        own = next((f", those of {key} are not in the prompt" for key, _ in listed_documents(row)), "")
        return _Row(number, key, f"none{own}")
    texts = [words_of(one.text) for one in passages.documents]
    answered = any(spelling in text for spelling in spellings for text in texts) if spellings else None
    place = first_supporting(passages, row, output, prepared.cfg.output_key)
    return _Row(number, key, passages.origin, tuple(map(hash, texts)), answered, place)


def _counts(rows: list[_Row]) -> dict[str, Line]:
    """What stands in a column of the table; "" where it says nothing of these rows."""
    asked, placed = [row for row in rows if row.answered is not None], [row.place for row in rows if row.place]
    texts = Counter(text for row in rows for text in set(row.documents))
    none = [row.number for row in asked if not row.answered]
    twice = [row.number for row in rows if len(set(row.documents)) < len(row.documents)]
    sizes = [len(row.documents) for row in rows if row.documents]
    places = range(1, min(max(sizes, default=0), 12) + 1) if placed else ()
    return {
        "prepared rows": f"{len(rows):,}",
        "answers taken from": _sources(row.answers_from for row in rows),
        "rows with an answer in their documents": _share(len(asked) - len(none), len(asked)),
        "rows with no answer in their documents": _numbers(none) if asked else "",
        "documents taken from": _sources(row.documents_from for row in rows),
        "documents per row": " to ".join(map(str, sorted({min(sizes), max(sizes)}))) if sizes else "",
        "rows with a repeated document": _numbers(twice) if texts else "",
        "distinct documents": f"{len(texts):,} of {texts.total():,}" if texts else "",
        **{f"supporting document at position {place}": _share(placed.count(place), len(placed)) for place in places},
    }


def _sources(names: Iterable[str]) -> str:
    counts = sorted(Counter(names).most_common(), key=lambda pair: pair[0].startswith("none"))
    return ", ".join(f"{name} ({counted(count, 'row')})" for name, count in counts)


def _share(part: int, whole: int) -> Line:
    return (Bar(part / whole), f"{part:,} of {whole:,} ({part / whole:.0%})") if whole else ""


def _numbers(numbers: list[int]) -> str:
    return f"{len(numbers):,} (row{'s' * (len(numbers) != 1)} {listed(numbers)})" if numbers else "0"
