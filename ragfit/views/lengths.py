"""How long the rows are, and where `max_sequence_len` falls."""

import math
from typing import Any

from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Note, Picture, Table
from ragfit.draw.figure import INK, count_on, figure, finish, legend_below
from ragfit.draw.text import counted
from ragfit.draw.view import View

COLUMNS = ("prompt", "completion", "whole row")


class LengthsView(View):
    """Histograms of prompt, completion and whole rows in tokens, of the rows that `ragfit.prepare` gave."""

    title = "Lengths"

    def __init__(self, prepared: Prepared):
        self.train, self.limit = prepared.report.train, prepared.cfg.model.get("max_sequence_len")
        self.lengths = {}
        for part in ("train", "dev"):
            columns = zip(*((*pair, sum(pair)) for pair in prepared.report.part(part).lengths), strict=True)
            self.lengths |= {(part, name): sorted(column) for name, column in zip(COLUMNS, columns, strict=False)}

    def blocks(self) -> list[Block]:
        said = f"{self.train.loss_share:.1%} of the training tokens have loss."
        if self.limit:
            dropped, cut = counted(len(self.train.rejected_lengths), "row"), len(self.train.cut)
            said += f" max_sequence_len is {self.limit:,}: {dropped} dropped as too long, {cut:,} cut."
        rows = []
        for (part, name), lengths in self.lengths.items():
            places = (0, len(lengths) // 2, int((len(lengths) - 1) * 0.95), -1)
            rows.append([f"{part}, {name}", *(f"{lengths[place]:,}" for place in places)])
        head = ["tokens", "shortest", "median", "95th percentile", "longest"]
        picture = Picture(self._figure, f"Histograms of lengths in tokens. {said}")
        return [Note((Bar(self.train.loss_share), said)), picture, Table(head, rows, right=(1, 2, 3, 4))]

    def _figure(self) -> Any:
        drawn = figure(2.5)
        for axis, name in zip(drawn.subplots(1, 3), COLUMNS, strict=True):
            stacks = [("train", self.lengths["train", name], style.BLUE)]
            stacks.append(("dropped", self.train.rejected_lengths if name == "whole row" else [], style.RED))
            stacks.append(("dev", self.lengths.get(("dev", name)), style.ORANGE))
            parts, lengths, colours = zip(*(stack for stack in stacks if stack[1]), strict=True)
            labels = [f"{part}, {counted(len(of), 'row')}" for part, of in zip(parts, lengths, strict=True)]
            low, high = min(map(min, lengths)), max(map(max, lengths))
            step = math.ceil((high - low + 1) / 24)
            bins = [low - 0.5 + step * n for n in range((high - low) // step + 2)]
            axis.hist(lengths, bins, stacked=True, color=colours, label=labels)
            if len(bins) < 8:
                axis.set_xlim(max(0, low - 4), high + 4)
            if self.limit and name == "whole row" and self.limit <= 3 * high:
                axis.axvline(self.limit, color=INK, linewidth=1.2, label=f"max_sequence_len {self.limit:,}")
                axis.set_xlim(right=max(axis.get_xlim()[1], self.limit * 1.02))
            finish(axis, f"{name}, tokens")
            count_on(axis)
        drawn.axes[0].set_ylabel("rows")
        legend_below(drawn)
        return drawn
