"""The keys of a configuration: their types, their earlier names, and what must be set for a key to be read.

Names and types of `train` and `model.lora` are read off the libraries' sources, since importing trl takes 9 s.
"""

import ast
import contextlib
import difflib
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ragfit.errors import ConfigError
from ragfit.secrets import MASK, is_secret_name

HF_TRAIN = "ragfit.models.hf.HFTrain"
STRICT = ("model", "train", "model.lora")  # mappings whose keys are checked; those of others are free

Count = Annotated[int, Field(ge=1)]
# To Jinja any text is true, so text that says whether, as papermill or the environment brings it, becomes what it says.
_SAYS = {"true": True, "false": False, "null": None}
Variable = Annotated[Any, BeforeValidator(lambda value: _SAYS.get(str(value).lower(), value))]
DATA_KEYS: dict[str, Any] = {
    **dict.fromkeys(("instruction", "template", "data_file", "input_key", "output_key"), str | None),
    "resume_checkpoint": bool | str | None,
    "limit": Count | None,
    "shuffle": bool | Annotated[int, Field(ge=0, lt=2**32)] | None,
    "dev_split": int | float | str | None,
    "use_wandb": bool | None,
    **dict.fromkeys(("hfhub_tag", "experiment", "wandb_entity"), str | None),
}
# Read from `model` when rows are prepared, whatever class `_target_` names.
PROMPT_KEYS: dict[str, Any] = {
    "completion_start": str | None,
    "instruction_in_prompt": bool | None,
    "max_sequence_len": Count | None,
    "over_length": Literal["drop", "cut_documents", "cut_start", "cut_end"] | None,
    "chat_template_kwargs": dict[str, Variable] | None,
}
MODEL_KEYS: dict[str, Any] = {
    "_target_": str,
    **dict.fromkeys(("model_name_or_path", "revision", "trained_adapter", "dtype", "attn_implementation"), str | None),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "trust_remote_code"), bool | None),
    **dict.fromkeys(("quantization_config", "lora", "generation"), dict | None),
    "device_map": str | int | dict | None,
    **PROMPT_KEYS,
}
# Keys of `train` that are this kit's own, and what works of what the libraries declare.
OWN_KEYS: dict[str, Any] = {
    "train.early_stopping_patience": Count | None,
    "train.early_stopping_threshold": float | None,
    "train.completion_only_loss": Literal[True] | None,
    "model.lora.peft_type": Literal["LORA"] | None,
    "model.lora.task_type": Literal["CAUSAL_LM"] | None,
    "model.lora.init_lora_weights": bool | str,
}
# Names in RAG-FiT's files and their like; today's key wins over an earlier name in the same file.
RENAMED = {
    "model.torch_dtype": "model.dtype",
    "train.group_by_length": "train.train_sampling_strategy",
    "train.warmup_ratio": "train.warmup_steps",
    "train.evaluation_strategy": "train.eval_strategy",
    "train.max_seq_length": "model.max_sequence_len",
    "train.max_length": "model.max_sequence_len",  # with packing it is the length of a pack, and stays
}
# Where the libraries declare their fields, base classes first.
_SOURCES = (
    ("train", "transformers", "training_args.py", "TrainingArguments"),
    ("train", "trl", "trainer/base_config.py", "_BaseConfig"),
    ("train", "trl", "trainer/sft_config.py", "SFTConfig"),
    ("model.lora", "peft", "config.py", "PeftConfigMixin"),
    ("model.lora", "peft", "config.py", "PeftConfig"),
    ("model.lora", "peft", "tuners/lora/config.py", "LoraConfig"),
)


class _Names(dict):
    """What names in the libraries' annotations are in YAML: a class of configuration keys and values, others text."""

    def __missing__(self, name: str) -> type:
        return dict if name.endswith("Config") else str


def _fields(part: str, package: str, file: str, name: str) -> dict[str, Any]:
    """The fields of a dataclass in a library's source as keys of a part, with their types."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    names = _Names({kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple)})
    names |= {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}
    tree = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    annotated = {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
    return {f"{part}.{k}": eval(kind, {}, _Names(names)) for k, kind in annotated.items() if "ClassVar" not in kind}


@functools.cache
def known_keys() -> dict[str, Any]:
    """Every dotted key of a configuration with its type, without earlier names."""
    known = {**DATA_KEYS, "model": dict, "train": dict, **{f"model.{key}": kind for key, kind in MODEL_KEYS.items()}}
    for source in _SOURCES:
        known |= _fields(*source)
    return known | OWN_KEYS


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union, without annotations; a type that is none by itself."""
    if get_origin(kind) is Annotated:
        return _parts(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for part in get_args(kind) for member in _parts(part))
    return (kind,)


def _kinds(key: str) -> set[Any]:
    """The types that a key takes, without what stands in their brackets."""
    return {get_origin(kind) or kind for kind in _parts(known_keys().get(key))}


def is_known(key: str, any_model: bool = False) -> bool:
    """Whether a dotted key exists, or stands below one whose keys are free, as `model.generation` is.

    Args:
        any_model: whether `model` is for another class than this kit's, which may take any key.
    """
    if key in known_keys() or key in RENAMED or any_model and key.startswith("model."):
        return True
    above = key.rpartition(".")[0]
    if above in known_keys():
        return above not in STRICT and bool(_kinds(above) & {Any, dict, list})
    return bool(above) and is_known(above)


def is_text(key: str) -> bool:
    """Whether a key takes text alone, so that what looks like a number or a list is text too."""
    return key in known_keys() and _kinds(key) <= {str, NoneType}


def simple_type(key: str) -> type | None:
    """`int`, `float` or `bool` where a key takes nothing else, but perhaps None."""
    kinds = _kinds(key) - {NoneType}
    return kinds.pop() if len(kinds) == 1 and kinds < {int, float, bool} else None


def unknown_key(key: str, extra: Iterable[str] = (), what: str = "key") -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    short = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
    parent, _, last = key[:100].rpartition(".")

    def likeness(known: str) -> float:
        known_parent, _, known_last = known.rpartition(".")
        whole = difflib.SequenceMatcher(None, key[:100], known).ratio()
        by_name = difflib.SequenceMatcher(None, short.get(last, last), known_last).ratio()
        return max(whole, by_name - 0.1 * (parent != known_parent))

    near = max((*extra, *known_keys(), *RENAMED), key=likeness)
    fix = f"Did you mean {near}?" if likeness(near) >= 0.6 else "See configs/README.md for the keys there are."
    return ConfigError(key, f"unknown {what}", fix)


@functools.cache
def _adapter(key: str) -> TypeAdapter:
    kind = known_keys().get(key, Any)
    return TypeAdapter(kind, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))


def typed(key: str, value: Any) -> Any:
    """A value in the type of its key. Text, of papermill or the environment, is read as YAML where a key takes more.

    Raises:
        ConfigError: it is not of that type.
    """
    readings = [None, ""] if value == "" else [value]
    if isinstance(value, str) and not is_text(key):
        with contextlib.suppress(yaml.YAMLError, ValueError):
            readings.insert(0, yaml.safe_load(value))
    for reading in readings:
        if isinstance(reading, bool) and not _kinds(key) & {bool, Any, Literal}:
            continue  # pydantic would take true for 1
        with contextlib.suppress(ValidationError):
            found = _adapter(key).validate_python(reading)
            return reading if isinstance(found, float) and isinstance(reading, int) else found
    wanted = " or ".join(dict.fromkeys(map(_words, _parts(known_keys().get(key)))))
    raise ConfigError(key, f"{short_repr(value, key)} is not allowed", f"It takes {wanted}.")


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "empty"}
    return names.get(kind) or ("keys and values" if (get_origin(kind) or kind) is dict else "a list")


def short_repr(value: Any, key: str = "") -> str:
    """A value in a message: one line of it, not all of a long one, and nothing of a secret."""
    text = MASK if is_secret_name(key) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


def is_hf_train(target: str | None) -> bool:
    """Whether a `model._target_` is this kit's class, also under its earlier name."""
    return str(target or HF_TRAIN).replace("ragfoundry.", "ragfit.", 1) == HF_TRAIN


def parent_and_name(tree: Any, key: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted key, `{}` where there is none, and the key's last part."""
    *above, last = key.split(".")
    for part in above:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return (tree if isinstance(tree, dict) else {}), last


def get(tree: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, or None."""
    mapping, last = parent_and_name(tree, key)
    return mapping.get(last)
