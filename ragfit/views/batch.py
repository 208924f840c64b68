"""A batch as the trainer's collator makes it: which rows are where, and what of it is padding."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.draw.blocks import Block, Note, Span, Table
from ragfit.draw.text import counted, in_one_line
from ragfit.draw.view import View

ENDS = 6  # tokens that are shown of a row's beginning and end


@dataclass(frozen=True)
class RowInBatch:
    """A row's stretch of a batch: its sequence, its first place there, its tokens, and the padding behind them."""

    sequence: int
    start: int
    ids: list[int]
    labels: list[int]
    padding: int

    @property
    def tokens(self) -> list[int]:
        return self.ids[: len(self.ids) - self.padding]

    @property
    def places(self) -> str:
        return f"{self.start:,}–{self.start + len(self.ids) - 1:,}"


def rows_in(batch: Mapping[str, object]) -> Iterator[RowInBatch]:
    """The rows of a batch of `ragfit.collator`, padded or packed; padding behind a pack is no row."""
    for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "position_ids" not in batch:
            yield RowInBatch(number, 0, ids, labels, batch["attention_mask"][number].tolist().count(0))
            continue
        positions = batch["position_ids"][number].tolist()
        starts = [place for place, position in enumerate(positions) if position == 0]
        for start, stop in itertools.pairwise([*starts, len(ids)]):
            if stop - start > 1:  # one token alone predicts nothing
                yield RowInBatch(number, start, ids[start:stop], labels[start:stop], 0)


class BatchView(View):
    """The rows of a batch: a line for each, with its place, and how it begins and ends.

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
        self.rows, positions = list(rows_in(batch)), batch["input_ids"].numel()
        lengths = {len(row.tokens) for row in self.rows}
        near = [i for i, pair in enumerate(prepared.report.part(part).lengths) if sum(pair) in lengths]
        known = {tuple(prepared.part(part)[i]["input_ids"]): i for i in reversed(near)}
        self.indices = [known.get(tuple(row.tokens)) for row in self.rows]
        self.shortest = min(zip(self.rows, self.indices, strict=True), key=lambda pair: len(pair[0].tokens))[1]
        self.title = f"A batch of {counted(len(self.rows), f'{part} row')}"
        padding = positions - sum(len(row.tokens) for row in self.rows)
        self.aside = f"{positions:,} positions, {padding:,} of them padding ({padding / positions:.1%})"

    def blocks(self) -> list[Block]:
        said = "The rows lie end to end. Positions begin at 0 in each, by which attention keeps them apart."
        head = [f"{self.part} row", "sequence", "places", "tokens", "with loss", "padding", "begins", "ends"]
        table = Table(head, list(map(self._line, self.rows, self.indices)), right=range(6))
        return [Note(said), table] if self.packed else [table]

    def _line(self, row: RowInBatch, index: int | None) -> list[str | Span]:
        counts = (len(row.tokens), sum(label != IGNORE_INDEX for label in row.labels), row.padding)
        ends = (Span(in_one_line(self.decode(part), 40), "mono") for part in (row.tokens[:ENDS], row.tokens[-ENDS:]))
        number = "–" if index is None else f"{index:,}"
        return [number, f"{row.sequence:,}", row.places, *(f"{count:,}" for count in counts), *ends]
