"""The kit's errors: one sentence of what is wrong and where, one of what to do."""

import os
import traceback

from ragfit.draw.text import in_one_line, plain
from ragfit.secrets import mask

TRACEBACK = "RAGFIT_TRACEBACK"


class RagfitError(Exception):
    """Something the user can mend; its text says in one sentence what is wrong and in one what to do, without tokens.

    Attributes:
        where: the configuration's key, or the file and line; "" where there is none.
        problem: what is wrong, a clause that can follow `where` and a colon.
        fix: what to do, a sentence.
    """

    def __init__(self, where: str, problem: str, fix: str = ""):
        self.where, self.problem, self.fix = (mask(str(part)) for part in (where, problem, fix))
        self.args = self.where, self.problem, self.fix  # for pickle, which makes the error anew of these

    def __str__(self) -> str:
        said = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{said.rstrip('.')}. {self.fix}" if self.fix else said

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of this error: the sentence. Where it was raised is shown under `RAGFIT_TRACEBACK=1`."""
        return [*_frames(self), f"{type(self).__name__}: {plain(self)}"]


class ConfigError(RagfitError, ValueError):
    """A configuration key or value that cannot be used."""

    @property
    def key(self) -> str:
        return self.where

    def in_file(self, place: object, line: int | None = None) -> "ConfigError":
        """The same error with the place it comes from: a file, perhaps with a line of it."""
        where = f"{place}, line {line}" if line else str(place)
        return type(self)(self.where, f"{self.problem} ({where})", self.fix)


class MissingPath(ConfigError, FileNotFoundError):
    """A key that names a file or folder which is not there."""


class DataError(RagfitError, ValueError):
    """A data file, or a row of one, that cannot be used."""


class PromptError(RagfitError, ValueError):
    """A prompt that cannot be rendered, or whose loss cannot be placed."""


class Interrupted(RagfitError):
    """A run that was asked to stop by a signal of that number, and did so with everything saved."""

    def __init__(self, message: str, signal: int):
        super().__init__("", message)
        self.args, self.signal = (message, signal), signal


def first_line(error: BaseException) -> str:
    """Another library's error in one line, for a message of ours: its first line, or its class.

    All of it where that line ends with a colon. Without the period at its end: the sentence that it is put in has one
    of its own.
    """
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return in_one_line(text if first.rstrip().endswith(":") else first, 300).rstrip(". ")


def whole_text(error: BaseException) -> str:
    """Another library's error in one line, all that it says, with its class where the text is not a sentence."""
    text = in_one_line(error).rstrip(". ")
    if type(error) in (ValueError, ImportError, RuntimeError) and " " in text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def for_terminal(error: BaseException, where: str = "") -> str:
    """What a command says as it ends with an error: one line, under `RAGFIT_TRACEBACK=1` with the trace before it."""
    return "\n".join([*_frames(error), f"error: {where}{plain(error)}"])


def _frames(error: BaseException) -> list[str]:
    """The lines of an error's trace, where the user asks for it."""
    if os.environ.get(TRACEBACK, "0") in ("", "0"):
        return []
    return [mask(plain(line)) for part in traceback.format_exception(error) for line in part.splitlines()]
