"""Widgets to look at any row and try other settings, and to copy what came of it into the training notebook."""

import functools
from typing import TYPE_CHECKING

from ragfit.config.notebook import Chosen
from ragfit.data.report import Prepared
from ragfit.views.row import NoteView

if TYPE_CHECKING:
    from ragfit.views.panel import Panel


class Explorer:
    """Widgets to choose a row, change the settings of its prompt and mask, and copy them as overrides.

    Where no front end is live (papermill, nbconvert) a note stands in their place and no widget is made.

    Args:
        prepared: of `ragfit.prepare`.
        show: "prompt" or "tokens".
        chosen: of `ragfit.from_parameters`; the overrides then bring the notebook's own parameters along.
    """

    def __init__(self, prepared: Prepared, show: str = "prompt", chosen: Chosen | None = None):
        if show not in ("prompt", "tokens"):
            raise ValueError(f"show is {show!r}. Use 'prompt' or 'tokens'.")
        self.prepared, self.show, self.chosen = prepared, show, chosen

    @functools.cached_property
    def panel(self) -> "Panel":
        """The widgets, made when they are first asked for."""
        from ragfit.views.panel import Panel

        return Panel(self.prepared, self.show, self.chosen)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        note = NoteView(
            "Choose a row and change its settings",
            "This part is interactive: open the notebook in JupyterLab and choose Run All. "
            "The first rows and the rows with findings are shown above.",
        )
        # Beside a widget too: it stands where the saved notebook is read without a kernel, on GitHub for one.
        bundle = {"text/html": note.html(), "text/plain": note.text()}
        return {**self.panel.box._repr_mimebundle_(), **bundle} if live() else bundle


explore = Explorer  # as notebooks call it


def live() -> bool:
    """Whether a front end that can answer runs this cell: papermill and nbconvert say that they cannot."""
    try:
        from IPython import get_ipython

        return bool(get_ipython().kernel.get_parent("shell")["content"].get("allow_stdin"))
    except (ImportError, AttributeError, KeyError, TypeError):
        return False
