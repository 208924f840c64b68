"""The kit's errors: one sentence of what is wrong and where, one of what to do."""

from ragfit.secrets import mask


class RagfitError(Exception):
    """Something the user can mend; the message says what, where and how, and holds no token."""

    def __init__(self, message):
        super().__init__(mask(str(message)))

    def _render_traceback_(self):
        """What IPython shows of this error: the sentence. Where in the kit it was raised mends nothing."""
        from ragfit.views.style import plain

        return [f"{type(self).__name__}: {plain(self)}"]


class ConfigError(RagfitError):
    """A configuration key or value that cannot be used."""


class DataError(RagfitError):
    """A data file, or a row of one, that cannot be used."""


class PromptError(RagfitError):
    """A prompt that cannot be rendered, or whose loss cannot be placed."""


class Interrupted(RagfitError):
    """A run that was asked to stop, and did so with everything saved.

    Attributes:
        signal: the signal's number; a shell's exit code is 128 + that.
    """

    def __init__(self, message, signal):
        super().__init__(message)
        self.signal = signal


def first_line(error):
    """Another library's error in one line, for a message of ours: its first line, or its class where it says nothing.

    Without the period at its end: the sentence that it is put in has one of its own.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(". ")
