"""Stopping a run from outside: Ctrl-C, a kernel's interrupt, SIGTERM."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

from ragfit.draw.progress import in_notebook

NAMES = {number: number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


class StopSignals:
    """While this context lasts, a signal asks the run to stop after its step instead of ending it on the spot.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that the process ignores (`nohup`) stay ignored. Python
    runs handlers in the main thread only, and elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._asked, self._since, self._before = None, 0.0, {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> int | None:
        """The number of the signal that asks to stop, or None."""
        return self._asked

    def ask(self, number: int | None) -> None:
        """Ask as the signal of that number would, unless it is None or one has come already."""
        if self._asked is None and number is not None:
            self._asked, self._since = number, time.monotonic()

    @property
    def why(self) -> str:
        return NAMES.get(self._asked, str(self._asked))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            # Schedulers send a signal to a process and again to its group; a person needs longer to press twice.
            if number == signal.SIGINT == self._asked and time.monotonic() - self._since > 0.5:
                raise KeyboardInterrupt
            return
        self.ask(number)
        again = " Ctrl-C again stops at once, without saving." if number == signal.SIGINT else ""
        text = f"\n{NAMES[number]}: stopping as soon as this step is done, and saving a checkpoint.{again}\n"
        os.write(1 if in_notebook() else 2, text.encode())  # print could be what was interrupted
