"""The kit's errors: one sentence of what is wrong and where, one of what to do."""

import contextlib
import errno
import os
import re
import traceback

from ragfit.printable import in_one_line, plain
from ragfit.secrets import mask

TRACEBACK = "RAGFIT_TRACEBACK"


class RagfitError(Exception):
    """Something the user can mend; the message says what, where and how, and holds no token."""

    def __init__(self, message):
        super().__init__(mask(str(message)))

    def _render_traceback_(self):
        """What IPython shows of this error: the sentence. Where it was raised is shown under `RAGFIT_TRACEBACK=1`."""
        return [*_frames(self), f"{type(self).__name__}: {plain(self)}"]


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
    return in_one_line((str(error).strip() or type(error).__name__).splitlines()[0], 300).rstrip(". ")


def whole_text(error):
    """Another library's error in one line, all that it says, with its class where the text is no sentence of its own."""
    text = in_one_line(error).rstrip(". ")
    if type(error) in (ValueError, ImportError, RuntimeError) and " " in text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def for_terminal(error, where=""):
    """What a command says as it ends with an error: one line, under `RAGFIT_TRACEBACK=1` with the trace before it."""
    return "\n".join([*_frames(error), f"error: {where}{plain(error)}"])


def _frames(error):
    """The lines of an error's trace, where the user asks for it."""
    if os.environ.get(TRACEBACK, "0") in ("", "0"):
        return []
    return [mask(plain(line)) for part in traceback.format_exception(error) for line in part.splitlines()]


# What the libraries say when something gives out that is no single key's fault, and what helps.
MEMORY = (
    "Lower train.per_device_train_batch_size (train.gradient_accumulation_steps makes up for it) or model.max_sequence_len, "
    "set train.gradient_checkpointing=true, or load the model in 4 bits (model.load_in_4bit=true)"
)
CAUSES = (
    ("out of memory|can't allocate memory|cannot allocate memory|bad_alloc|^MemoryError", MEMORY),
    ("no space left|disk quota|file too large", "Make room there, or set train.output_dir to another disk"),
    ("device-side assert|index out of range|out of bounds", "Check that the tokenizer belongs to model.model_name_or_path, and lower model.max_sequence_len"),
    ("size mismatch|loading state_dict|parameter group", "Check that resume_checkpoint, model.trained_adapter and model.model_name_or_path belong together"),
    ("dataloader worker", "Set train.dataloader_num_workers=0"),
    ("bitsandbytes", "Set model.load_in_8bit=false and model.load_in_4bit=false, or another train.optim"),
    ("flash.?attention|flash_attn", "Set model.attn_implementation=sdpa"),
    ("trust_remote_code|custom code", "Set model.trust_remote_code=true if you trust the code that comes with the model"),
    ("nccl|gloo|timed out after|rendezvous", "Check that all processes run and reach each other"),
    ("max retries|connection|offline|couldn't reach|name resolution", "Check the network, or set model.model_name_or_path and data_file to local files"),
)  # fmt: skip


@contextlib.contextmanager
def explained(doing):
    """The one place where what a library raises becomes a sentence of this kit's.

    For the public functions, as a decorator or around a block. The kit's own errors, a user's interrupt and the end of
    the process pass as they are.

    Args:
        doing: what fails then, as the subject of a sentence, such as "Training".

    Raises:
        RagfitError: from the library's error, with the key that is most likely meant and the library's own words.
    """
    try:
        yield
    except RagfitError:
        raise
    except Exception as error:  # of any library, or of this kit's own code
        advice = _advice(error)
        raise RagfitError(f"{doing} failed: {whole_text(error)}. {advice}. {TRACEBACK}=1 shows where it happened.") from error


def _advice(error):
    """What to do about another library's error, half a sentence."""
    if isinstance(error, OSError) and error.filename is not None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"Check that {plain(error.filename)!r} exists and that you may read and write it"
    said = whole_text(error)
    for pattern, advice in CAUSES:
        if re.search(pattern, said, re.IGNORECASE):
            return advice
    from ragfit.keys import known_keys

    # Libraries write the names of arguments as they are; only those of several words are no words of a sentence.
    words = set(re.findall(r"\w+_\w+", said))
    if named := [key for key in known_keys() if key.rpartition(".")[2] in words]:
        return f"Change or remove {' or '.join(named[:3])}"
    return "If its text names a key of yours, change that one; otherwise it may be a fault of this kit or of that library"
