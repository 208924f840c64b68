"""matplotlib figures: dark ink on the light paper that the page puts below them, and turns where its theme is dark."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Axes, Figure

INK, LINE = "#1f2328", "#8b949e"


def figure(height: float) -> "Figure":
    """An empty figure, its height in inches, made without pyplot, so that nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8.4, height), dpi=110, layout="constrained", facecolor="none")


def finish(axes: "Axes", title: str) -> None:
    """Give a plot its title, a quiet frame and grid, and whole points: one at the edge is not cut in half."""
    axes.set(facecolor="none", axisbelow=True)
    axes.set_title(title, fontsize=9.5, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=8.5, color=LINE, labelcolor=INK, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=8.5)
    axes.grid(axis="y", color=LINE, alpha=0.25, linewidth=0.8)
    for line in axes.lines:
        line.set_clip_on(line.get_marker() in ("None", "", None))


def count_on(axes: "Axes", axis: str = "both") -> None:
    """Ticks at whole numbers alone, however few of them there are."""
    axes.locator_params(axis, nbins=6, integer=True, min_n_ticks=1)


def legend_below(drawn: "Figure") -> None:
    """One legend for all plots of a figure, taken from the last, where it hides no data."""
    look = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "ncols": 9}
    drawn.legend(*drawn.axes[-1].get_legend_handles_labels(), loc="outside lower center", **look)
