"""A batch as the trainer's collator makes it: which rows are where, and what of it is padding."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Note, Span, Table
from ragfit.draw.text import counted, in_one_line
from ragfit.draw.view import View


class RowInBatch(NamedTuple):
    """A row's stretch of a batch: its sequence, its places there, its tokens; ids and labels with padding behind."""

    sequence: int
    places: str
    tokens: list[int]
    ids: list[int]
    labels: list[int]


def rows_in(batch: Mapping[str, object]) -> Iterator[RowInBatch]:
    """The rows of a batch of `ragfit.collator`, padded or packed; padding behind a pack is no row."""
    packed = "position_ids" in batch
    for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        starts = [i for i, place in enumerate(batch["position_ids"][number].tolist()) if place == 0] if packed else [0]
        for start, stop in itertools.pairwise([*starts, len(ids)]):
            end = stop if packed else int(batch["attention_mask"][number].sum())
            if end - start > 1:  # one token alone predicts nothing
                yield RowInBatch(number, f"{start:,}–{stop - 1:,}", ids[start:end], ids[start:stop], labels[start:stop])


class BatchView(View):
    """The rows of a batch: a line for each, with its place, and how it begins and ends.

    Takes a batch of the trainer's collator and the part, "train" or "dev", of its rows. `indices` are those of the rows
    in `prepared.train` or `prepared.dev`, and `shortest` is the index of the one with the fewest tokens.
    """

    def __init__(self, prepared: Prepared, batch: Mapping[str, object], part: str = "train"):
        self.decode, self.part, self.rows = prepared.tokenizer.decode, part, list(rows_in(batch))
        lengths, positions = [len(row.tokens) for row in self.rows], batch["input_ids"].numel()
        near = [i for i, pair in enumerate(prepared.report.part(part).lengths) if sum(pair) in lengths]
        known = {tuple(prepared.part(part)[i]["input_ids"]): i for i in reversed(near)}
        self.indices = [known[tuple(row.tokens)] for row in self.rows]
        self.shortest, padding = self.indices[lengths.index(min(lengths))], positions - sum(lengths)
        self.title = f"A batch of {counted(len(lengths), f'{part} row')}"
        self.aside = f"{positions:,} positions, {padding:,} of them padding ({padding / positions:.1%})"
        self.notes = [Note("The rows lie end to end, and positions begin at 0 in each.")] * ("position_ids" in batch)

    def blocks(self) -> list[Block]:
        table = []
        for row, index in zip(self.rows, self.indices, strict=True):
            counts = len(row.tokens), sum(i != IGNORE_INDEX for i in row.labels), len(row.ids) - len(row.tokens)
            ends = (Span(in_one_line(self.decode(part), 40), "mono") for part in (row.tokens[:6], row.tokens[-6:]))
            table.append([f"{index:,}", f"{row.sequence:,}", row.places, *(f"{count:,}" for count in counts), *ends])
        head = [f"{self.part} row", "sequence", "places", "tokens", "with loss", "padding", "begins", "ends"]
        return [*self.notes, Table(head, table, right=range(6))]
