"""How long the rows are, and where `max_sequence_len` falls."""

import math
from typing import TYPE_CHECKING

from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Note, Picture, Table
from ragfit.draw.figure import count_on, figure, finish, legend_below
from ragfit.draw.text import counted
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"prompt": style.BLUE, "completion": style.GREEN, "whole row": style.PURPLE}


class LengthsView(View):
    """Histograms of prompt, completion and whole rows in tokens.

    Args:
        prepared: of `ragfit.prepare`.
    """

    title = "Lengths"

    def __init__(self, prepared: Prepared):
        self.report, self.limit = prepared.report, prepared.cfg.model.get("max_sequence_len")
        self.lengths = {}
        for part in ("train", "dev"):
            if lengths := self.report.part(part).lengths:
                prompts, completions = map(list, zip(*lengths, strict=True))
                columns = prompts, completions, list(map(sum, lengths))
                self.lengths |= {(part, name): column for name, column in zip(_COLOURS, columns, strict=True)}

    def blocks(self) -> list[Block]:
        train = self.report.train
        said = f"{train.loss_share:.1%} of the training tokens have loss."
        if self.limit:
            dropped, cut = len(train.rejected_lengths), len(train.cut)
            said += f" max_sequence_len is {self.limit:,}: {counted(dropped, 'row')} dropped as too long, {cut:,} cut."
        rows = []
        for (part, name), lengths in self.lengths.items():
            lengths, count = sorted(lengths), len(lengths)
            places = (0, count // 2, min(count - 1, int(count * 0.95)), -1)
            rows.append([f"{part}, {name}", *(f"{lengths[place]:,}" for place in places)])
        head = ["tokens", "shortest", "median", "95th percentile", "longest"]
        picture = Picture(self._figure, f"Histograms of lengths in tokens. {said}")
        return [Note((Bar(train.loss_share), said)), picture, Table(head, rows, right=(1, 2, 3, 4))]

    def _figure(self) -> "Figure":
        drawn = figure(2.5)
        axes = drawn.subplots(1, 3)
        for axis, (name, colour) in zip(axes, _COLOURS.items(), strict=True):
            train, dev = (self.lengths.get((part, name), []) for part in ("train", "dev"))
            dropped = self.report.train.rejected_lengths if name == "whole row" else []
            every = train + dev + dropped
            low, high = min(every), max(every)
            width = math.ceil((high - low + 1) / min(24, max(8, len(every) // 4)))
            bins = [low - 0.5 + width * step for step in range((high - low) // width + 2)]
            axis.hist(train, bins=bins, color=colour, label=f"train, {counted(len(train), 'row')}")
            if dropped:
                look = {"color": "#f6c5bd", "hatch": "///", "edgecolor": style.BAD.ink}
                axis.hist(dropped, bins=bins, label=f"dropped, {counted(len(dropped), 'row')}", **look)
            if dev:
                look = {"histtype": "step", "color": style.ORANGE, "linestyle": "--"}
                axis.hist(dev, bins=bins, label=f"dev, {counted(len(dev), 'row')}", **look)
            if len(bins) < 8:
                axis.set_xlim(max(0, low - 4), high + 4)
            if self.limit and name == "whole row" and self.limit <= 3 * high:
                axis.axvline(self.limit, color=style.RED, linewidth=1.2, label=f"max_sequence_len {self.limit:,}")
                axis.set_xlim(right=max(axis.get_xlim()[1], self.limit * 1.02))
            finish(axis, f"{name}, tokens")
            count_on(axis)
        axes[0].set_ylabel("rows")
        legend_below(drawn)
        return drawn
