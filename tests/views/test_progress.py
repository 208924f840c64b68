"""News and bars: text, which a saved notebook keeps as it ended, and not among its errors."""

import itertools
import re
import signal
import sys
import types

import pytest
from transformers.utils import logging

from ragfit.draw.progress import progress_bar, weights_bar
from ragfit.training.checkpoints import set_aside
from ragfit.training.stop import StopSignals


@pytest.fixture(params=[False, True], ids=["elsewhere", "notebook"])
def notebook(request, monkeypatch):
    import ipykernel  # noqa: F401  (that it is imported does not make this a notebook)

    if request.param:
        shell = types.SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return request.param


def test_news_is_not_red_in_a_notebook(notebook, tmp_path, capfd):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / ".saving" / "checkpoint-6").mkdir(parents=True)
    set_aside(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
    out, err = capfd.readouterr()
    said, other = (out, err) if notebook else (err, out)
    assert (
        "checkpoint-6 was half-written" in said
        and f"Kept checkpoint-5 of an earlier run in {tmp_path}/earlier.1." in said
    )
    assert "SIGINT: stopping as soon as this step is done" in said and other == ""


def test_a_bar_ends_as_text(notebook, capsys):
    assert list(progress_bar(range(4), desc="counting")) == [0, 1, 2, 3]
    out, err = capsys.readouterr()
    assert re.search(r"counting: 100%.* 4/4 ", out if notebook else err) and (err if notebook else out) == ""


def test_weights_that_load_at_once_show_none_and_others_do(monkeypatch, capsys):
    with weights_bar():
        assert list(logging.tqdm(range(4), desc="Loading weights")) == [0, 1, 2, 3]
    assert capsys.readouterr() == ("", "")
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))  # the bar's clock: each look at it takes a second
    with weights_bar():
        assert list(logging.tqdm(range(4), desc="Loading weights")) == [0, 1, 2, 3]
    assert re.search("Loading weights: 100%.* 4/4 ", "".join(capsys.readouterr()))


def test_transformers_bar_is_its_own_again(monkeypatch):
    with pytest.raises(RuntimeError), weights_bar():
        raise RuntimeError
    assert logging.set_tqdm_hook(None) is None
    monkeypatch.setattr(logging, "_tqdm_active", False)
    with weights_bar():
        assert isinstance(logging.tqdm(range(4)), logging.EmptyTqdm)
