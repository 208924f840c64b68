"""A batch as the trainer's collator makes it: which rows are where, at which positions, and what of it is padding."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Note, Span, Table
from ragfit.draw.text import counted, short
from ragfit.draw.view import View

ENDS = 6  # tokens that are shown of a row's beginning and end


@dataclass(frozen=True)
class RowInBatch:
    """A row's stretch of a batch, its padding included: a sequence, its first place there, and what stands in each."""

    sequence: int
    start: int
    ids: list[int]
    labels: list[int]
    mask: list[int]
    positions: list[int]

    @property
    def tokens(self) -> list[int]:
        return list(itertools.compress(self.ids, self.mask))

    @property
    def places(self) -> str:
        return f"{self.start:,}–{self.start + len(self.ids) - 1:,}"


def rows_in(batch: Mapping[str, object]) -> Iterator[RowInBatch]:
    """The rows of a batch of `ragfit.collator`, padded or packed; padding behind a pack is no row."""
    for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "position_ids" not in batch:
            mask = batch["attention_mask"][number].tolist()
            # As models count that are told nothing else: from the first place, padded or not.
            yield RowInBatch(number, 0, ids, labels, mask, list(range(len(ids))))
            continue
        positions = batch["position_ids"][number].tolist()
        starts = [place for place, position in enumerate(positions) if position == 0]
        for start, stop in itertools.pairwise([*starts, len(ids)]):
            if stop - start > 1:  # one token alone predicts nothing
                part = slice(start, stop)
                yield RowInBatch(number, start, ids[part], labels[part], [1] * (stop - start), positions[part])


class BatchView(View):
    """The rows of a batch: a line for each, with its place, its positions, and how it begins and ends.

    Args:
        prepared: of `ragfit.prepare`.
        batch: of the trainer's collator.
        part: "train" or "dev", where the rows come from.

    Attributes:
        rows: `RowInBatch` of each row.
        indices: of the rows in `prepared.train` or `prepared.dev`.
        shortest: the index of the one with the fewest tokens.
    """

    def __init__(self, prepared: Prepared, batch: Mapping[str, object], part: str = "train"):
        self.decode, self.part, self.packed = prepared.tokenizer.decode, part, "position_ids" in batch
        self.rows, self.positions = list(rows_in(batch)), batch["input_ids"].numel()
        lengths = {len(row.tokens) for row in self.rows}
        near = [i for i, pair in enumerate(prepared.report.part(part).lengths) if sum(pair) in lengths]
        known = {tuple(prepared.part(part)[i]["input_ids"]): i for i in reversed(near)}
        self.indices = [known.get(tuple(row.tokens)) for row in self.rows]
        self.shortest = min(zip(self.rows, self.indices, strict=True), key=lambda pair: len(pair[0].tokens))[1]
        self.title = f"A batch of {counted(len(self.rows), f'{part} row')}"
        padding = self.positions - sum(len(row.tokens) for row in self.rows)
        self.aside = f"{self.positions:,} positions, {padding:,} of them padding ({padding / self.positions:.1%})"

    def blocks(self) -> list[Block]:
        said = "The rows lie end to end. Positions begin at 0 in each, by which attention keeps them apart."
        head = [f"{self.part} row", "sequence", "places", "positions", "with loss", "padding", "begins", "ends"]
        table = Table(head, list(map(self._line, self.rows, self.indices)), right=range(6))
        return [Note(said), table] if self.packed else [table]

    def _line(self, row: RowInBatch, index: int | None) -> list[str | Span]:
        tokens, real = row.tokens, list(itertools.compress(row.positions, row.mask))
        learned = sum(label != IGNORE_INDEX for label in row.labels)
        return [
            "–" if index is None else f"{index:,}",
            f"{row.sequence:,}",
            row.places,
            f"{real[0]:,}–{real[-1]:,}",
            f"{learned:,}",
            f"{len(row.ids) - len(tokens):,}",
            *(Span(short(self.decode(part), 40), "mono") for part in (tokens[:ENDS], tokens[-ENDS:])),
        ]
