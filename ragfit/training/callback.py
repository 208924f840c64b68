"""What a run does beside training: it keeps its status, and stops with a checkpoint when a signal asks it to."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

import torch
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ragfit.draw.progress import in_notebook
from ragfit.runs.status import RunStatus
from ragfit.training.checkpoints import newest


class StopSignals:
    """While this context lasts, a signal asks the run to stop after its step instead of ending it on the spot.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that the process ignores (`nohup`) stay ignored. Python
    runs handlers in the main thread only, and elsewhere this does nothing.

    Attributes:
        asked: the number of the signal that asks to stop; 0 while none does.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked, self._since, self._before = 0, 0.0, {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def why(self) -> str:
        return signal.Signals(self.asked).name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            # Schedulers send a signal to a process and again to its group; a person needs longer to press twice.
            if number == signal.SIGINT == self.asked and time.monotonic() - self._since > 0.5:
                raise KeyboardInterrupt
            return
        self.asked, self._since = number, time.monotonic()
        again = " Ctrl-C again stops at once, without saving." if number == signal.SIGINT and not in_notebook() else ""
        text = f"\n{self.why}: stopping as soon as this step is done, and saving a checkpoint.{again}\n"
        try:
            os.write(1 if in_notebook() else 2, text.encode())  # print could be what was interrupted
        except OSError:  # the terminal is gone, and whatever is printed from here on would raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (1, 2):
                os.dup2(nowhere, descriptor)


class RunCallback(TrainerCallback):
    """Keeps a run's status, and has transformers save and stop when a signal came.

    Attributes:
        stopped: whether the run ended before its last step because it was asked to.
    """

    def __init__(self, status: RunStatus, signals: StopSignals):
        self.status, self.signals, self.stopped = status, signals, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.status.set(step=state.global_step, total_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.world_size > 1:  # what one process is asked, all are
            asked = int(gather(torch.tensor([self.signals.asked], device=args.device)).max())
            self.signals.asked = self.signals.asked or asked
        if self.signals.asked and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
            control.should_save |= bool(state.epoch % 1)  # at the end of an epoch, once that is evaluated
        self.status.beat(step=state.global_step)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.stopped and state.epoch % 1:  # in the middle of an epoch nothing of its end is due
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stopped:
            control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        known = {"loss": "loss", "eval_loss": "dev_loss"}
        self.status.beat(**{name: logs[key] for key, name in known.items() if key in (logs or {})})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.status.set(last_checkpoint=str(newest(args.output_dir)), step=state.global_step)
