"""How long the rows are, and where `max_sequence_len` falls."""

import math
from typing import TYPE_CHECKING

from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Note, Picture, Table
from ragfit.draw.figure import INK, count_on, figure, finish, legend_below
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
            pairs = self.report.part(part).lengths
            columns = {
                "prompt": [p for p, _ in pairs],
                "completion": [c for _, c in pairs],
                "whole row": map(sum, pairs),
            }
            self.lengths |= {(part, name): list(column) for name, column in columns.items()}

    def blocks(self) -> list[Block]:
        train = self.report.train
        said = f"{train.loss_share:.1%} of the training tokens have loss."
        if self.limit:
            dropped, cut = len(train.rejected_lengths), len(train.cut)
            said += f" max_sequence_len is {self.limit:,}: {counted(dropped, 'row')} dropped as too long, {cut:,} cut."
        rows = []
        for (part, name), found in self.lengths.items():
            lengths, count = sorted(found), len(found)
            places = (0, count // 2, min(count - 1, int(count * 0.95)), -1) if found else ()
            rows += [[f"{part}, {name}", *(f"{lengths[place]:,}" for place in places)]] if found else []
        head = ["tokens", "shortest", "median", "95th percentile", "longest"]
        picture = Picture(self._figure, f"Histograms of lengths in tokens. {said}")
        return [Note((Bar(train.loss_share), said)), picture, Table(head, rows, right=(1, 2, 3, 4))]

    def _figure(self) -> "Figure":
        drawn = figure(2.5)
        axes = drawn.subplots(1, 3)
        for axis, (name, colour) in zip(axes, _COLOURS.items(), strict=True):
            whole = name == "whole row"
            dropped = self.report.train.rejected_lengths if whole else []
            stacks = {"train": self.lengths["train", name], "dropped": dropped, "dev": self.lengths["dev", name]}
            stacks = {what: lengths for what, lengths in stacks.items() if lengths}
            low, high = min(map(min, stacks.values())), max(map(max, stacks.values()))
            step = math.ceil((high - low + 1) / 24)
            bins = [low - 0.5 + step * n for n in range((high - low) // step + 2)]
            colours = [{"train": colour, "dropped": style.RED, "dev": style.ORANGE}[what] for what in stacks]
            labels = [f"{what}, {counted(len(lengths), 'row')}" for what, lengths in stacks.items()]
            axis.hist(list(stacks.values()), bins, stacked=True, color=colours, label=labels)
            if len(bins) < 8:
                axis.set_xlim(max(0, low - 4), high + 4)
            if self.limit and whole and self.limit <= 3 * high:
                axis.axvline(self.limit, color=INK, linewidth=1.2, label=f"max_sequence_len {self.limit:,}")
                axis.set_xlim(right=max(axis.get_xlim()[1], self.limit * 1.02))
            finish(axis, f"{name}, tokens")
            count_on(axis)
        axes[0].set_ylabel("rows")
        legend_below(drawn)
        return drawn
