"""How long the rows are, and where `max_sequence_len` falls."""

import math

from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Note, Picture, Table
from ragfit.draw.view import View

_NAMES = ("prompt", "completion", "whole row")


class LengthsView(View):
    """Histograms of prompt, completion and whole rows in tokens.

    Args:
        prepared: of `ragfit.prepare`.
    """

    title = "Lengths"

    def __init__(self, prepared):
        report = prepared.report
        self.limit = prepared.cfg.model.get("max_sequence_len")
        self.parts = {
            name: _columns(getattr(report, name).lengths) for name in ("train", "dev") if getattr(report, name).lengths
        }
        self.rejected = list(report.train.rejected_lengths)
        self.loss, self.tokens = report.train.loss_tokens, report.train.tokens
        self.cut = len(report.train.cut)

    def _rows(self):
        for part, columns in self.parts.items():
            for name, lengths in zip(_NAMES, columns, strict=True):
                lengths = sorted(lengths)
                middle, high = lengths[len(lengths) // 2], lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))]
                yield [f"{part}, {name}", *(f"{value:,}" for value in (lengths[0], middle, high, lengths[-1]))]

    def _sentence(self):
        share = self.loss / max(self.tokens, 1)
        text = f"{share:.1%} of the training tokens have loss."
        if self.limit:
            text += (
                f" max_sequence_len is {self.limit:,}: {len(self.rejected):,} rows dropped as longer, {self.cut:,} cut."
            )
        return text

    def blocks(self) -> list[Block]:
        return [
            Note((Bar(self.loss / max(self.tokens, 1)), self._sentence())),
            Picture(self._figure, f"Histograms of lengths in tokens. {self._sentence()}"),
            Table(["tokens", "shortest", "median", "95 % up to", "longest"], list(self._rows()), right=(1, 2, 3, 4)),
        ]

    def _figure(self):
        figure = style.figure(2.5)
        axes = figure.subplots(1, 3)
        colours = (style.BLUE, style.LOSS_EDGE, "#6b4fc0")
        for place, (axis, name, colour) in enumerate(zip(axes, _NAMES, colours, strict=True)):
            lengths = self.parts["train"][place]
            rejected = self.rejected if name == "whole row" else []
            reach = [*lengths, *rejected] + (self.parts["dev"][place] if "dev" in self.parts else [])
            low, high = min(reach), max(reach)
            width = math.ceil((high - low + 1) / min(24, max(8, len(reach) // 4)))
            bins = [low - 0.5 + width * step for step in range((high - low) // width + 2)]
            axis.hist(lengths, bins=bins, color=colour, label="train")
            if rejected:
                axis.hist(rejected, bins=bins, color="#f6c5bd", hatch="///", edgecolor="#94180c", label="dropped")
            if "dev" in self.parts:
                axis.hist(
                    self.parts["dev"][place],
                    bins=bins,
                    histtype="step",
                    color=style.ORANGE,
                    linestyle="--",
                    label="dev",
                )
            if self.limit and name == "whole row" and self.limit <= 3 * high:
                axis.axvline(self.limit, color="#94180c", linewidth=1.2, label=f"max_sequence_len {self.limit:,}")
            axis.set_title(f"{name}, tokens", fontsize=9, loc="left", color=style.PAPER[1])
            if len(bins) < 8:
                axis.set_xlim(low - 4, high + 4)
            style.strip_axes(axis)
            axis.locator_params(integer=True, nbins=6)
        axes[0].set_ylabel("rows", fontsize=8)
        handles, names = axes[2].get_legend_handles_labels()
        if len(names) > 1:
            figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
        return figure


def _columns(lengths):
    return [[p for p, _ in lengths], [c for _, c in lengths], [p + c for p, c in lengths]]
