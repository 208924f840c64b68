"""Stopping a run from outside: Ctrl-C, a kernel's interrupt, SIGTERM, a papermill that has gone."""

import os
import signal
import sys
import threading
import time

from ragfit.draw.progress import in_notebook

NAMES = {number: number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


class StopSignals:
    """While this context lasts, a signal asks the run to stop at the next chance instead of ending it on the spot.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that the process ignores (`nohup`) stay ignored. Python
    runs handlers in the main thread only, and elsewhere this does nothing.

    In a kernel it also notices that the kernel's parent has gone, such as a papermill that was killed; ipykernel would
    end the process within a second of that, and is held off until the context ends.
    """

    def __init__(self):
        self._asked, self._since, self._before, self._poller = None, 0.0, {}, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        self._poller = _parent_poller()
        if self._poller is not None:
            self._parent, self._polled = os.getppid(), self._poller.parent_pid
            self._poller.parent_pid = _AnyParent(1)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._poller is not None:
            self._poller.parent_pid = self._polled

    def asked(self):
        """The signal that asks to stop, or None."""
        if self._asked is None and self._poller is not None and os.getppid() != self._parent:
            self._asked = signal.SIGHUP
        return self._asked

    def ask(self, number):
        """Ask as the signal of that number would, unless it is None or one has come already."""
        if self._asked is None and number is not None:
            self._asked, self._since = number, time.monotonic()

    @property
    def why(self):
        gone = self._poller is not None and os.getppid() != self._parent and self._asked == signal.SIGHUP
        return "the end of the process that started this kernel" if gone else NAMES.get(self._asked, str(self._asked))

    def _handle(self, number, frame):
        now = time.monotonic()
        if self._asked is not None:
            # Schedulers send a signal to a process and again to its group; a person needs longer to press twice.
            if number == signal.SIGINT and self._asked == signal.SIGINT and now - self._since > 0.5:
                raise KeyboardInterrupt
            return
        self.ask(number)
        again = " Ctrl-C again stops at once, without saving." if number == signal.SIGINT else ""
        text = f"\n{NAMES[number]}: stopping as soon as this batch is done, and saving a checkpoint.{again}\n"
        os.write(1 if in_notebook() else 2, text.encode())  # print could be what was interrupted


class _AnyParent(int):
    """A process id that every other one equals: ipykernel's poller compares its parent's with it."""

    __hash__ = int.__hash__

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


def _parent_poller():
    """The thread with which a kernel watches its parent, or None outside of one."""
    module = sys.modules.get("ipykernel.kernelapp")
    if module is None or not module.IPKernelApp.initialized():
        return None
    poller = module.IPKernelApp.instance().poller
    return poller if hasattr(poller, "parent_pid") else None
