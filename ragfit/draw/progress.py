"""What a user is told on the way: news, and progress bars as text, of which a saved notebook keeps how they ended.

A bar of widgets (`tqdm.notebook`) would stand at 0 % in a notebook that is read later.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether outputs can be updated in place: an IPython with a kernel, not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def news_stream() -> TextIO:
    """Where news and bars go: stdout in a notebook, which paints stderr red, and elsewhere stderr, off the results."""
    return sys.stdout if in_notebook() else sys.stderr


def say(text: str) -> None:
    """Tell the user something that is no warning. An unconfigured notebook shows nothing that is logged as news."""
    with contextlib.suppress(OSError):  # a terminal that is gone ends no run
        print(text, file=news_stream(), flush=True)


def print_any_text() -> None:
    """Print escapes where a terminal or a log is not UTF-8; else a single character of the data would end a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def progress_bar(*args: object, **kwargs: object) -> "tqdm":
    """A `tqdm.tqdm` where news go, which shows itself once the work has taken two seconds."""
    from tqdm import tqdm

    return tqdm(*args, **{"file": news_stream(), "mininterval": 1.0, "delay": 2, **kwargs})


@contextlib.contextmanager
def weights_bar() -> Iterator[None]:
    """transformers' bars of loading weights as such text."""
    from transformers.utils import logging

    def bar(factory: object, args: tuple, kwargs: dict[str, object]) -> "tqdm":
        return progress_bar(*args, **{"disable": not logging.is_progress_bar_enabled(), **kwargs})

    before = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
