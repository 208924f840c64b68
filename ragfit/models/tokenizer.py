"""Load a tokenizer the way `AutoTokenizer` would, without importing torch where that is certain to be the same."""

import ast
import fnmatch
import functools
import json
from pathlib import Path

from ragfit.config.paths import check_reachable, find_model, is_demo
from ragfit.errors import ConfigError, first_line
from ragfit.models.demo import tokenizer_folder

# transformers' names for "take tokenizer.json as it stands".
_GENERIC = {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}


def load_tokenizer(name, revision=None, trust_remote_code=False):
    """Load the tokenizer of a model.

    `AutoTokenizer` imports torch (seconds); a look at a prompt should not wait for it. It chooses a class by the
    tokenizer's own configuration and the model's type. Where that choice is certain, the class is used directly;
    elsewhere AutoTokenizer decides.

    Args:
        name: a folder, a name on the hub, or `demo:…`.

    Raises:
        ConfigError: no tokenizer there.
    """
    if is_demo(name):
        folder = tokenizer_folder(name)
    else:
        folder = find_model(name)
        if folder is None:
            check_reachable(str(name), "model.model_name_or_path")
    source = str(folder or name)
    try:
        cls = None if trust_remote_code else _certain_class(source, revision)
        if cls is not None:
            return cls.from_pretrained(source, revision=revision or "main")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except ConfigError:
        raise
    except Exception as error:  # transformers, the hub and the network raise many kinds
        reason, advice = first_line(error), "Give a folder with a tokenizer, or a model's name on the hub and a network"
        advice += " (or HF_HUB_OFFLINE=1 and a filled cache)"
        if "custom code" in reason:
            reason = "it needs custom code that comes with it, which is not run"
            advice = "Set model.trust_remote_code=true if you trust it"
        problem = f"model.model_name_or_path: no tokenizer could be loaded from {str(name)!r}: {reason}"
        raise ConfigError(f"{problem}. {advice}.") from error


def _certain_class(source, revision=None):
    """The class that AutoTokenizer is certain to use for a folder or a name on the hub, or None.

    Follows `AutoTokenizer.from_pretrained` of transformers 5.23: the class that is registered for the model's type
    can override the one that the tokenizer's own configuration names, and a byte-level `tokenizer.json` overrides
    LlamaTokenizer. Its tables are read off its source, because importing it imports torch.
    """
    files = {name: _file(source, name, revision) for name in ("tokenizer.json", "tokenizer_config.json", "config.json")}
    if not files["tokenizer.json"] or not files["tokenizer_config.json"]:
        return None
    try:
        config = json.loads(files["tokenizer_config.json"].read_text(encoding="utf-8"))
        model = json.loads(files["config.json"].read_text(encoding="utf-8")) if files["config.json"] else {}
        registered, incorrect, patterns = _tables()
        model_type, name = (
            model.get("model_type"),
            (config.get("tokenizer_class") or model.get("tokenizer_class")).removesuffix("Fast"),
        )
    except (ValueError, AttributeError, LookupError, TypeError, SyntaxError, OSError):
        return None  # broken files, no class named, or tables that look different in another release
    import transformers

    if (
        "auto_map" in config
        or model.get("model_name") in incorrect
        or any(fnmatch.fnmatch(source.lower(), p) for p in patterns)
    ):
        return None
    if (
        files["config.json"]
        and not Path(transformers.__file__).with_name("models").joinpath(str(model_type).replace("-", "_")).is_dir()
    ):
        return None  # a model that transformers does not know brings code of its own
    of_type = registered.get(model_type, name).removesuffix("Fast")
    if of_type == "MistralCommonBackend" and _file(source, "tekken.json", revision):
        return None
    if name == "LlamaTokenizer" and '"ByteLevel"' in files["tokenizer.json"].read_text(encoding="utf-8"):
        return None
    if of_type != name and of_type not in (*_GENERIC, "MistralCommonBackend") and model_type in incorrect:
        return None
    if name in _GENERIC or of_type in _GENERIC or of_type == "MistralCommonBackend":
        return transformers.PreTrainedTokenizerFast
    cls = getattr(transformers, name, None)  # any name that a downloaded file gives
    return cls if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedTokenizerBase) else None


def stop_token_ids(name, revision=None) -> list[int]:
    """The ids that a model's generation stops at: `eos_token_id` of its generation configuration, as transformers reads it.

    Args:
        name: a folder or a name on the hub.

    Returns:
        The ids; empty where the model's files do not say.
    """
    if not name or is_demo(name):
        return []
    source = str(find_model(name) or name)
    for file in ("generation_config.json", "config.json"):  # the second where there is no first, as in transformers
        path = _file(source, file, revision)
        if path is None:
            continue
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            return []  # loading the model says what is wrong with it
        ids = ids if isinstance(ids, list) else [ids]
        return [number for number in ids if isinstance(number, int)]
    return []


def _file(source, name, revision):
    """A file of a folder or, through the hub's cache, of a model's name; None where there is none."""
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None  # no such model, or no right to it: AutoTokenizer says so
    return found and Path(found)


@functools.cache
def _tables():
    """(class of each model type, model types whose named class is wrong, patterns of model names) of AutoTokenizer."""
    import transformers
    from transformers.utils import import_utils

    path = Path(transformers.__file__).with_name("models") / "auto" / "tokenization_auto.py"
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found[ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)] = node.value

    def chosen(node):
        while isinstance(node, ast.IfExp):  # "X" if is_y_available() else …
            node = node.body if getattr(import_utils, node.test.func.id)() else node.orelse
        return ast.literal_eval(node)

    pairs = [
        (ast.literal_eval(pair.elts[0]), chosen(pair.elts[1])) for pair in found["TOKENIZER_MAPPING_NAMES"].args[0].elts
    ]
    incorrect = ast.literal_eval(found["MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS"])
    registered = dict.fromkeys(incorrect, "TokenizersBackend") | {key: name for key, name in pairs if name}
    return registered, incorrect, ast.literal_eval(found["MODEL_IDS_TO_TOKENIZERS_BACKEND"])
