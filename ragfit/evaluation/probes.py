"""The questions of grounding as texts: a row's prompt and answer under other documents."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragfit.data.documents import SUPPORT_KEYS, Document, Passages, find_documents, renumber, supporting
from ragfit.data.report import Prepared
from ragfit.errors import DataError

DISTRACTORS = (0, 1, 2, 4, 8)
PLACES = 10
FEWER = 6  # distractors and places are read on every sixth of the rows: each costs several times the rest

Text = tuple[str, str]  # prompt and answer


@dataclass(frozen=True)
class Row:
    """A row taken apart.

    Attributes:
        number: its number in its file.
        supports: the numbers of the documents that support its answer.
    """

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

    def without(self, document: Document) -> str:
        """The prompt without a document."""
        return self.passages.prompt([one for one in self.passages.documents if one is not document])

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
        passages = find_documents(query, source)
        if passages is None:
            unread.append(number)
            continue
        where = prepared.sources[part].where(number)
        key = next((key for key in SUPPORT_KEYS if isinstance(source.get(key), list)), None)
        if key and passages.documents[0].number and any(one == 0 and one is not False for one in source[key]):
            fix = "Add 1 to each number in all rows: [1] is the first document."
            raise DataError(where, f"{key} names document 0, but the documents are numbered from 1", fix)
        supports = supporting(passages, source, output, prepared.cfg.output_key)
        found.append(Row(number, where, query, output, source, passages, supports))
    return found, unread


def probes(rows: Sequence[Row], parts: Sequence[str], seed: int) -> list[list[dict[str, Text]]]:
    """For each row the texts to read, by name, in groups that begin alike.

    The names are `all`, `without N` (the document of that number), `none`, `supporting` (alone), `N others` (the
    supporting documents among so many of other rows) and `place N` (the first supporting one among nine others).
    """
    wide = [n for n, row in enumerate(rows) if row.supports][::FEWER]
    return [[_own(row, parts), *(_mixed(rows, n, parts, seed) if n in wide else ())] for n, row in enumerate(rows)]


def _own(row: Row, parts: Sequence[str]) -> dict[str, Text]:
    """A row under its own documents, and under fewer of them."""
    prompts = {"all": row.query}
    if {"drop", "citations"} & set(parts):
        prompts |= {f"without {one.number}": row.without(one) for one in row.passages.documents}
    if "without" in parts:
        prompts["none"] = row.passages.prompt([])
        prompts |= {"supporting": row.passages.prompt(row.supporting)} if row.supports else {}
    return {name: (prompt, row.output) for name, prompt in prompts.items()}


def _mixed(rows: Sequence[Row], number: int, parts: Sequence[str], seed: int) -> list[dict[str, Text]]:
    """A row's supporting documents among those of other rows, in an order that is drawn."""
    row, draw = rows[number], random.Random(f"{seed} {rows[number].number}")
    own = {one.text for one in row.passages.documents}
    foreign = {one.text: one for other in rows if other is not row for one in other.passages.documents}
    others = [one for text, one in foreign.items() if text not in own]
    draw.shuffle(others)
    among, places, mixed = {}, {}, row.supporting
    for count in DISTRACTORS if "distractors" in parts else ():
        if count <= len(others):
            for one in others[len(mixed) - len(row.supporting) : count]:
                mixed.insert(draw.randint(0, len(mixed)), one)
            among[f"{count} others"] = row.among(mixed)
    if "position" in parts and len(others) >= PLACES - 1:
        nine, document = others[: PLACES - 1], row.supporting[0]
        # All have their beginning in common with the last one, so it is read first.
        for place in range(PLACES, 0, -1):
            places[f"place {place}"] = row.among([*nine[: place - 1], document, *nine[place - 1 :]])
    return [group for group in (among, places) if group]
