"""The live display of a run: one output that is updated in place, and a plain line for each loss that is logged."""

import time
from typing import TYPE_CHECKING

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ragfit.draw import html as style
from ragfit.draw.blocks import Bar, Block, Line, Picture, Span, Table
from ragfit.draw.progress import in_notebook, say
from ragfit.draw.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 2.0  # seconds between two updates of the display, at least
NAMES = {"loss": "loss", "eval_loss": "dev loss", "learning_rate": "learning rate"}
LOOKS = {"loss": (style.BLUE, "o-"), "eval_loss": (style.ORANGE, "D--")}


class LossCurve(View, TrainerCallback):
    """What a run has logged so far, of the trainer's own `state.log_history`; updated in place where `show` is true."""

    title = "Training"

    def __init__(self, show: bool | None = None):
        self.show, self.state, self.doing = in_notebook() if show is None else show, None, "not begun"

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.state, self.doing, self._best, self._tokens = state, "running", None, []
        self._first, self._began, self._shown, self._next = state.global_step, time.monotonic(), None, 0.0
        self._tell(f"training: {state.max_steps - self._first:,} steps from step {self._first:,} on")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._tell()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        known = [f"{name} {kwargs['logs'][key]:.4g}" for key, name in NAMES.items() if key in kwargs["logs"]]
        if known and self.doing == "running":  # else it is an evaluation before or after the run
            if "num_tokens" in kwargs["logs"]:  # a dev loss comes without
                self._tokens = [*self._tokens[:1], (time.monotonic(), kwargs["logs"]["num_tokens"])]
            self._tell(f"step {state.global_step}/{state.max_steps}  {', '.join(known)}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.doing, self._next = "done" if state.global_step >= state.max_steps else "stopped", 0.0
        self._best = state.best_global_step if args.load_best_model_at_end and state.best_model_checkpoint else None
        self._tell(self._sentence())

    def _tell(self, line: str = "") -> None:
        """Print a line and draw anew, unless that was done a moment ago."""
        if line and self.state.is_world_process_zero:
            say(line)
        if self.show and self.state.is_world_process_zero and time.monotonic() >= self._next:
            from IPython.display import display

            self._shown = self._shown or display(display_id=True)
            self._shown.update(self)
            self._next = time.monotonic() + EVERY

    def logged(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each time that a number was logged."""
        return [(log["step"], log[key]) for log in self.state.log_history if isinstance(log.get(key), int | float)]

    def _sentence(self) -> str:
        """How the run stands, with the figures of the weights that it leaves."""
        step, elapsed = self._best or self.state.global_step, tqdm.format_interval(time.monotonic() - self._began)
        kept = f", the weights kept are the best ones, of step {step}" if self._best else ""
        at = [f", {NAMES[key]} {value:.3f}" for key in LOOKS for at, value in self.logged(key) if at == step]
        return f"{self.doing}: step {self.state.global_step}/{self.state.max_steps} in {elapsed}{kept}{''.join(at)}"

    @property
    def aside(self) -> Line:
        return Bar(self.state.global_step / max(self.state.max_steps, 1) if self.state else 0, "note", 200), self.doing

    def blocks(self) -> list[Block]:
        if self.state is None:
            return []
        step, total, elapsed = self.state.global_step, self.state.max_steps, time.monotonic() - self._began
        left = elapsed / max(step - self._first, 1) * (total - step)
        known = {"step": f"{step}/{total}", "left": tqdm.format_interval(left)}
        known |= {name: f"{points[-1][1]:.4g}" for key, name in NAMES.items() if (points := self.logged(key))}
        if len(self._tokens) == 2:
            (begin, before), (end, after) = self._tokens
            known["tokens/s"] = f"{(after - before) / max(end - begin, 1e-9):,.0f}"
        curve = [Picture(self._figure, f"Loss by step. {self._sentence()}")] * any(map(self.logged, LOOKS))
        return [Table(list(known), [list(map(Span, known.values()))]), *curve]

    def _figure(self) -> "Figure":
        from ragfit.draw.figure import count_on, figure, finish, legend_below

        drawn = figure(2.6)
        axis = drawn.subplots()
        for key, (colour, look) in LOOKS.items():
            if points := self.logged(key):
                size = 3 if len(points) < 60 else 0
                axis.plot(*zip(*points, strict=True), look, color=colour, label=NAMES[key], lw=1.4, markersize=size)
        axis.set(xlim=(0, self.state.max_steps * 1.02), xlabel="step")  # with room for the last point
        finish(axis, "mean loss of the completion tokens (nats)")
        count_on(axis, "x")
        legend_below(drawn)
        return drawn
