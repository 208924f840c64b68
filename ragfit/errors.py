"""The kit's errors: one sentence of what is wrong and where, one of what to do."""

from ragfit.draw.text import in_one_line, plain
from ragfit.secrets import mask


class RagfitError(Exception):
    """Something the user can mend: `where` (key, or file and line), `problem` (a clause), `fix` (a sentence)."""

    def __init__(self, where: str, problem: str, fix: str = ""):
        self.args = self.where, self.problem, self.fix = tuple(mask(str(part)) for part in (where, problem, fix))

    def __str__(self) -> str:
        said = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{said.rstrip('.')}. {self.fix}" if self.fix else said

    def _render_traceback_(self) -> list[str]:  # what IPython shows in the place of a traceback
        return [f"{type(self).__name__}: {plain(self)}"]


class ConfigError(RagfitError, ValueError):
    """A configuration key or value that cannot be used."""

    def in_file(self, place: object) -> "ConfigError":  # the same error with the place that the key was given in
        return type(self)(self.where, f"{self.problem} ({place})", self.fix)


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
    """Another library's error in one line without its last period; all of it where its first line ends with a colon."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return in_one_line(" ".join([first, *more]) if first.rstrip().endswith(":") else first, 300).rstrip(". ")


def for_terminal(error: BaseException, where: str = "") -> str:
    """What a command says as it ends with an error of the kit's: one line."""
    return f"error: {where}{in_one_line(error, 2000)}"
