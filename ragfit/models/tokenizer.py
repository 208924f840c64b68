"""Load a tokenizer as `AutoTokenizer` would, and without importing torch where that is certain to be the same."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.config.paths import find_model, is_demo
from ragfit.errors import ConfigError, first_line
from ragfit.models.demo import MODEL_KEY, model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizer


def resolve(name: str, key: str = MODEL_KEY) -> str:
    return str(model_folder(name) if is_demo(name) else find_model(name, key) or name)


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> "PreTrainedTokenizer":
    """Load a model's tokenizer, without `AutoTokenizer` where it can be: that imports torch, which takes seconds."""
    source = resolve(name)
    try:
        if not trust_remote_code and is_generic(source, revision):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(source, revision=revision or "main")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:  # the latter of a tokenizer that has no tokenizer.json
        raise not_found(name, error, "tokenizer") from error


def not_found(name: str, error: Exception, what: str = "model") -> ConfigError:
    fix = "Give a folder with a model, or a name on the hub and a network (a gated model needs `hf auth login`)."
    return ConfigError(MODEL_KEY, f"no {what} could be loaded from {name!r}: {first_line(error)}", fix)


def is_generic(source: str, revision: str | None = None) -> bool:
    """Whether AutoTokenizer is certain to use `PreTrainedTokenizerFast`: it is named, and no model's type overrides it.

    Some types do (`qwen2`). Of those that don't, Llama is the one whose tokenizers name it most.
    """
    tokenizer, model = (_json(source, name, revision) for name in ("tokenizer_config.json", "config.json"))
    generic = ("PreTrainedTokenizerFast", "TokenizersBackend")  # transformers' names for "tokenizer.json as it stands"
    named = tokenizer.get("tokenizer_class") in generic and "auto_map" not in tokenizer
    known = not model or (model.get("model_type") == "llama" and "model_name" not in model)
    return named and known and model_file(source, "tokenizer.json", revision) is not None


def stop_token_ids(name: str | None, revision: str | None = None) -> list[int]:
    """The ids that a model's generation stops at, where its files say: `eos_token_id` of its configuration."""
    if not name or is_demo(name):
        return []
    source = str(find_model(name) or name)
    # The second is read where there is no first, as in transformers.
    file = next((n for n in ("generation_config.json", "config.json") if model_file(source, n, revision)), "")
    ids = _json(source, file, revision).get("eos_token_id")
    return [number for number in (ids if isinstance(ids, list) else [ids]) if isinstance(number, int)]


def _json(source: str, name: str, revision: str | None) -> dict[str, Any]:
    path = model_file(source, name, revision)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def model_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or, through the hub's cache, of a model's name; None where there is none."""
    if Path(source).is_dir():
        return path if (path := Path(source, name)).is_file() else None
    from huggingface_hub import hf_hub_download

    with contextlib.suppress(OSError, ValueError):  # no file, model, network or right, which loading the model says
        return Path(hf_hub_download(source, name, revision=revision))
