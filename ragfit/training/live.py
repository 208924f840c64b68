"""The live display of a run: one output that is updated in place, and a few plain lines for the log."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Callout, Line, Picture, Span, Table
from ragfit.draw.progress import in_notebook
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import TrainerControl as Control
    from transformers import TrainerState as State
    from transformers import TrainingArguments as Args

EVERY, SELDOM = 2.0, 15.0  # seconds between two updates of the display, at least and at most
MOST_TIME = 0.02  # the share of a run's time that drawing may take in between
LINES = {"loss": 16, "eval_loss": 5}  # at most so many printed lines of each
ADVICE = (
    "if this goes on, the run is lost. Lower train.learning_rate, set train.max_grad_norm, or use bf16 instead of fp16."
)


class LossCurve(View):
    """What a run has logged so far: progress, losses, and the curve.

    Has the methods of a `transformers.TrainerCallback`; `loss_curve()` makes one that is.

    Args:
        show: whether to update a live display; where None, whether this is a notebook.
        write: a function that takes a plain line.

    Attributes:
        curves: (step, loss) of each logged training loss under `loss`, and of each dev loss under `eval_loss`.
        not_finite: for each step that logged infinity or no number, what it was.
        state: "running", "done" or "stopped".
    """

    title = "Training"

    def __init__(self, show: bool | None = None, write: Callable[[str], object] = print):
        self.show, self.write = in_notebook() if show is None else show, write
        self._reset()

    def _reset(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {"loss": [], "eval_loss": []}
        self.not_finite: dict[int, str] = {}
        self.last: dict[str, float] = {}
        self.step = self.first_step = self.total = 0
        self.epoch = self.epochs = None
        self.state = "running"
        self._tokens: list[tuple[float, float]] = []  # (time, tokens so far): the first and the last that were logged
        self._next_line = {"loss": 0.0, "eval_loss": 0.0}  # the step from which another one is printed
        self._handle, self._next_update = None, 0.0
        self.began = self.now = time.monotonic()

    # What the trainer calls.

    def on_train_begin(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self._reset()
        if not state.is_world_process_zero:
            self.show, self.write = False, lambda line: None
        self.total = state.max_steps
        self.step = self.first_step = state.global_step
        self.epochs = args.num_train_epochs if args.max_steps <= 0 else None
        for entry in state.log_history:  # of the run that this one goes on from
            for name in self.curves.keys() & entry:
                self.curves[name].append((entry["step"], entry[name]))
        resumed = f", going on from step {self.step:,}" if self.step else ""
        self.write(f"training: {self.total:,} steps{resumed}")
        self._update()

    def on_substep_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self._update()

    def on_step_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self.step, self.epoch = state.global_step, state.epoch
        self._update()

    def on_log(self, args: "Args", state: "State", control: "Control", logs: dict[str, float], **kwargs) -> None:
        """Take numbers by name, of the current step."""
        self.step, self.epoch, self.now = state.global_step, state.epoch, time.monotonic()
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        self.last |= numbers
        if "num_tokens" in numbers:
            self._tokens = [*self._tokens[:1], (self.now, numbers["num_tokens"])]
        for name in ("loss", "eval_loss", "grad_norm"):
            value = numbers.get(name, 0.0)
            if not math.isfinite(value) and self.step not in self.not_finite:
                self.not_finite[self.step] = f"{name} was {value}"
                if len(self.not_finite) <= 3:
                    self.write(f"step {self._of()}  {name} is {value}: {ADVICE}")
        for name in self.curves.keys() & numbers:
            self.curves[name].append((self.step, numbers[name]))
            if self.step >= self._next_line[name]:
                self._next_line[name] = self.step + max(1, self.total / LINES[name])
                self.write(self._line() if name == "loss" else f"step {self._of()}  dev loss {numbers[name]:.3f}")
        self._update()

    def on_train_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self.step, self.epoch = state.global_step, state.epoch
        self.state = "done" if self.step >= self.total else "stopped"  # by a signal, or by early stopping
        self._update(force=True)
        self.write(self._sentence())

    # What is known.

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.now - self.began

    @property
    def left(self) -> float | None:
        """Seconds to the end at the pace so far."""
        steps = self.step - self.first_step
        return self.elapsed / steps * (self.total - self.step) if steps > 0 and self.total else None

    @property
    def speed(self) -> float | None:
        """Tokens a second."""
        if len(self._tokens) < 2:
            return None
        (begin, before), (end, after) = self._tokens
        return (after - before) / max(end - begin, 1e-9)

    def _of(self) -> str:
        return f"{self.step}/{self.total}" if self.total else f"{self.step}"

    def _line(self) -> str:
        rate = f"  lr {self.last['learning_rate']:.1e}" if "learning_rate" in self.last else ""
        left = f", {tqdm.format_interval(self.left)} left" if self.left is not None else ""
        return (
            f"step {self._of()}  loss {self.last['loss']:.3f}{rate}  {tqdm.format_interval(self.elapsed)} elapsed{left}"
        )

    def _sentence(self) -> str:
        parts = [f"{self.state}: step {self._of()} in {tqdm.format_interval(self.elapsed)}"]
        if self.curves["loss"]:
            parts.append(f"last training loss {self.curves['loss'][-1][1]:.3f}")
        if "train_loss" in self.last:
            parts.append(f"mean {self.last['train_loss']:.3f}")
        if self.curves["eval_loss"]:
            parts.append(f"dev loss {self.curves['eval_loss'][-1][1]:.3f}")
        return ", ".join(parts)

    # The display.

    def _update(self, force: bool = False) -> None:
        self.now = time.monotonic()
        if not self.show or (self.now < self._next_update and not force):
            return
        from IPython.display import display

        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)
        took = time.monotonic() - self.now
        self._next_update = time.monotonic() + min(max(EVERY, took / MOST_TIME), SELDOM)

    @property
    def aside(self) -> Line:
        return Bar(self.step / self.total if self.total else 0.0, "note", 200), self.state

    def blocks(self) -> list[Block]:
        train, dev = self.curves["loss"], self.curves["eval_loss"]
        facts = {
            "step": self._of(),
            "epoch": self.epoch is not None and f"{self.epoch:.2f}" + (f" of {self.epochs:g}" if self.epochs else ""),
            "loss": train and f"{train[-1][1]:.4f}",
            "dev loss": dev and f"{dev[-1][1]:.4f}",
            "learning rate": "learning_rate" in self.last and f"{self.last['learning_rate']:.2e}",
            "elapsed": tqdm.format_interval(self.elapsed),
            "left": self.left is not None and self.state == "running" and tqdm.format_interval(self.left),
            "tokens/s": self.speed and f"{self.speed:,.0f}",
        }
        known = {name: value for name, value in facts.items() if value}
        blocks: list[Block] = [Table(list(known), [list(map(Span, known.values()))])]
        if self.not_finite:
            (step, what), *more = self.not_finite.items()
            others = f" and not finite at {len(more):,} more steps" if more else ""
            blocks.append(Callout(f"{what} at step {step:,}{others}: {ADVICE}", "bad"))
        if train or dev:
            spark = f"loss {sparkline([loss for _, loss in train])}" if len(train) > 1 else ""
            blocks.append(Picture(self._figure, f"Loss by step. {self._sentence()}", spark))
        return blocks

    def _figure(self) -> "Figure":
        import pandas

        from ragfit.draw.figure import figure, finish, legend_below

        drawn = figure(2.6)
        axis = drawn.subplots()
        train, dev = (
            pandas.Series({step: loss for step, loss in curve if math.isfinite(loss)}, dtype=float)
            for curve in self.curves.values()
        )
        if len(train) > 40:
            smooth = train.ewm(alpha=1 / max(2, len(train) / 20)).mean()
            axis.plot(train.index, train, color=style.BLUE, alpha=0.35, linewidth=1.2)
            axis.plot(train.index, smooth, color=style.BLUE, linewidth=1.8, label="training loss, smoothed")
        elif len(train):
            axis.plot(
                train.index, train, color=style.BLUE, linewidth=1.4, marker="o", markersize=3, label="training loss"
            )
        if len(dev):
            look = {"marker": "D", "markersize": 5, "linestyle": "--", "linewidth": 1.2, "clip_on": False}
            axis.plot(dev.index, dev, color=style.ORANGE, label="dev loss", **look)
        for step in self.not_finite:
            axis.axvline(step, color=style.RED, linestyle=":", linewidth=1)
        if self.total:
            axis.set_xlim(0, self.total)
        axis.set_xlabel("step")
        finish(axis, "mean loss of the completion tokens (nats)")
        legend_below(drawn)
        return drawn


def loss_curve(show: bool | None = None) -> LossCurve:
    """A `LossCurve` that transformers' Trainer takes as a callback. Imports transformers, so call it when training."""
    from transformers import TrainerCallback

    return type("LossCurveCallback", (LossCurve, TrainerCallback), {})(show)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Values as a line of blocks; `!` where one is not finite."""
    values = values[:: max(1, math.ceil(len(values) / width))]
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, height = min(finite), max(finite) - min(finite) or 1
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) / height * 7)] if math.isfinite(v) else "!" for v in values)
