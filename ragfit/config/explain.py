"""Advice below what a library raises: the error stays as it is, with its traceback."""

import contextlib
import re
import traceback
from collections.abc import Iterator

from ragfit.errors import RagfitError

LESS_MEMORY = (
    "Lower train.per_device_train_batch_size (train.gradient_accumulation_steps makes up for it) or model."
    "max_sequence_len, set train.gradient_checkpointing=true, or load the model in 4 bits (model.load_in_4bit=true)"
)
LESS_TO_EVALUATE = (
    "Lower train.per_device_eval_batch_size or model.max_sequence_len, or load the model in 4 bits "
    "(model.load_in_4bit=true). The adapter of a run that has ended is saved: its checkpoint/ can be evaluated later"
)
_OUT_OF_MEMORY = "out of memory|can(no|')t allocate memory|alloc_failed|bad_alloc|could not create a memory|MemoryError"
_CAUSES = {
    "no space left|disk quota|file too large": "Make room there, or set train.output_dir to another disk",
    "device-side assert|index out of range": "Check that the tokenizer belongs to model.model_name_or_path",
    "flash.?attention|flash_attn": "Set model.attn_implementation=sdpa",
    "trust_remote_code|custom code": "Set model.trust_remote_code=true (merge: --trust-remote-code) if you trust it",
    "max retries|connect|offline|name resolution": "Check the network, or name a model and rows on this disk",
}


@contextlib.contextmanager
def explained(doing: str, less_memory: str = LESS_MEMORY) -> Iterator[None]:
    """Raise a library's error on with a note of what most likely helps; `doing` is what failed, such as "Training"."""
    try:
        yield
    except RagfitError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if re.search(_OUT_OF_MEMORY, said, re.IGNORECASE):
            # A notebook keeps the error, the error its frames, and these the tensors: no room to try again.
            traceback.clear_frames(error.__traceback__)
            advice = less_memory
        else:
            advice = next((advice for cause, advice in _CAUSES.items() if re.search(cause, said, re.IGNORECASE)), "")
        if advice and not hasattr(error, "__notes__"):  # a block within this one may have said it
            error.add_note(f"{doing} failed. {advice}.")
        raise
