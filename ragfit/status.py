"""What became of a run: `status.json` in its output folder, written by the run itself.

    python -m ragfit.status trained_models

A run that was killed cannot say so, and papermill's notebook of it reads as completed. The file still says "running"
then; the reader here looks for the process and says "killed".
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ragfit.errors import ConfigError, Interrupted, RagfitError, first_line, for_terminal
from ragfit.secrets import mask

FILE = "status.json"
EVERY = 5.0  # seconds between two signs of life
LOADING, WAITING, TRAINING, SAVING = "loading the model", "waiting to train", "training", "saving the adapter"


class RunStatus:
    """The writer of one run's status; nothing here may end a run, so a file that cannot be written is let go.

    Args:
        folder: `train.output_dir`.
        secrets: texts that must not be written, besides the environment's.
        resumed_from: the checkpoint that the run goes on from, if any.
        write: whether this process writes (one of several does).
    """

    def __init__(self, folder, secrets=(), resumed_from=None, write=True):
        self.path, self.write = Path(folder) / FILE, write
        self.resumed = {"resumed_from": resumed_from, "last_checkpoint": resumed_from}
        self.secrets = [secret for secret in secrets if secret]
        self.facts, self._next = {}, 0.0

    def refuse_if_taken(self):
        """Raise a ConfigError where another live process of this machine is training into the folder."""
        facts = read(self.path.parent) or {}
        theirs = facts.get("doing") in (TRAINING, SAVING) and facts.get("pid") != os.getpid()
        if self.write and theirs and _alive(facts):
            raise ConfigError(
                f"train.output_dir: process {facts['pid']} is training into {self.path.parent} since "
                f"{facts['started']} ({_steps(facts)}). Wait for it, or set train.output_dir to another folder."
            )

    @contextlib.contextmanager
    def loading(self):
        """Around loading the model. A trainer that never trains leaves the status as it was before."""
        before = read(self.path.parent) or {}
        if before.get("doing") == WAITING and before.get("pid") == os.getpid():
            before = before.get("before") or {}  # another trainer of this process, which did not train either
        self.facts = {"started": _now(), **_process(), **self.resumed, "earlier": _finished(before), "before": before}
        with self.outcome():
            self.set(state="running", doing=LOADING)
            yield
        self.set(doing=WAITING)
        atexit.register(self._never_trained)

    def _never_trained(self):
        now = read(self.path.parent) or {}
        if self.write and now.get("doing") == WAITING and now.get("pid") == os.getpid():
            if self.facts["before"]:
                self._put(self.facts["before"])
            else:
                self.path.unlink(missing_ok=True)

    def begin(self):
        """The run begins: from here on the folder is this process's. Returns the status of the run before, or {}."""
        before = self.facts["before"]
        atexit.unregister(self._never_trained)
        self.facts = {"started": _now(), **_process(), **self.resumed, "earlier": self.facts["earlier"]}
        self.set(state="running", doing=TRAINING)
        return before

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
        temporary = self.path.with_name(f".{FILE}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({key: value for key, value in facts.items() if value is not None}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(self.path)
        except OSError:  # a full disk
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read(folder):
    """The facts of a folder's `status.json`, or None where there is none that can be read."""
    try:
        facts = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def verdict(facts, now=None):
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


def run_status(folder):
    """What became of the run in an output folder, as a `StatusView`.

    Raises:
        ConfigError: no run has written a status there.
    """
    from ragfit.views.run import StatusView

    facts = read(folder)
    if facts is None:
        raise ConfigError(f"{folder} has no {FILE}: no run has begun there. Name a run's train.output_dir.")
    return StatusView(folder, facts, *verdict(facts))


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


def main(argv=None):
    """Print a run's status. The exit code is 0 where the run goes on or is finished, 1 where it ended otherwise."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or argv[0].startswith("-"):
        sys.exit("usage: python -m ragfit.status OUTPUT_DIR")
    try:
        view = run_status(argv[0])
    except ConfigError as error:
        sys.exit(for_terminal(error))
    print(view)
    sys.exit(0 if view.state in ("running", "finished") else 1)


if __name__ == "__main__":
    main()
