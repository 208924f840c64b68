"""What became of a run: `status.json` in its output folder, written by the run itself.

    python -m ragfit.status trained_models

A run that was killed cannot say so, and papermill's notebook of it reads as completed. The file still says "running"
then; the reader here looks for the process and says "killed".
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import psutil

from ragfit.config.paths import user_path
from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.view import View
from ragfit.errors import ConfigError, Interrupted, RagfitError, first_line
from ragfit.files import write_whole
from ragfit.runs.records import STATUS, now, read_json
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

LOCK = ".status.lock"
EVERY = 5.0  # seconds between two signs of life
LOADING, TRAINING, SAVING = "loading the model", "training", "saving the adapter"
# What a status holds, and of which kind it is (`ragfit.runs.records.fitting`).
_FACTS = {
    "state": str, "doing": str, "reason": str, "saved": str, "resumed_from": str, "last_checkpoint": str, "host": str,
    "started": datetime, "updated": datetime, "pid": int, "process_started": float, "step": int, "total_steps": int,
    "loss": float, "seconds_per_step": float,
}  # fmt: skip


class RunStatus:
    """The writer of one run's status. Never raises: if status.json can't be written, training continues.

    Args:
        folder: `train.output_dir`.
        secrets: texts that must not be written.
        resumed_from: the checkpoint that the run goes on from, if any.
        write: whether this process writes (one of several does).
    """

    def __init__(
        self,
        folder: str | PathLike,
        secrets: Iterable[str | None] = (),
        resumed_from: str | None = None,
        write: bool = True,
    ):
        self.folder, self.resumed_from, self.write = Path(folder), resumed_from, write
        self.secrets = [secret for secret in secrets if secret]
        self.facts: dict[str, Any] = {}
        self._next = 0.0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, the folder is this run's. It is the system's lock on a file, so it ends with the process.

        Raises:
            ConfigError: another run holds it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / LOCK)
        try:
            if self.write:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            facts = read(self.folder) or {}
            running = facts.get("state") == "running"
            who = f"process {facts.get('pid')} on {facts.get('host')}" if running else "another process"
            raise ConfigError(
                "train.output_dir",
                f"{who} is training into {self.folder}",
                "Wait for it, or set train.output_dir to another folder.",
            ) from None
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
    def loading(self) -> Iterator[None]:
        """Around loading the model. Afterwards the status is as it was before, since the model may never be trained."""
        with self.alone():
            before = self.begin(LOADING)
            with self.outcome():
                yield
            if before:
                self._put(before)
            elif self.write:
                with contextlib.suppress(OSError):
                    (self.folder / STATUS).unlink(missing_ok=True)

    def begin(self, doing: str | None = TRAINING) -> dict[str, Any]:
        """The run begins, to train or to load its model. Returns the status of the run before, or {}."""
        before, me = read(self.folder) or {}, psutil.Process()
        self.facts = {"started": now(), "pid": me.pid, "process_started": round(me.create_time())}
        resumed = {"resumed_from": self.resumed_from, "last_checkpoint": self.resumed_from}
        self.set(host=socket.gethostname(), state="running", doing=doing, **resumed)
        return before

    def refused(self, error: RagfitError) -> bool:
        """Write that the run failed before its model was loaded.

        Returns:
            Whether it was written: not where this process has written it already, or another run has the folder.
        """
        with contextlib.suppress(ConfigError), self.alone():
            facts = read(self.folder) or {}
            if facts.get("pid") != os.getpid() or not _alive(facts):
                self.begin(None)
                self._ended("failed", _reason(error))
                return True
        return False

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Write how the work inside ended, where it did not end well."""
        try:
            yield
        except Interrupted:
            raise  # has been written, with what is known there
        except KeyboardInterrupt:
            self._ended("interrupted", "stopped at once, without a checkpoint of its own")
            raise
        except BaseException as error:
            self._ended("failed", _reason(error))
            raise

    def _ended(self, state: str, reason: str) -> None:
        if self.facts.get("state") != "finished":  # the adapter is saved: a push that fails does not change that
            self.set(state=state, reason=reason)

    def beat(self, **facts: Any) -> None:
        """A sign of life, written at most every `EVERY` seconds."""
        self.facts |= facts
        if time.monotonic() >= self._next:
            self.set()

    def set(self, **facts: Any) -> None:
        """Take facts and write them now."""
        self.facts |= facts | {"updated": now()}
        if reason := self.facts.get("reason"):
            self.facts["reason"] = mask(reason, self.secrets)
        self._next = time.monotonic() + EVERY
        self._put(self.facts)

    def _put(self, facts: dict[str, Any]) -> None:
        if self.write:
            path, known = self.folder / STATUS, {key: value for key, value in facts.items() if value is not None}
            text = json.dumps(known, indent=1).encode() + b"\n"
            try:
                write_whole(path, text)
            except OSError:  # a full disk, on which the old file still has its blocks: the text is written over it
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    if len(text) <= os.fstat(file.fileno()).st_blocks * 512:
                        file.write(text)
                        file.truncate()


def _reason(error: BaseException) -> str:
    if isinstance(error, RagfitError):
        return " ".join(str(error).split())[:1000]
    return f"{type(error).__name__}: {first_line(error)}"


def read(folder: str | PathLike) -> dict[str, Any] | None:
    """The facts of a folder's `status.json`, or None where there is none that a run wrote and that can be read."""
    facts = read_json(Path(folder) / STATUS, _FACTS)
    written = facts.get("state") in ("running", "finished", "failed", "interrupted")
    return facts if written and {"started", "updated"} <= facts.keys() else None


def run_state(facts: dict[str, Any], at: datetime | None = None) -> tuple[str, str]:
    """What the facts come to.

    Args:
        at: the time to judge from; by default now.

    Returns:
        `(state, sentence)`; the state is one that was written (running, finished, failed, interrupted) or, for a run
        that says "running", "killed" where its process is gone and "silent" where it ran elsewhere and has shown no
        sign of life for long.
    """
    state, doing, pid, host = (facts.get(key) for key in ("state", "doing", "pid", "host"))
    doing = None if doing == TRAINING else doing
    during, steps = f" while {doing}" if doing else "", _steps(facts)
    if state == "finished":
        return state, f"finished: {steps}, the adapter is in {facts.get('saved')}"
    if state == "failed":
        return state, f"failed{during}, {steps}: {facts.get('reason')}"
    if state == "interrupted":
        return state, f"interrupted, {steps}: {facts.get('reason')}"
    running = f"running {doing}" if doing else "running"
    if _alive(facts):
        return "running", f"{running}, {steps}, process {pid}"
    if host == socket.gethostname():
        return "killed", f"killed{during}, {steps}: process {pid} is gone and said nothing"
    silence = ((at or datetime.now(UTC)) - datetime.fromisoformat(facts["updated"])).total_seconds()
    if silence > max(600, 20 * (facts.get("seconds_per_step") or 0)):
        return "silent", f"no sign of life for {silence / 60:.0f} minutes, {steps}: look on {host}"
    return "running", f"{running} on {host}, {steps}"


def run_status(folder: str | PathLike) -> "StatusView":
    """What became of the run in an output folder.

    Raises:
        ConfigError: no run has written a status there.
    """
    folder = user_path(folder, "folder")
    facts = read(folder)
    if facts is None:
        raise ConfigError(
            "folder",
            f"{folder} has no {STATUS} that a run wrote, so none has begun there",
            "Name a run's train.output_dir.",
        )
    return StatusView(folder, facts)


def _alive(facts: dict[str, Any]) -> bool:
    """Whether the process that wrote the facts runs on this machine. A number used again does not count."""
    if facts.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(facts["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - facts["process_started"]) < 60
    except (psutil.Error, KeyError, ValueError):
        return False


def _steps(facts: dict[str, Any]) -> str:
    step, total = facts.get("step"), facts.get("total_steps")
    return "before the first step" if not step else f"step {step} of {total}" if total else f"step {step}"


class StatusView(View):
    """What became of a run.

    Args:
        folder: its `train.output_dir`.
        facts: of its `status.json`.

    Attributes:
        state, sentence: of `run_state`.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.title, self.folder, self.facts = f"The run in {folder}", folder, facts
        self.state, self.sentence = run_state(facts)

    def blocks(self) -> list[Block]:
        facts, saved = self.facts, self.folder / "checkpoint"
        again = "start it again: there is no checkpoint yet"
        on = "resume_checkpoint=true, with all else as it was" if facts.get("last_checkpoint") else again
        items = {
            "started": f"{facts.get('started')} on {facts.get('host')}, process {facts.get('pid')}",
            "last sign of life": facts.get("updated"),
            "last loss": None if facts.get("loss") is None else f"{facts['loss']:.4f}",
            "last checkpoint": facts.get("last_checkpoint"),
            "went on from": facts.get("resumed_from"),
            "adapter": facts.get("saved"),
            "an earlier run": None if facts.get("saved") or not saved.is_dir() else f"its adapter was saved in {saved}",
            "to go on": on if self.state in ("failed", "interrupted", "killed") else None,
        }
        tone = {"running": "note", "finished": "good"}.get(self.state, "bad")
        known = [(label, str(value), "") for label, value in items.items() if value is not None]
        return [Callout(self.sentence, tone), Facts(known)]
