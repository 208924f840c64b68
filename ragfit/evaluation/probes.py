"""The questions of grounding as texts: a row's prompt and answer under other documents."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from ragfit.data.documents import SUPPORT_KEYS, Document, Passages, find_documents, renumber, supporting
from ragfit.data.report import Prepared
from ragfit.data.words import question_of
from ragfit.errors import DataError
from ragfit.evaluation.reading import Text

DISTRACTORS, PLACES, FEWER = (0, 1, 2, 4, 8), 10, 6  # on every sixth row alone, as they cost several times the rest


class Row(NamedTuple):
    """A row taken apart: its number in its file, and which of its documents support its answer."""

    number: int
    where: str
    question: str
    output: str
    passages: Passages
    supporting: list[Document]

    def among(self, documents: Sequence[Document]) -> Text:
        """The row with documents in a new order, its own and others', numbered anew, as its citations are."""
        fresh = self.passages.numbered([one.text for one in documents])
        numbers = {old.number: new.number for old, new in zip(documents, fresh, strict=True) if old in self.supporting}
        return self.passages.prompt(fresh), renumber(self.output, numbers)


def taken_apart(prepared: Prepared, part: str, rows: int | None) -> tuple[list[Row], list[int]]:
    """The first prepared rows of a part, and the numbers of those whose documents cannot be found."""
    found, unread = [], []
    for number in prepared.report.part(part).kept[:rows]:
        query, output, source = prepared.row(number, part)
        if (passages := find_documents(query, source)) is None:
            unread.append(number)
            continue
        where, documents = prepared.sources[part].where(number), passages.documents
        named = next((source[key] for key in SUPPORT_KEYS if isinstance(source.get(key), list)), ())
        if documents[0].number and any(type(one) is int and one == 0 for one in named):
            raise DataError(where, "it names document 0 of documents numbered from 1", "Add 1 to each, in all rows.")
        numbers = supporting(passages, source, output, prepared.cfg.output_key)
        ours = [one for one in documents if one.number in numbers]
        found.append(Row(number, where, question_of(source, query), output, passages, ours))
    return found, unread


def probes(rows: Sequence[Row], number: int) -> dict[str, Text]:
    """The texts to read for one of the rows, by name. On some it is the supporting documents among others' too."""
    row, documents, ours = rows[number], rows[number].passages.documents, rows[number].supporting
    chosen = {f"without {left.number}": [one for one in documents if one is not left] for left in documents}
    chosen |= {"all": documents, "none": []} | ({"supporting": ours} if ours else {})
    texts = {name: (row.passages.prompt(kept), row.output) for name, kept in chosen.items()}
    if number not in [n for n, one in enumerate(rows) if one.supporting][::FEWER]:
        return texts
    draw, own = random.Random(f"0 {row.number}"), {one.text for one in documents}
    foreign = {one.text: one for other in rows for one in other.passages.documents if one.text not in own}
    others, mixed = list(foreign.values()), list(ours)
    draw.shuffle(others)
    for count in (count for count in DISTRACTORS if count <= len(others)):
        for one in others[len(mixed) - len(ours) : count]:
            mixed.insert(draw.randint(0, len(mixed)), one)
        texts[f"{count} others"] = row.among(mixed)
    nine = others[: PLACES - 1]
    for place in range(PLACES) if len(nine) == PLACES - 1 else ():
        texts[f"place {place + 1}"] = row.among([*nine[:place], ours[0], *nine[place:]])
    return texts
