"""Progress bars as text: a notebook keeps such a line as it ended, and a widget's as it began."""

import contextlib
import sys


def in_notebook():
    """Whether outputs can be updated in place: an IPython with a kernel, not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def progress_bar(*args, **kwargs):
    """A `tqdm.tqdm`, on stdout in a notebook (which paints stderr red), drawn once a second."""
    from tqdm import tqdm

    return tqdm(*args, **{"file": sys.stdout if in_notebook() else sys.stderr, "mininterval": 1.0, **kwargs})


@contextlib.contextmanager
def weights_bar():
    """transformers' bar of loading weights as text, and only where loading takes longer than two seconds."""
    from transformers.utils import logging

    def bar(factory, args, kwargs):
        return progress_bar(*args, **{"delay": 2, **kwargs}) if logging.is_progress_bar_enabled() else factory(*args, **kwargs)

    before = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
