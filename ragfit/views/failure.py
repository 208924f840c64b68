"""Why a notebook failed, at its top: papermill's own cell there only says in which cell to look."""

from ragfit.draw.html import AS_IT_STANDS, WARNING, Html, badge, escape
from ragfit.draw.text import plain
from ragfit.draw.view import View
from ragfit.errors import RagfitError, first_line


class FailureView(View):
    """The error that a cell ended with; nothing where there was none."""

    def __init__(self, error=None):
        self.error = error

    def _sentence(self):
        if isinstance(self.error, RagfitError):
            return plain(self.error)
        return plain(f"{type(self.error).__name__}: {first_line(self.error)}")

    def text(self):
        return "" if self.error is None else f"This notebook failed: {self._sentence()}"

    def html(self):
        if self.error is None:
            return Html("")
        return Html(
            f'<div class="{AS_IT_STANDS}">{badge("This notebook failed", WARNING)} {escape(self._sentence())}</div>'
        )


def failure_on_top():
    """Keep a place in this cell's output, and put the error there that ends a later cell. For the first cell of a notebook."""
    from IPython import get_ipython
    from IPython.display import display

    shell = get_ipython()
    if shell is None:
        return
    for old in [hook for hook in shell.events.callbacks["post_run_cell"] if getattr(hook, "of_ragfit", False)]:
        shell.events.unregister("post_run_cell", old)
    handle = display(FailureView(), display_id=True)
    shown = []

    def hook(result):
        error = result.error_before_exec or result.error_in_exec
        if error is not None or shown:
            handle.update(FailureView(error))
            shown[:] = [error] if error is not None else []

    hook.of_ragfit = True
    shell.events.register("post_run_cell", hook)
