"""What a library raises while it loads something, in one sentence of this kit's."""

import contextlib
import pickle
import re
from collections.abc import Callable, Iterator

from ragfit.errors import ConfigError, RagfitError, first_line

MODEL_KEY = "model.model_name_or_path"


@contextlib.contextmanager
def errors_as(refusal: Callable[[Exception], RagfitError]) -> Iterator[None]:
    """Raise the kit's error in the place of whatever a library raises: this room's only `except Exception`.

    transformers, PEFT, tokenizers, safetensors, pickle, the hub and a model's own code have no common class of errors;
    tokenizers raises a bare `Exception`.

    Args:
        refusal: makes the error from the library's. Memory that runs out passes as it is, since
            `ragfit.config.explain` has advice for it.
    """
    try:
        yield
    except RagfitError:
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        raise refusal(error) from error


def not_loaded(name: str, error: Exception, what: str = "model") -> ConfigError:
    """The error for a model or a tokenizer that a library could not load, under the key that is most likely meant."""
    reason = first_line(error)
    fix = "Give a folder with a model, or a name on the hub and a network (a gated model needs `hf auth login`)."
    if re.search("attn_implementation|flash_attn|FlashAttention", reason):
        return ConfigError("model.attn_implementation", reason.partition(". ")[0], "Set another, or leave it empty.")
    if re.search("device_map|compiled with CUDA|device ordinal|accelerator device", reason):
        return ConfigError("model.device_map", reason, "Set it to auto or cuda:0, or leave it empty.")
    if isinstance(error, pickle.UnpicklingError):
        reason = "its weights are a pickle that holds more than tensors, which could run code and is not read"
        fix = "Take the model's safetensors files."
    elif "custom code" in reason:
        reason = "it needs custom code that comes with it, which is not run"
        fix = "Set model.trust_remote_code=true if you trust it."
    elif "ignore_mismatched_sizes" in reason:
        reason, fix = "its weights have other shapes than its config.json says", "Fetch the model again."
    return ConfigError(MODEL_KEY, f"no {what} could be loaded from {str(name)!r}: {reason}", fix)
