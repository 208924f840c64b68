"""matplotlib figures in the look of the views."""

from typing import TYPE_CHECKING

from ragfit.draw.html import LINE, PAPER, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(height: float) -> "Figure":
    """An empty figure, its height in inches. It is made without pyplot, so that nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8.4, height), dpi=110, layout="constrained", facecolor=PAPER[0])


def finish(axis: "Axes", title: str) -> None:
    """Give a plot its title, and a frame, ticks and a grid that do not draw attention."""
    axis.set_title(title, fontsize=9, loc="left", color=PAPER[1])
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(LINE)
    axis.tick_params(labelsize=8, colors=QUIET[1], length=3)
    axis.grid(axis="y", color="#eceff3", linewidth=0.8)
    axis.set_axisbelow(True)
