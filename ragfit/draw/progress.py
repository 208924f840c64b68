"""What a user is told on the way: news, and progress bars as text."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm


def in_notebook() -> bool:
    """Whether outputs can be updated in place: an IPython with a kernel, not a terminal."""
    return "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def _stream() -> TextIO:
    return sys.stdout if in_notebook() else sys.stderr  # a notebook paints stderr red; elsewhere stdout has results


def say(text: str) -> None:
    """Tell the user something that is no warning. An unconfigured notebook shows nothing that is logged as news."""
    with contextlib.suppress(OSError):  # a terminal that is gone ends no run
        print(text, file=_stream(), flush=True)


def print_any_text() -> None:
    """Print escapes where a terminal or a log is not UTF-8; else a single character of the data would end a run."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def progress_bar(*args: object, **kwargs: object) -> tqdm:
    """A bar that shows itself after two seconds. One of widgets would stand at 0 % in a notebook that is read later."""
    return tqdm(*args, **{"file": _stream(), "mininterval": 1.0, "delay": 2, **kwargs})


@contextlib.contextmanager
def weights_bar() -> Iterator[None]:
    """transformers' bars of loading weights as such text."""
    from transformers.utils import logging

    before = logging.set_tqdm_hook(lambda factory, args, kwargs: progress_bar(*args, **kwargs))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
