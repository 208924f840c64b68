"""Load a tokenizer the way `AutoTokenizer` would, without importing torch where that is certain to be the same."""

import json
from pathlib import Path

from ragfit.config import find_existing
from ragfit.demo import is_demo, tokenizer_folder
from ragfit.errors import ConfigError, first_line

# transformers' names for "take tokenizer.json as it stands".
_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def load_tokenizer(name, revision=None, trust_remote_code=False):
    """Load the tokenizer of a model.

    `AutoTokenizer` imports torch (seconds); a look at a prompt should not wait for it. In a local folder that
    names its class and has no `config.json`, AutoTokenizer uses that class, so it is used directly here. Where
    the model's type could make AutoTokenizer choose another class, AutoTokenizer decides.

    Args:
        name: a folder, a name on the hub, or `demo:…`.

    Raises:
        ConfigError: no tokenizer there.
    """
    if is_demo(name):
        folder = tokenizer_folder(name)
    else:
        folder = find_existing(name)
    source = str(folder or name)
    try:
        cls = _certain_class(folder) if folder and not trust_remote_code else None
        if cls is not None:
            return cls.from_pretrained(source)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except ConfigError:
        raise
    except Exception as error:  # transformers, the hub and the network raise many kinds
        raise ConfigError(
            f"model.model_name_or_path: no tokenizer could be loaded from {name!r}: {first_line(error)}. "
            "Give a folder with a tokenizer, or a model's name on the hub and a network (or HF_HUB_OFFLINE=1 and a filled cache)."
        ) from error


def _certain_class(folder):
    """The class that AutoTokenizer is certain to use for a folder, or None.

    Read off `transformers.models.auto.tokenization_auto` 5.23: a model's type can override the class that the
    tokenizer's own configuration names, and a byte-level `tokenizer.json` overrides LlamaTokenizer.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        model_type = None
        if (folder / "config.json").is_file():
            model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except ValueError:
        return None
    name = config.get("tokenizer_class")
    if not name or "auto_map" in config or model_type not in (None, "llama"):
        return None
    import transformers

    if name in _GENERIC:
        return transformers.PreTrainedTokenizerFast
    if model_type is not None:
        return None
    if name.startswith("LlamaTokenizer") and '"ByteLevel"' in (folder / "tokenizer.json").read_text(encoding="utf-8"):
        return None
    return getattr(transformers, name, None)
