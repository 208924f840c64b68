"""The live display of a run: one output that is updated in place, and a few plain lines for the log."""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Line, Picture, Span, Table
from ragfit.draw.progress import in_notebook
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import TrainerControl as Control
    from transformers import TrainerState as State
    from transformers import TrainingArguments as Args

EVERY = 2.0  # seconds between two updates of the display, at least
LINES = {"loss": 16, "eval_loss": 8}  # at most so many printed lines of each
NAMES = {"loss": "loss", "eval_loss": "dev loss"}


def _print(line: str) -> None:
    """Print a line; a terminal that is gone ends no run."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


class LossCurve(View):
    """What a run has logged so far, read off the trainer's own `state.log_history`: progress, losses, and the curve.

    Has the methods of a `transformers.TrainerCallback`; `loss_curve()` makes one that is.

    Args:
        show: whether to update a live display; where None, whether this is a notebook.
        write: a function that takes a plain line; prints it where None.
    """

    title = "Training"

    def __init__(self, show: bool | None = None, write: Callable[[str], object] | None = None):
        self.show, self.write = in_notebook() if show is None else show, write or _print
        self.state, self.doing = None, "not begun"
        self._reset()

    def _reset(self, first_step: int = 0) -> None:
        self.first, self.began, self.best, self.batches = first_step, time.monotonic(), None, 0
        self._tokens, self._next_line = [], dict.fromkeys(LINES, 0.0)
        self._handle, self._next_update = None, 0.0

    # What the trainer calls.

    def on_train_begin(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        if not state.is_world_process_zero:
            self.show, self.write = False, lambda line: None
        self.state, self.doing = state, "running"
        self._reset(state.global_step)
        self.write(f"training: {state.max_steps:,} steps{f', going on from step {self.first:,}' if self.first else ''}")
        self._update()

    def on_substep_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        if state.global_step == self.first:  # until a step is done, its batches are the sign of life
            self.batches += 1
            if self._update():
                self.write(f"first step: batch {self.batches} of {args.gradient_accumulation_steps}")

    def on_step_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self.state, self.batches = state, 0
        self._update()

    def on_log(self, args: "Args", state: "State", control: "Control", logs: dict[str, float], **kwargs) -> None:
        if self.doing != "running":  # an evaluation before or after the run
            return
        self.state = state
        if "num_tokens" in logs:
            self._tokens = [*self._tokens[:1], (time.monotonic(), logs["num_tokens"])]
        for key in LINES.keys() & logs:
            if state.global_step >= self._next_line[key]:
                self._next_line[key] = state.global_step + max(1, state.max_steps / LINES[key])
                rate = f"  lr {logs['learning_rate']:.1e}" if "learning_rate" in logs else ""
                left = f", {self._left()} left" if self._left() else ""
                self.write(f"step {self._of()}  {NAMES[key]} {logs[key]:.3f}{rate}  {self._elapsed()} elapsed{left}")
        self._update()

    def on_train_end(self, args: "Args", state: "State", control: "Control", **kwargs) -> None:
        self.state, self.doing = state, "done" if state.global_step >= state.max_steps else "stopped"
        self.best = state.best_global_step if args.load_best_model_at_end and state.best_model_checkpoint else None
        self._update(force=True)
        self.write(self._sentence())

    # What is known.

    def logged(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each time that a number was logged."""
        history = self.state.log_history if self.state else []
        return [(entry["step"], entry[key]) for entry in history if isinstance(entry.get(key), int | float)]

    def _elapsed(self) -> str:
        return tqdm.format_interval(time.monotonic() - self.began)

    def _left(self) -> str:
        """The time to the end at the pace so far; "" where it is not known."""
        done, total = self.state.global_step - self.first, self.state.max_steps
        left = (time.monotonic() - self.began) / done * (total - self.first - done) if done else 0
        return tqdm.format_interval(left) if done and self.doing == "running" else ""

    def _of(self) -> str:
        return f"{self.state.global_step}/{self.state.max_steps}"

    def _sentence(self) -> str:
        """How the run stands, with the figures of the weights that it leaves."""
        step = self.state.global_step if self.best is None else self.best
        kept = "" if self.best is None else f", the weights kept are the best ones, of step {step}"
        at = [(NAMES[key], value) for key in NAMES for at, value in self.logged(key) if at == step]
        return f"{self.doing}: step {self._of()} in {self._elapsed()}{kept}" + "".join(f", {n} {v:.3f}" for n, v in at)

    # The display.

    def _update(self, force: bool = False) -> bool:
        """Draw anew, unless that was done a moment ago; whether it was time to."""
        began = time.monotonic()
        if began < self._next_update and not force:
            return False
        if self.show:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(self, display_id=True)
            else:
                self._handle.update(self)
        now = time.monotonic()
        self._next_update = now + max(EVERY, 50 * (now - began))  # drawing takes at most a fiftieth of the time
        return True

    @property
    def aside(self) -> Line:
        return Bar(self.state.global_step / max(self.state.max_steps, 1) if self.state else 0, "note", 200), self.doing

    def blocks(self) -> list[Block]:
        if self.state is None:
            return []
        known = {"step": self._of(), "elapsed": self._elapsed(), "left": self._left()}
        if self.batches:
            known["batches of the first step"] = str(self.batches)
        for key, name in {**NAMES, "learning_rate": "learning rate"}.items():
            if points := self.logged(key):
                known[name] = f"{points[-1][1]:.4g}"
        if len(self._tokens) == 2:
            (begin, before), (end, after) = self._tokens
            known["tokens/s"] = f"{(after - before) / max(end - begin, 1e-9):,.0f}"
        known = {name: value for name, value in known.items() if value}
        blocks: list[Block] = [Table(list(known), [list(map(Span, known.values()))])]
        if any(map(self.logged, NAMES)):
            blocks.append(Picture(self._figure, f"Loss by step. {self._sentence()}"))
        return blocks

    def _figure(self) -> "Figure":
        from ragfit.draw.figure import count_on, figure, finish, legend_below

        drawn = figure(2.6)
        axis = drawn.subplots()
        looks = {"loss": (style.BLUE, "o-", "training loss"), "eval_loss": (style.ORANGE, "D--", "dev loss")}
        for key, (colour, look, label) in looks.items():
            if points := self.logged(key):
                size = 3 if len(points) < 60 else 0
                axis.plot(*zip(*points, strict=True), look, color=colour, label=label, linewidth=1.4, markersize=size)
        axis.set_xlim(0, self.state.max_steps * 1.02)  # with room for the last point
        axis.set_xlabel("step")
        finish(axis, "mean loss of the completion tokens (nats)")
        count_on(axis, "x")
        legend_below(drawn)
        return drawn


def loss_curve(show: bool | None = None) -> LossCurve:
    """A `LossCurve` that transformers' Trainer takes as a callback. Imports transformers, so call it when training."""
    from transformers import TrainerCallback

    return type("LossCurveCallback", (LossCurve, TrainerCallback), {})(show)
