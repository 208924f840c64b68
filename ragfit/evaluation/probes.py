"""The questions of grounding as texts: a row's prompt and answer under other documents."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragfit.data.documents import SUPPORT_KEYS, Document, Passages, find_documents, renumber, supporting
from ragfit.data.report import Prepared
from ragfit.errors import DataError
from ragfit.evaluation.reading import Text

DISTRACTORS = (0, 1, 2, 4, 8)
PLACES = 10
FEWER = 6  # distractors and places are read on every sixth of the rows: each costs several times the rest


@dataclass(frozen=True)
class Row:
    """A row taken apart; `supports` are the numbers of the documents that support its answer."""

    number: int
    where: str
    query: str
    output: str
    source: Mapping
    passages: Passages
    supports: frozenset[int]

    @property
    def supporting(self) -> list[Document]:
        return [one for one in self.passages.documents if one.number in self.supports]

    def among(self, documents: Sequence[Document]) -> Text:
        """The row with documents in a new order, its own and others', numbered anew."""
        fresh = self.passages.numbered([one.text for one in documents])
        own = {id(one): new.number for one, new in zip(documents, fresh, strict=True)}
        numbers = {one.number: own[id(one)] for one in self.passages.documents if id(one) in own}
        return self.passages.prompt(fresh), renumber(self.output, numbers)


def taken_apart(prepared: Prepared, part: str, rows: int | None) -> tuple[list[Row], list[int]]:
    """The first prepared rows of a part, and the numbers of those whose documents cannot be found.

    Raises:
        DataError: a row counts its supporting documents from 0 where they are numbered from 1.
    """
    found, unread = [], []
    for number in prepared.report.part(part).kept[:rows]:
        query, output, source = prepared.row(number, part)
        passages, where = find_documents(query, source), prepared.sources[part].where(number)
        if passages is None:
            unread.append(number)
            continue
        key = next((key for key in SUPPORT_KEYS if isinstance(source.get(key), list)), None)
        if key and passages.documents[0].number and any(one == 0 and one is not False for one in source[key]):
            fix = "Add 1 to each number in all rows: [1] is the first document."
            raise DataError(where, f"{key} names document 0, but the documents are numbered from 1", fix)
        supports = supporting(passages, source, output, prepared.cfg.output_key)
        found.append(Row(number, where, query, output, source, passages, supports))
    return found, unread


def probes(rows: Sequence[Row], number: int) -> dict[str, Text]:
    """The texts to read for one of the rows, by name.

    The names are `all`, `without N` (the document of that number), `none`, `supporting` (alone), `N others` (the
    supporting documents among so many of other rows) and `place N` (the first supporting one among nine others).
    """
    row, documents = rows[number], rows[number].passages.documents
    left = {f"without {one.number}": [other for other in documents if other is not one] for one in documents}
    left |= {"none": []} | ({"supporting": row.supporting} if row.supports else {})
    texts = {"all": row.query} | {name: row.passages.prompt(some) for name, some in left.items()}
    wide = [n for n, one in enumerate(rows) if one.supports][::FEWER]
    return {name: (text, row.output) for name, text in texts.items()} | (_mixed(rows, row) if number in wide else {})


def _mixed(rows: Sequence[Row], row: Row) -> dict[str, Text]:
    """A row's supporting documents among those of other rows, in an order that is drawn."""
    draw = random.Random(f"0 {row.number}")
    own = {one.text for one in row.passages.documents}
    foreign = {one.text: one for other in rows if other is not row for one in other.passages.documents}
    others = [one for text, one in foreign.items() if text not in own]
    draw.shuffle(others)
    texts, mixed = {}, row.supporting
    for count in (count for count in DISTRACTORS if count <= len(others)):
        for one in others[len(mixed) - len(row.supporting) : count]:
            mixed.insert(draw.randint(0, len(mixed)), one)
        texts[f"{count} others"] = row.among(mixed)
    if len(others) >= PLACES - 1:
        nine, document = others[: PLACES - 1], row.supporting[0]
        texts |= {f"place {n + 1}": row.among([*nine[:n], document, *nine[n:]]) for n in range(PLACES)}
    return texts
