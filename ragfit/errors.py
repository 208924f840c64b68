"""The kit's errors: one sentence of what is wrong and where, one of what to do."""


class RagfitError(Exception):
    """Something the user can mend; the message says what, where and how."""


class ConfigError(RagfitError):
    """A configuration key or value that cannot be used."""


class DataError(RagfitError):
    """A data file, or a row of one, that cannot be used."""


class PromptError(RagfitError):
    """A prompt that cannot be rendered, or whose loss cannot be placed."""


def first_line(error):
    """Another library's error in one line, for a message of ours: its first line, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
