"""The live display of a run: one output that is updated in place, and a few plain lines for the log."""

import math
import time

from ragfit.draw import html as style
from ragfit.draw.html import Html, View, escape
from ragfit.draw.progress import in_notebook

EVERY = 2.0  # seconds between two updates of the display
LINES = 16  # at most so many printed lines for training loss, and a third of it for dev loss
MOST_TIME = 0.02  # the share of a run's time that drawing may take


class LossCurve(View):
    """What a run has logged so far: progress, losses, and the curve.

    Has the methods of a `transformers.TrainerCallback`; `loss_curve()` makes one that is.

    Args:
        total: optimizer steps of the run; taken from the trainer where None.
        show: whether to update a live display; where None, whether this is a notebook.
        write: a function that takes a plain line.
    """

    title = "Training"

    def __init__(self, total=None, show=None, write=print):
        self.total, self.show, self.write = total, in_notebook() if show is None else show, write
        self._reset()

    def _reset(self):
        self.train, self.dev, self.bad, self.last = [], [], {}, {}
        self.step = self.first_step = 0
        self.epoch = self.epochs = None
        self.how = "running"
        self._tokens = []
        self._handle, self._image, self._next, self._drawn = None, None, 0.0, 0
        self._next_line = self._next_dev_line = 0
        self.began = self.now = time.monotonic()

    # What the trainer calls.

    def on_train_begin(self, args, state, control, **kwargs):
        self._reset()
        if not state.is_world_process_zero:
            self.show, self.write = False, lambda line: None
        self.total = state.max_steps or self.total
        self.step = self.first_step = state.global_step
        self.epochs = args.num_train_epochs if args.max_steps <= 0 else None
        for entry in state.log_history:  # of the run that this one goes on from
            self.train += [(entry["step"], entry["loss"])] if "loss" in entry else []
            self.dev += [(entry["step"], entry["eval_loss"])] if "eval_loss" in entry else []
        resumed = f", going on from step {self.step:,}" if self.step else ""
        self.write(f"training: {self.total or 0:,} steps{resumed}")
        self._update()

    def on_substep_end(self, args, state, control, **kwargs):
        self._update()

    def on_step_end(self, args, state, control, **kwargs):
        self.step, self.epoch = state.global_step, state.epoch
        self._update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.step, self.epoch = state.global_step, state.epoch
        self.log(logs or {})

    def on_train_end(self, args, state, control, **kwargs):
        self.step, self.epoch = state.global_step, state.epoch
        self.how = "done" if self.step >= (self.total or 0) else "stopped"  # by a signal, or by early stopping
        self._update(force=True)
        self.write(self._sentence())

    # What is known.

    def log(self, logs):
        """Take what a trainer logs: numbers by name, of the current step."""
        logs = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        self.last |= logs
        self.now = time.monotonic()
        if "num_tokens" in logs:
            self._tokens = [*self._tokens[:1], (self.now, logs["num_tokens"])]
        wrong = next(
            (name for name in ("loss", "eval_loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))), None
        )
        if wrong and self.step not in self.bad:
            if len(self.bad) < 3:
                self.write(f"step {self._of()}  {wrong} is {logs[wrong]}: {ADVICE}")
            self.bad[self.step] = f"{wrong} was {logs[wrong]}"
        if "loss" in logs:
            self.train.append((self.step, logs["loss"]))
            if self.step >= self._next_line:
                self._next_line = self.step + max(1, (self.total or 0) / LINES)
                self.write(self._line())
        if "eval_loss" in logs:
            self.dev.append((self.step, logs["eval_loss"]))
            if self.step >= self._next_dev_line:
                self._next_dev_line = self.step + max(1, 3 * (self.total or 0) / LINES)
                self.write(f"step {self._of()}  dev loss {logs['eval_loss']:.3f}")
        self._update()

    @property
    def elapsed(self):
        return self.now - self.began

    @property
    def left(self):
        """Seconds to the end at the pace so far, or None."""
        steps = self.step - self.first_step
        return self.elapsed / steps * (self.total - self.step) if steps > 0 and self.total else None

    @property
    def speed(self):
        """Tokens a second, or None."""
        if len(self._tokens) < 2 or self._tokens[-1][0] <= self._tokens[0][0]:
            return None
        (begin, before), (end, after) = self._tokens
        return (after - before) / (end - begin)

    def _of(self):
        return f"{self.step}/{self.total}" if self.total else f"{self.step}"

    def _line(self):
        parts = [f"step {self._of()}", f"loss {self.last['loss']:.3f}"]
        if "learning_rate" in self.last:
            parts.append(f"lr {self.last['learning_rate']:.1e}")
        left = f", {clock(self.left)} left" if self.left is not None else ""
        return "  ".join([*parts, f"{clock(self.elapsed)} elapsed{left}"])

    def _sentence(self):
        parts = [f"{self.how}: step {self._of()} in {clock(self.elapsed)}"]
        if self.train:
            parts.append(f"last training loss {self.train[-1][1]:.3f}")
        if "train_loss" in self.last:
            parts.append(f"mean {self.last['train_loss']:.3f}")
        if self.dev:
            parts.append(f"dev loss {self.dev[-1][1]:.3f}")
        return ", ".join(parts)

    # The display.

    def _update(self, force=False):
        self.now = time.monotonic()
        if not self.show or (self.now < self._next and not force):
            return
        from IPython.display import display

        if force or len(self.train) + len(self.dev) != self._drawn:
            self._image = None
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)
        self._drawn = len(self.train) + len(self.dev)
        took = time.monotonic() - self.now
        self._next = time.monotonic() + max(EVERY, took / MOST_TIME)

    def html(self):
        facts = [
            ("step", self._of()),
            (
                "epoch",
                None if self.epoch is None else f"{self.epoch:.2f}" + (f" of {self.epochs:g}" if self.epochs else ""),
            ),
            ("loss", f"{self.train[-1][1]:.4f}" if self.train else None),
            ("dev loss", f"{self.dev[-1][1]:.4f}" if self.dev else None),
            ("learning rate", f"{self.last['learning_rate']:.2e}" if "learning_rate" in self.last else None),
            ("elapsed", clock(self.elapsed)),
            ("left", clock(self.left) if self.left is not None and self.how == "running" else None),
            ("tokens/s", f"{self.speed:,.0f}" if self.speed else None),
        ]
        grey = style.colours((style.PAPER[0], style.QUIET[1]))
        tiles = "".join(
            f'<div style="display:inline-block;margin:0 26px 4px 0"><span style="{grey};font-size:11px">{escape(name)}</span>'
            f'<br><b style="font-size:15px">{escape(value)}</b></div>'
            for name, value in facts
            if value is not None
        )
        share = self.step / self.total if self.total else 0
        # A share of the width, so that it fits any page.
        thin = "height:7px;border-radius:4px"
        progress = (
            f'<div style="{thin};background:#e3e8ed;color:{style.BLUE};margin:4px 0 10px">'
            f'<div style="{thin};width:{100 * min(share, 1):.1f}%;background:{style.BLUE};color:{style.BLUE}"></div></div>'
        )
        bad = style.callout(self._bad(), style.BAD) if self.bad else ""
        if self._image is None and (self.train or self.dev):
            self._image = style.picture(self._figure(), f"Loss by step. {self._sentence()}")
        return style.card(self.title, Html(progress), Html(tiles), Html(bad), Html(self._image or ""), aside=self.how)

    def _bad(self):
        step, what = next(iter(self.bad.items()))
        more = f" and not finite at {len(self.bad) - 1:,} more steps" if len(self.bad) > 1 else ""
        return f"{what} at step {step:,}{more}: {ADVICE}"

    def text(self):
        lines = [f"{self.title}: {self._sentence()}"]
        if self.bad:
            lines.append(f"  ! {self._bad()}")
        if len(self.train) > 1:
            lines.append(f"  loss {sparkline([loss for _, loss in self.train])}")
        return "\n".join(lines)

    def _figure(self):
        figure = style.figure(2.6)
        axis = figure.subplots()
        train, dev = ([(s, v) for s, v in points if math.isfinite(v)] for points in (self.train, self.dev))
        if train:
            steps, losses = zip(*train, strict=True)
            many = len(losses) > 40
            if many:
                axis.plot(steps, losses, color=style.BLUE, alpha=0.35, linewidth=1.2)
                axis.plot(steps, _smooth(losses), color=style.BLUE, linewidth=1.8, label="training loss, smoothed")
            else:
                axis.plot(
                    steps, losses, color=style.BLUE, linewidth=1.4, marker="o", markersize=3, label="training loss"
                )
        if dev:
            steps, losses = zip(*dev, strict=True)
            look = {"marker": "D", "markersize": 5, "linestyle": "--", "linewidth": 1.2, "clip_on": False}
            axis.plot(steps, losses, color=style.ORANGE, label="dev loss", **look)
        for step in self.bad:
            axis.axvline(step, color=style.BAD[1], linestyle=":", linewidth=1)
        if self.total:
            first = 0 if self.train or self.dev else self.first_step
            axis.set_xlim(first, max(self.total, first + 1))
        axis.set_xlabel("step", fontsize=8, color=style.QUIET[1])
        axis.set_title("loss per token with loss, nats", fontsize=9, loc="left", color=style.PAPER[1])
        style.strip_axes(axis)
        if train or dev:
            axis.legend(fontsize=8, frameon=False)
        return figure


ADVICE = (
    "if this goes on, the run is lost. Lower train.learning_rate, set train.max_grad_norm, or use bf16 instead of fp16."
)


def loss_curve(total=None, show=None):
    """A `LossCurve` that transformers' Trainer takes as a callback. Imports transformers, so call it when training."""
    from transformers import TrainerCallback

    return type("LossCurveCallback", (LossCurve, TrainerCallback), {})(total, show)


def clock(seconds):
    """Seconds as `m:ss` or `h:mm:ss`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def sparkline(values, width=60):
    """Values as a line of blocks; `!` where one is not finite."""
    stride = max(1, math.ceil(len(values) / width))
    values = [values[i] for i in range(0, len(values), stride)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "!" * len(values)
    low, height = min(finite), max(finite) - min(finite) or 1
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) / height * 7)] if math.isfinite(v) else "!" for v in values)


def _smooth(values):
    """Exponential moving average over about a twentieth of the run, without the pull of its start."""
    keep, total, weight, smoothed = 1 - 1 / max(2, len(values) / 20), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return smoothed
