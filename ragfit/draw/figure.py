"""matplotlib figures in the look of the views: no paper of their own, and an ink that reads on white and on black."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE = "#71767d", "#8b949e"


def figure(height: float) -> "Figure":
    """An empty figure, its height in inches. It is made without pyplot, so that nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8.4, height), dpi=110, layout="constrained", facecolor="none")


def finish(axis: "Axes", title: str) -> None:
    """Give a plot its title, and a frame, ticks and a grid that do not draw attention."""
    axis.set_facecolor("none")
    axis.set_title(title, fontsize=9.5, loc="left", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(LINE)
    axis.tick_params(labelsize=8.5, colors=INK, length=3)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=INK, fontsize=8.5)
    axis.grid(axis="y", color=LINE, alpha=0.25, linewidth=0.8)
    axis.set_axisbelow(True)


def legend_below(drawn: "Figure") -> None:
    """One legend for all plots of a figure, taken from the last, where it hides no data."""
    handles, names = drawn.axes[-1].get_legend_handles_labels()
    if names:
        drawn.legend(
            handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5, frameon=False, labelcolor=INK
        )
