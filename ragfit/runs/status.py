"""What became of a run: `status.json` in its output folder, written by the run itself.

    python -m ragfit.status trained_models

A run that was killed cannot say so, and papermill's notebook of it reads as completed. The file still says "running"
then; the reader here looks for the process and says "killed".
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ragfit.config.paths import user_path
from ragfit.draw import html as style
from ragfit.draw.html import Html, View, html_lines, plain
from ragfit.errors import ConfigError, Interrupted, RagfitError, first_line
from ragfit.files import write_whole
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

FILE, LOCK = "status.json", ".status.lock"
EVERY = 5.0  # seconds between two signs of life
LOADING, WAITING, TRAINING, SAVING = "loading the model", "waiting to train", "training", "saving the adapter"


class RunStatus:
    """The writer of one run's status; it never raises: if status.json can't be written, training continues.

    Args:
        folder: `train.output_dir`.
        secrets: texts that must not be written.
        resumed_from: the checkpoint that the run goes on from, if any.
        write: whether this process writes (one of several does).
    """

    def __init__(self, folder, secrets=(), resumed_from=None, write=True):
        self.path, self.write = Path(folder) / FILE, write
        self.resumed = {"resumed_from": resumed_from, "last_checkpoint": resumed_from}
        self.secrets = [secret for secret in secrets if secret]
        self.facts, self._next = {}, 0.0

    @contextlib.contextmanager
    def alone(self):
        """While this lasts the folder is this run's, and only then is the status written.

        It is the system's lock on a file, so it ends with the process, however that ends. A trainer that waits to
        train holds none.

        Raises:
            ConfigError: another run holds it.
        """
        from filelock import FileLock, Timeout

        folder, lock = self.path.parent, FileLock(self.path.with_name(LOCK))
        try:
            if self.write:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            facts = read(folder) or {}
            running = facts.get("state") == "running"
            who = (
                f"process {facts.get('pid')} on {facts.get('host')}"
                if running
                else f"another process, which holds {lock.lock_file},"
            )
            since = f" since {facts.get('started')} ({_steps(facts)})" if running else ""
            raise ConfigError(
                f"train.output_dir: {who} is training into {folder}{since}. "
                "Wait for it, or set train.output_dir to another folder."
            ) from None
        except (OSError, NotImplementedError) as error:  # some network file systems lock nothing
            logger.warning(
                "train.output_dir: %s cannot be locked (%s), so a second run into it would not be noticed. "
                "Give each run a folder of its own.", folder, first_line(error),
            )  # fmt: skip
        try:
            yield
        finally:
            lock.release()  # does nothing where it is not held

    @contextlib.contextmanager
    def loading(self):
        """Around loading the model. A trainer that never trains leaves the status as it was before."""
        with self.alone():
            before = self._before()
            self.facts = {
                "started": _now(),
                **_process(),
                **self.resumed,
                "earlier": _finished(before),
                "before": before,
            }
            with self.outcome():
                self.set(state="running", doing=LOADING)
                yield
            self.set(doing=WAITING)
        atexit.register(self._never_trained)

    def _before(self):
        """The status of the run before, or {}: a trainer of this process that has not trained was none."""
        facts = read(self.path.parent) or {}
        return facts.get("before") or {} if _waits_here(facts) else facts

    def _never_trained(self):
        folder = self.path.parent
        if not self.write or not _waits_here(read(folder) or {}):
            return
        with contextlib.suppress(ConfigError), self.alone():
            facts = read(folder) or {}
            if _waits_here(facts):
                if facts.get("before"):
                    self._put(facts["before"])
                else:
                    self.path.unlink(missing_ok=True)

    def begin(self):
        """The run begins. Returns the status of the run before, or {}."""
        before = self._before()
        atexit.unregister(self._never_trained)
        self.facts = {"started": _now(), **_process(), **self.resumed, "earlier": _finished(before)}
        self.set(state="running", doing=TRAINING)
        return before

    def refused(self, error):
        """Write that the run failed before a model was loaded for it; whether this had not been told already."""
        told = True
        with contextlib.suppress(RagfitError), self.alone():
            before = self._before()
            told = _mine(before)
            if not told:
                self.facts = {"started": _now(), **_process(), "earlier": _finished(before)}
                with self.outcome():
                    raise error
        return not told

    @contextlib.contextmanager
    def outcome(self):
        """Write how the work inside ended, where it did not end well."""
        try:
            yield
        except Interrupted:
            raise  # has been written, with what is known there
        except KeyboardInterrupt:
            self._ended("interrupted", "stopped at once, without a checkpoint of its own")
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            if isinstance(error, RagfitError):
                reason = " ".join(str(error).split())[:1000]
            self._ended("failed", reason)
            raise

    def _ended(self, state, reason):
        if self.facts.get("state") != "finished":  # the adapter is saved: a push that fails does not change that
            self.set(state=state, reason=reason)

    def beat(self, **facts):
        """A sign of life, written at most every `EVERY` seconds."""
        self.facts |= facts
        if time.monotonic() >= self._next:
            self.set()

    def set(self, **facts):
        """Take facts and write them now."""
        self.facts |= facts
        if self.facts.get("reason"):
            self.facts["reason"] = mask(self.facts["reason"], self.secrets)
        self.facts["updated"] = _now()
        self._next = time.monotonic() + EVERY
        if self.write:
            self._put(self.facts)

    def _put(self, facts):
        text = json.dumps({key: value for key, value in facts.items() if value is not None}, indent=1).encode() + b"\n"
        try:
            write_whole(self.path, text)
        except OSError:  # a full disk, on which the old file still has its blocks: the text is written over it
            with contextlib.suppress(OSError), open(self.path, "r+b") as file:
                if len(text) <= os.fstat(file.fileno()).st_blocks * 512:
                    file.write(text)
                    file.truncate()


# What a status holds, and of which kind it is: `fitting` leaves out what is otherwise.
_RUN = {
    "state": str, "doing": str, "reason": str, "saved": str, "resumed_from": str, "last_checkpoint": str, "host": str,
    "started": datetime, "updated": datetime, "pid": int, "process_started": float, "step": int, "total_steps": int,
    "loss": float, "seconds_per_step": float, "earlier": {"state": str, "updated": datetime, "saved": str},
}  # fmt: skip
LARGEST = 2**26  # bytes of a file that a run may have written


def read(folder):
    """The facts of a folder's `status.json`, or None where there is none that a run wrote and that can be read."""
    facts = read_json(Path(folder) / FILE, {**_RUN, "before": _RUN}) or {}
    known = (
        facts.get("state") in ("running", "finished", "failed", "interrupted")
        and {"started", "updated"} <= facts.keys()
    )
    return facts if known else None


def read_json(path, shape):
    """The object in a JSON file as `fitting` leaves it, or None where there is none: the file may be anybody's.

    Args:
        shape: see `fitting`.
    """
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > LARGEST:  # reading a pipe would never end
            return None
        return fitting(json.loads(Path(path).read_bytes()), shape)
    except (OSError, ValueError, RecursionError):
        return None


def fitting(value, shape):
    """A value that was read, where it has the shape that is expected, else None.

    Args:
        shape: a type (`float` takes whole numbers too, `datetime` a time as ISO text with its zone), a list of one
            shape for lists of such values, or `{key: shape}` for objects; their other keys and values are left out.
    """
    if isinstance(shape, dict):
        found = {key: fitting(value.get(key), kind) for key, kind in shape.items()} if isinstance(value, dict) else None
        return found and {key: part for key, part in found.items() if part is not None}
    if isinstance(shape, list):
        found = [fitting(part, shape[0]) for part in value] if isinstance(value, list) else []
        return [part for part in found if part is not None]
    if shape is datetime:
        try:
            return value if datetime.fromisoformat(value).tzinfo else None
        except (TypeError, ValueError):
            return None
    if isinstance(value, str) and shape is str:
        return printable(value)
    number = isinstance(value, int) and abs(value) < 2**63 and not isinstance(value, bool)
    return value if number and shape in (int, float) or isinstance(value, float) and shape is float else None


def run_state(facts, now=None):
    """What the facts come to.

    Returns:
        `(state, sentence)`; the state is one that was written (running, finished, failed, interrupted) or, for a run
        that says "running", "killed" where its process is gone and "silent" where it ran elsewhere and has shown no
        sign of life for long.
    """
    state, doing = facts.get("state"), facts.get("doing")
    at = f" {doing}" if doing and doing != TRAINING else ""
    if state == "finished":
        return state, f"finished: {_steps(facts)}, the adapter is in {facts.get('saved')}"
    if state == "failed":
        return state, f"failed{f' while {doing}' if at else ''}, {_steps(facts)}: {facts.get('reason')}"
    if state == "interrupted":
        return state, f"interrupted, {_steps(facts)}: {facts.get('reason')}"
    if facts.get("host") == socket.gethostname():
        if _alive(facts):
            return "running", f"running{at}, {_steps(facts)}, process {facts.get('pid')}"
        gone = f"process {facts.get('pid')} is gone and said nothing"
        return "killed", f"killed{f' while {doing}' if at else ''}, {_steps(facts)}: {gone}"
    silence = ((now or datetime.now(UTC)) - datetime.fromisoformat(facts["updated"])).total_seconds()
    if silence > max(600, 20 * (facts.get("seconds_per_step") or 0)):
        return "silent", f"no sign of life for {silence / 60:.0f} minutes, {_steps(facts)}: look on {facts.get('host')}"
    return "running", f"running{at} on {facts.get('host')}, {_steps(facts)}"


def printable(text):
    """A text that can be printed and kept, whatever bytes a file or a folder's name had."""
    return text.encode("utf-8", "backslashreplace").decode()


def run_status(folder):
    """What became of the run in an output folder, as a `StatusView`.

    Raises:
        ConfigError: no run has written a status there.
    """
    from ragfit.runs.status import StatusView

    folder = user_path(folder, "folder")
    facts = read(folder)
    if facts is None:
        raise ConfigError(
            f"{folder} has no {FILE} that a run wrote: none has begun there. Name a run's train.output_dir."
        )
    return StatusView(folder, facts, *run_state(facts))


def _process():
    me = psutil.Process()
    return {"pid": me.pid, "process_started": round(me.create_time()), "host": socket.gethostname()}


def _alive(facts):
    """Whether the process that wrote the facts runs on this machine. A number used again does not count."""
    if facts.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(facts["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - facts["process_started"]) < 60
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _mine(facts):
    return facts.get("pid") == os.getpid() and _alive(facts)


def _waits_here(facts):
    return facts.get("doing") == WAITING and _mine(facts)


def _finished(facts):
    """Of an earlier run in the same folder, what stays worth knowing: where its adapter is."""
    if facts.get("state") == "finished":
        return {key: facts.get(key) for key in ("state", "updated", "saved")}
    return facts.get("earlier")


def _steps(facts):
    step, total = facts.get("step"), facts.get("total_steps")
    return "before the first step" if not step else f"step {step} of {total}" if total else f"step {step}"


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")


class StatusView(View):
    """What became of a run.

    Args:
        folder: its `train.output_dir`.
        facts: of its `status.json`.
        state: running, finished, failed, interrupted, killed or silent (`ragfit.runs.status.run_state`).
        sentence: the state with what is known of it.
    """

    def __init__(self, folder, facts, state, sentence):
        self.title, self.facts, self.state, self.sentence = f"The run in {folder}", dict(facts), state, str(sentence)

    def _items(self):
        facts = self.facts
        earlier = facts.get("earlier") or {}
        items = [
            ("started", f"{facts.get('started')} on {facts.get('host')}, process {facts.get('pid')}"),
            ("last sign of life", facts.get("updated")),
            ("last loss", None if facts.get("loss") is None else f"{facts['loss']:.4f}"),
            ("last checkpoint", facts.get("last_checkpoint")),
            ("went on from", facts.get("resumed_from")),
            ("adapter", facts.get("saved")),
            (
                "an earlier run",
                f"finished {earlier['updated']}; its adapter was saved in {earlier['saved']}"
                if {"updated", "saved"} <= earlier.keys()
                else None,
            ),
        ]
        if self.state in ("failed", "interrupted", "killed"):
            on = "resume_checkpoint=true, with all else as it was"
            items.append(
                ("to go on", on if facts.get("last_checkpoint") else "start it again: there is no checkpoint yet")
            )
        return [(label, str(value)) for label, value in items if value is not None]

    def html(self):
        good = {"running": style.NOTE, "finished": style.GOOD}
        rows = [[label, Html(f"<b>{html_lines(value)}</b>")] for label, value in self._items()]
        top = style.callout(html_lines(self.sentence), good.get(self.state, style.BAD))
        return style.card(self.title, Html(top), style.table(None, rows, widths=("130px",)))

    def text(self):
        return "\n".join(
            [
                f"{self.title}: {plain(self.sentence)}",
                *(f"  {label:<17}  {plain(value)}" for label, value in self._items()),
            ]
        )
