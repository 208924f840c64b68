"""The kit's errors: one sentence of what is wrong and where, one of what to do."""

from ragfit.draw.text import in_one_line, plain
from ragfit.secrets import mask


class RagfitError(Exception):
    """Something the user can mend; its text says what is wrong and what to do, and holds no token.

    Attributes:
        where: the configuration's key, or the file and line; "" where there is none.
        problem: what is wrong, a clause that can follow `where` and a colon.
        fix: what to do, a sentence.
    """

    def __init__(self, where: str, problem: str, fix: str = ""):
        self.where, self.problem, self.fix = (mask(str(part)) for part in (where, problem, fix))
        self.args = self.where, self.problem, self.fix  # pickle makes the error anew of these

    def __str__(self) -> str:
        said = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{said.rstrip('.')}. {self.fix}" if self.fix else said

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of a traceback."""
        return [f"{type(self).__name__}: {plain(self)}"]


class ConfigError(RagfitError, ValueError):
    """A configuration key or value that cannot be used."""

    def in_file(self, place: object) -> "ConfigError":
        """The same error with the place that the key was given in."""
        return type(self)(self.where, f"{self.problem} ({place})", self.fix)


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
    """Another library's error in one line and without its last period, for a sentence of ours.

    Its first line, all of it where that line ends with a colon, or its class where it has no text.
    """
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return in_one_line(text if first.rstrip().endswith(":") else first, 300).rstrip(". ")


def for_terminal(error: BaseException, where: str = "") -> str:
    """What a command says as it ends with an error of the kit's: one line."""
    return f"error: {where}{in_one_line(error, 2000)}"
