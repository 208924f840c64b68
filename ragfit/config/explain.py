"""What a library raises, as a sentence with the key that is most likely meant."""

import contextlib
import errno
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ragfit.draw.text import plain
from ragfit.errors import TRACEBACK, ConfigError, RagfitError, whole_text

logger = logging.getLogger(__name__)
T = TypeVar("T")

# What the libraries say when something gives out that is no single key's fault, and what helps.
LESS_MEMORY = (
    "Lower train.per_device_train_batch_size (train.gradient_accumulation_steps makes up for it) or model."
    "max_sequence_len, set train.gradient_checkpointing=true, or load the model in 4 bits (model.load_in_4bit=true)"
)
LESS_TO_EVALUATE = (
    "Lower train.per_device_eval_batch_size or model.max_sequence_len, or load the model in 4 bits "
    "(model.load_in_4bit=true). The adapter of a run that has ended is saved: its checkpoint/ can be evaluated later"
)
OUT_OF_MEMORY = (
    "out of memory|can't allocate memory|cannot allocate memory|alloc_failed|bad_alloc|could not create a memory|"
    "MemoryError"
)
TOKENIZER = "Check that the tokenizer belongs to model.model_name_or_path, and lower model.max_sequence_len"
OTHER_MODEL = "Check that resume_checkpoint, model.trained_adapter and model.model_name_or_path belong together"
LOCAL = "Check the network, or set model.model_name_or_path and data_file to local files"
CAUSES = (
    ("no space left|disk quota|file too large", "Make room there, or set train.output_dir to another disk"),
    ("device-side assert|index out of range|out of bounds", TOKENIZER),
    ("size mismatch|loading state_dict|parameter group", OTHER_MODEL),
    ("c compiler", "Install one (gcc), which Triton builds its kernels with on a GPU"),
    ("dataloader worker", "Set train.dataloader_num_workers=0"),
    ("bitsandbytes", "Set model.load_in_8bit=false and model.load_in_4bit=false, or another train.optim"),
    ("flash.?attention|flash_attn", "Set model.attn_implementation=sdpa"),
    ("trust_remote_code|custom code", "Set model.trust_remote_code=true if you trust the code that the model brings"),
    ("nccl|gloo|timed out after|rendezvous", "Check that all processes run and reach each other"),
    ("max retries|connection|offline|couldn't reach|name resolution", LOCAL),
)


@contextlib.contextmanager
def explained(doing: str, less_memory: str = LESS_MEMORY) -> Iterator[None]:
    """The one place where what a library raises becomes a sentence of this kit's.

    For the public functions, as a decorator or around a block. The kit's own errors, a user's interrupt and the end of
    the process pass as they are.

    Args:
        doing: what fails then, as the subject of a sentence, such as "Training".
        less_memory: what to do where memory gives out, without the period.

    Raises:
        RagfitError: from the library's error, with the key that is most likely meant and the library's own words.
    """
    try:
        yield
    except RagfitError:
        raise
    except Exception as error:  # of any library, or of this kit's own code
        said = whole_text(error)
        if re.search(OUT_OF_MEMORY, said, re.IGNORECASE):
            advice = less_memory
            # Else a notebook, which keeps the error, keeps the tensors too, and there is no room to try again.
            traceback.clear_frames(error.__traceback__)
        else:
            advice = _advice(error)
        raise RagfitError("", f"{doing} failed: {said}", f"{advice}. {TRACEBACK}=1 shows where it happened.") from error


def _advice(error: Exception) -> str:
    """What to do about another library's error, half a sentence."""
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.filename is not None and error.errno not in disk:
        return f"Check that {plain(error.filename)!r} exists and that you may read and write it"
    said = whole_text(error)
    for pattern, advice in CAUSES:
        if re.search(pattern, said, re.IGNORECASE):
            return advice
    from ragfit.config.schema import known_keys

    # Libraries write the names of arguments as they are; only those of several words are no words of a sentence.
    words = set(re.findall(r"\w+_\w+", said))
    if named := [key for key in known_keys() if key.rpartition(".")[2] in words]:
        return f"Change or remove {' or '.join(named[:3])}"
    return (
        "If its text names a key of yours, change that one; otherwise it may be a fault of this kit or of that library"
    )


def tried(
    attempt: Callable[[Any], T],
    keys: Any,
    without: Callable[[str], Any],
    plain: Any,
    room: str,
    names: Mapping[str, Any],
) -> T | None:
    """Try something with keys; where that fails, find the key without which it does not.

    Args:
        attempt: a function of keys that raises what a library raises.
        without: a function of a name that gives the keys without it.
        plain: keys with which it would only fail for other reasons, if there are such.
        room: what to name where no single key is at fault.
        names: of the keys, with their values.

    Returns:
        What the attempt gives; None where it fails with plain keys too.

    Raises:
        ConfigError: it fails with the keys and not without them.
    """

    def outcome(keys: Any) -> tuple[T | None, BaseException | None]:
        try:
            with explained("The trial"):
                return attempt(keys), None
        except RagfitError as failure:
            return None, (type(failure) is RagfitError and failure.__cause__) or failure

    result, error = outcome(keys)
    if error is None:
        return result
    if plain is not None and outcome(plain)[1]:
        logger.debug("No trial: %s", error)
        return None
    if isinstance(error, ConfigError):  # this kit's own, which names the key
        raise error
    said = whole_text(error)

    def likelihood(name: str) -> tuple[bool, bool, int]:
        key, values = name.rpartition(".")[2], re.findall(r"\w{4,}", str(names[name]))
        # The longer name is of a detail, such as `optim_args`: nothing reads it without the shorter one, `optim`.
        return key in said, any(word in said for word in values), len(key)

    likely = sorted(names, key=likelihood, reverse=True)
    guilty = next((name for name in likely if outcome(without(name))[1] is None), None)
    key = room if guilty is None else guilty if guilty.startswith(("train.", "model.")) else f"{room}.{guilty}"
    change = f"Change the key of {room} that it names" if guilty is None else f"Change or remove {key}"
    raise ConfigError(key, said, f"{change}; {TRACEBACK}=1 shows where it was raised.") from error
