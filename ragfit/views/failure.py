"""Why a notebook failed, at its top: papermill's own cell there only says in which cell to look."""

from typing import TYPE_CHECKING

from ragfit.draw.blocks import Block, Callout, Span
from ragfit.draw.html import AS_IT_STANDS, SANS, block
from ragfit.draw.text import lines
from ragfit.draw.view import View
from ragfit.errors import RagfitError, first_line

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult

PLACE = "ragfit-failure"  # the display's name in a notebook


class FailureView(View):
    """The error that a cell ended with; nothing where there was none."""

    title = "This notebook failed"

    def __init__(self, error: BaseException | None = None):
        self.error = error

    def blocks(self) -> list[Block]:
        if self.error is None:
            return []
        name = type(self.error).__name__
        said = str(self.error) if isinstance(self.error, RagfitError) else f"{name}: {first_line(self.error)}"
        return [Callout((Span(f"{self.title}:"), f" {said}"), "bad")]

    def html(self) -> str:
        told = "".join(map(block, self.blocks()))
        return told and f'<div class="{AS_IT_STANDS}" style="{SANS};font-size:13px">{told}</div>'

    def text(self) -> str:
        return "".join(lines(self.blocks())).strip(" !")


def failure_on_top() -> None:
    """Keep a place in the output of this cell, a notebook's first, and put the error there that ends a later cell."""
    from IPython import get_ipython
    from IPython.display import display

    if shell := get_ipython():
        display(FailureView(), display_id=PLACE)
        shell.events.register("post_run_cell", _tell)  # once, however often this cell is run


def _tell(result: "ExecutionResult") -> None:
    """Called after each cell: shows the error of one that failed, and takes it away once a later one succeeds."""
    from IPython.display import update_display

    update_display(FailureView(result.error_before_exec or result.error_in_exec), display_id=PLACE)
