"""What became of a run: `status.json` in its output folder, and a lock that is held as long as the run lives.

A run that was killed cannot say so. Its file still says "running" then, but the system has let go of its lock.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ragfit.draw.blocks import Block, Callout, Facts
from ragfit.draw.text import in_one_line
from ragfit.draw.view import View
from ragfit.errors import ConfigError, Interrupted, RagfitError
from ragfit.files import write_whole
from ragfit.runs.records import EVALUATION, STATUS, now
from ragfit.secrets import mask

LOCK = ".status.lock"
TONES = {"running": "note", "finished": "good"}
LABELS = {"loss": "training loss", "dev_loss": "dev loss", "saved_step": "weights of step"}
LABELS |= {"last_checkpoint": "last checkpoint", "started": "started", "updated": "last heard of"}


class RunStatus:
    """The writer of one run's status in `train.output_dir`; of several processes only one writes."""

    def __init__(self, folder: str | Path, write: bool = True):
        self.folder, self.write, self.facts = Path(folder), write, {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, the folder is this run's: ConfigError where another has it, OSError where it is shut."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # Somebody who asks for the status holds the lock for a moment.
            with FileLock(self.folder / LOCK, timeout=2) if self.write else contextlib.nullcontext():
                yield
        except Timeout:
            problem = f"another run is training into {self.folder}"
            raise ConfigError("train.output_dir", problem, "Wait for it, or set another folder.") from None

    @contextlib.contextmanager
    def kept(self, **facts: Any) -> Iterator[None]:
        """While this lasts the run is running and alone in its folder; how it ends is written, whatever ends it."""
        with self.alone():
            self.set(state="running", started=now(), pid=os.getpid(), host=os.uname().nodename, **facts)
            try:
                yield
            except BaseException as error:
                if self.facts["state"] != "finished":  # the adapter is saved: a push that fails does not change that
                    state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
                    kind = "" if isinstance(error, RagfitError) else f"{type(error).__name__}: "
                    self.set(state=state, reason=in_one_line(f"{kind}{error}", 1000))
                raise

    def beat(self, **facts: Any) -> None:
        """A sign of life, written at most once a second."""
        self.facts |= facts
        if self.facts["updated"] != now():
            self.set()

    def set(self, **facts: Any) -> None:
        """Take facts and write them now; None takes one back. On a full disk, training goes on without."""
        self.facts = {key: fact for key, fact in (self.facts | facts).items() if fact is not None} | {"updated": now()}
        with contextlib.suppress(OSError):
            if self.write:
                write_whole(self.folder / STATUS, mask(to_json(self.facts)))


def to_json(tree: Any) -> str:
    """JSON as every program reads it: null where a number is not finite, for which Python writes words of its own."""
    return json.dumps(json.loads(json.dumps(tree), parse_constant=lambda word: None), indent=1) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """What a run left in a file; {} where there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def read(folder: str | Path) -> dict[str, Any] | None:
    """The facts of a run's `status.json`, or None; the dev loss is the evaluated one where these weights have one."""
    facts = read_json(Path(folder, STATUS)) | {"folder": str(folder)}
    if not facts.keys() >= {"state", "pid", "host", "updated"}:  # then another program wrote it
        return None
    loss = (measured(facts, EVALUATION).get("dev_loss") or {}).get("tuned")
    return facts if loss is None else facts | {"dev_loss": loss}


def measured(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """What was measured of the weights that a run saved; {} where nothing was, or an earlier run left it."""
    found = read_json(Path(facts["folder"], name)) if facts["state"] == "finished" else {}
    return found if found.get("written", "") >= facts["updated"] else {}


def run_state(facts: dict[str, Any]) -> tuple[str, str]:
    """What the facts of `read` come to: (state, sentence). A run that says "running" without its lock was killed."""
    state, why = facts["state"], facts.get("reason", facts.get("saved"))
    if state == "running":
        why = f"process {facts['pid']} on {facts['host']}"
        with contextlib.suppress(OSError), FileLock(Path(facts["folder"], LOCK), timeout=0):
            state, why = "killed", f"{why} is gone and said nothing"
    return state, f"{state}, step {facts.get('step', 0)} of {facts.get('total_steps', '?')}: {why}"


def run_status(folder: str | Path) -> "StatusView":
    """What became of the run in an output folder; ConfigError where no run has written a status."""
    if facts := read(Path(folder).expanduser()):
        return StatusView(facts)
    raise ConfigError("folder", f"no run has written a {STATUS} into {folder}", "Name a run's train.output_dir.")


class StatusView(View):
    """What became of a run, of the facts of `read`; `state` and `sentence` are those of `run_state`."""

    def __init__(self, facts: dict[str, Any]):
        self.title, self.facts = f"The run in {facts['folder']}", facts
        self.state, self.sentence = run_state(facts)

    def blocks(self) -> list[Block]:
        figures = dict.fromkeys(("loss", "dev_loss"), f"not measured at step {self.facts.get('saved_step', 0)}")
        facts = {LABELS[key]: fact for key, fact in (figures | self.facts).items() if key in LABELS}
        texts = [(label, f"{fact:.4f}" if isinstance(fact, float) else str(fact), "") for label, fact in facts.items()]
        return [Callout(self.sentence, TONES.get(self.state, "bad")), Facts(texts)]
