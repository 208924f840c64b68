"""Why a notebook failed, at its top: papermill's own cell there only says in which cell to look."""

from typing import TYPE_CHECKING

from ragfit.draw.blocks import Block, Callout, Span
from ragfit.draw.html import AS_IT_STANDS, SANS, block
from ragfit.draw.text import lines
from ragfit.draw.view import View
from ragfit.errors import RagfitError, first_line

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult


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


class _TellFailure:
    """Called after each cell: shows the error of one that failed, and takes it away once a later one succeeds."""

    def __init__(self):
        from IPython.display import display

        self.handle, self.shown = display(FailureView(), display_id=True), False

    def __call__(self, result: "ExecutionResult") -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is not None or self.shown:
            self.handle.update(FailureView(error))
            self.shown = error is not None


def failure_on_top() -> None:
    """Keep a place in the output of this cell, a notebook's first, and put the error there that ends a later cell."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    for old in [hook for hook in shell.events.callbacks["post_run_cell"] if isinstance(hook, _TellFailure)]:
        shell.events.unregister("post_run_cell", old)
    shell.events.register("post_run_cell", _TellFailure())
