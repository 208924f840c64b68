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

from ragfit.runs.status import RunStatus
from ragfit.training.checkpoints import newest


class StopSignals:
    """While this context lasts, a signal asks the run to stop after its step; `asked` is then its number, else 0."""

    def __init__(self) -> None:
        self.asked, self._since, self._before = 0, 0.0, {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python runs handlers there alone
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under `nohup`
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Schedulers send a signal to a process and again to its group; a person needs longer to press twice.
        if number == signal.SIGINT == self.asked and time.monotonic() - self._since > 0.5:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._since = number, time.monotonic()
        said = f"\n{signal.Signals(number).name}: stopping after this step, and saving a checkpoint.\n"
        try:
            os.write(2, said.encode())  # print could be what was interrupted
        except OSError:  # the terminal is gone, and whatever is printed from here on would raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)


class RunCallback(TrainerCallback):
    """Keeps a run's status, and has transformers save and stop when a signal came: the run is `stopped` then."""

    def __init__(self, status: RunStatus, signals: StopSignals):
        self.status, self.signals, self.stopped = status, signals, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.status.set(step=state.global_step, total_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        asked = gather(torch.tensor([self.signals.asked], device=args.device))  # what one process is asked, all are
        self.signals.asked = self.signals.asked or int(asked.max())
        if self.signals.asked and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True
        self.status.beat(step=state.global_step)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.stopped:  # nothing of an epoch's end is due
            control.should_log = control.should_evaluate = control.should_save = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        known, logs = {"loss": "loss", "eval_loss": "dev_loss"}, kwargs["logs"]
        self.status.beat(**{name: logs[key] for key, name in known.items() if key in logs})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.status.set(last_checkpoint=str(newest(args.output_dir)), step=state.global_step)
