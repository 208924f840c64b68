"""What became of a run: `status.json` in its output folder, and a lock that is held as long as the run lives.

A run that was killed cannot say so, and papermill's notebook of it reads as completed. Its file still says "running"
then, but the system has let go of its lock: that is "killed".
"""

import contextlib
import json
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.view import View
from ragfit.errors import ConfigError, Interrupted, RagfitError, first_line
from ragfit.files import write_whole
from ragfit.runs.records import EVALUATION, STATUS, now
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

LOCK = ".status.lock"
EVERY = 5.0  # seconds between two signs of life
LABELS = {
    "started": "started", "updated": "last heard of", "saved_step": "weights of step", "loss": "training loss",
    "dev_loss": "dev loss", "last_checkpoint": "last checkpoint", "resumed_from": "went on from", "saved": "adapter",
}  # fmt: skip
STATES = ("running", "finished", "failed", "interrupted")


class RunStatus:
    """The writer of one run's status. Writing never raises: if status.json can't be written, training continues.

    Args:
        folder: `train.output_dir`.
        write: whether this process writes (one of several does).
    """

    def __init__(self, folder: str | PathLike, write: bool = True):
        self.folder, self.write = Path(folder), write
        self.facts: dict[str, Any] = {}
        self._next = 0.0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, the folder is this run's. It is the system's lock on a file, so it ends with the process.

        Raises:
            ConfigError: another run holds it.
            OSError: it cannot be written.
        """
        lock = FileLock(self.folder / LOCK)
        if self.write:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        try:
            if self.write:
                lock.acquire(timeout=2)  # somebody who asks for the status holds it for a moment
        except Timeout:
            facts = read(self.folder) or {}
            problem = f"process {facts.get('pid')} on {facts.get('host')} is training into {self.folder}"
            fix = "Wait for it, or set train.output_dir to another folder."
            raise ConfigError("train.output_dir", problem, fix) from None
        except (OSError, NotImplementedError) as error:  # some network file systems lock nothing
            logger.warning(
                "train.output_dir: %s cannot be locked (%s), so a second run into it would not be noticed. "
                "Give each run a folder of its own.", self.folder, first_line(error),
            )  # fmt: skip
        try:
            yield
        finally:
            lock.release()  # does nothing where it is not held

    @contextlib.contextmanager
    def kept(self, **facts: Any) -> Iterator[None]:
        """While this lasts the run is running and alone in its folder; how it ends is written, whatever ends it.

        Args:
            facts: what is known as it begins.
        """
        with self.alone():
            self.facts = {"started": now(), "pid": os.getpid(), "host": socket.gethostname()}
            self.set(state="running", **facts)
            try:
                yield
            except BaseException as error:
                if self.facts["state"] != "finished":  # the adapter is saved: a push that fails does not change that
                    self.set(**_ended(error))
                raise

    def beat(self, **facts: Any) -> None:
        """A sign of life, written at most every `EVERY` seconds."""
        self.facts |= facts
        if time.monotonic() >= self._next:
            self.set()

    def set(self, **facts: Any) -> None:
        """Take facts and write them now; None takes a fact back."""
        self.facts = {key: value for key, value in (self.facts | facts).items() if value is not None}
        self.facts["updated"] = now()
        self._next = time.monotonic() + EVERY
        if not self.write:
            return
        with contextlib.suppress(OSError):
            write_whole(self.folder / STATUS, mask(to_json(self.facts)).encode())


def _ended(error: BaseException) -> dict[str, str]:
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return {"state": "interrupted", "reason": getattr(error, "problem", "stopped at once, without a checkpoint")}
    said = " ".join(str(error).split())[:1000]
    return {"state": "failed", "reason": said if isinstance(error, RagfitError) else f"{type(error).__name__}: {said}"}


def to_json(tree: Any) -> str:
    """JSON as every program reads it: where a number is infinite or none, Python would write a word that is no JSON."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(tree), indent=1) + "\n"


def read(folder: str | PathLike) -> dict[str, Any] | None:
    """The facts of a folder's `status.json`, or None where there is none that a run wrote."""
    facts = read_json(Path(folder, STATUS))
    return facts | {"folder": str(folder)} if isinstance(facts, dict) and facts.get("state") in STATES else None


def read_json(path: Path) -> Any:
    """What a run left in a file; {} where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def measured(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """What was measured of the run of these facts; {} where nothing was, or what an earlier run left in its folder."""
    found = read_json(Path(facts["folder"], name))
    return found if found.get("written", "") >= facts.get("started", "") else {}


def run_state(facts: dict[str, Any]) -> tuple[str, str]:
    """What the facts of `read` come to: (state, sentence). A run that says "running" without its lock was killed."""
    state, step, total = (facts.get(key) for key in ("state", "step", "total_steps"))
    if state == "running" and not _held(facts["folder"]):
        state = "killed"
    steps = "before the first step" if not step else f"step {step} of {total}"
    if state == "finished":
        return state, f"finished: {steps}, the adapter is in {facts.get('saved')}"
    process = f"process {facts.get('pid')} on {facts.get('host')}"
    why = {"running": process, "killed": f"{process} is gone and said nothing"}.get(state, facts.get("reason"))
    return state, f"{state}, {steps}: {why}"


def _held(folder: str) -> bool:
    lock = Path(folder, LOCK)
    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):  # where it cannot be asked, what was written is believed
        return True


def run_status(folder: str | PathLike) -> "StatusView":
    """What became of the run in an output folder.

    Raises:
        ConfigError: no run has written a status there.
    """
    folder = Path(folder).expanduser()
    if (facts := read(folder)) is None:
        problem = f"{folder} has no {STATUS} that a run wrote, so none has begun there"
        raise ConfigError("folder", problem, "Name a run's train.output_dir.")
    return StatusView(folder, facts)


class StatusView(View):
    """What became of a run.

    Args:
        folder: its `train.output_dir`.
        facts: as `read` gives them.

    Attributes:
        state, sentence: of `run_state`.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.title, self.folder, self.facts = f"The run in {folder}", folder, facts
        self.state, self.sentence = run_state(facts)

    def blocks(self) -> list[Block]:
        facts = dict(self.facts)
        if step := facts.get("saved_step"):  # of a finished run
            missing, evaluated = f"not measured at step {step}", measured(facts, EVALUATION).get("dev_loss") or {}
            facts = {"loss": missing, "dev_loss": evaluated.get("tuned") or missing} | facts
        facts = {key: f"{fact:.4f}" if isinstance(fact, float) else fact for key, fact in facts.items()}
        items = {label: facts[key] for key, label in LABELS.items() if key in facts}
        for key, values in (facts.get("changed") or {}).items():
            items[key] = " then ".join(f"{value} (from step {step})" for step, value in values)
        if self.state in ("failed", "interrupted", "killed"):
            again = "start it again: there is no checkpoint yet"
            items["to go on"] = "resume_checkpoint=true" if facts.get("last_checkpoint") else again
        tone = {"running": "note", "finished": "good"}.get(self.state, "bad")
        return [Callout(self.sentence, tone), Facts([(label, str(value), "") for label, value in items.items()])]
