"""The kit's errors: one sentence of what is wrong and where, one of what to do."""


class RagfitError(Exception):
    """Something the user can mend; the message says what, where and how."""


class ConfigError(RagfitError):
    """A configuration key or value that cannot be used."""


class DataError(RagfitError):
    """A data file, or a row of one, that cannot be used."""


class PromptError(RagfitError):
    """A prompt that cannot be rendered, or whose loss cannot be placed."""
