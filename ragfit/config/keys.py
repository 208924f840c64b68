"""The keys of a configuration, their types as annotations, and what a value becomes in the type of its key."""

import ast
import builtins
import contextlib
import difflib
import functools
import importlib.util
import re
import typing
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from ragfit.errors import ConfigError
from ragfit.secrets import MASK, holds_secret

HF_TRAIN = "ragfit.models.hf.HFTrain"
STRICT = ("model", "train", "model.lora")  # mappings whose keys are checked; those of others are free
# Read from `model` when rows are prepared, whatever class `_target_` names.
PROMPT_KEYS = ("completion_start", "instruction_in_prompt", "max_sequence_len", "over_length", "chat_template_kwargs")
# This kit's own keys by their types, and what works here of what the libraries declare.
_BY_TYPE = {
    "str | None": "instruction template data_file input_key output_key hfhub_tag experiment wandb_entity "
    "model._target_ model.model_name_or_path model.revision model.trained_adapter model.dtype "
    "model.attn_implementation model.completion_start",
    "bool | None": "use_wandb model.load_in_4bit model.load_in_8bit model.trust_remote_code "
    "model.instruction_in_prompt",
    "PositiveInt | None": "limit model.max_sequence_len train.early_stopping_patience",
    "NonNegativeInt | None": "shuffle",
    "bool | str | None": "resume_checkpoint model.lora.init_lora_weights",
    "PositiveInt | Share | str | None": "dev_split",
    "Literal['drop', 'cut_documents', 'cut_start', 'cut_end'] | None": "model.over_length",
    "dict | None": "model train model.quantization_config model.lora model.generation",
    "dict[str, Variable] | None": "model.chat_template_kwargs",
    "str | int | dict | None": "model.device_map",
    "Literal[True] | None": "train.completion_only_loss",
    "float | None": "train.early_stopping_threshold",
    "Literal['LORA'] | None": "model.lora.peft_type",
    "Literal['CAUSAL_LM'] | None": "model.lora.task_type",
}
OWN_KEYS = {key: kind for kind, keys in _BY_TYPE.items() for key in keys.split()}
DATA_KEYS = [key for key in OWN_KEYS if "." not in key and key not in STRICT]
# Names in RAG-FiT's files and their like; today's key wins over an earlier name in the same file.
RENAMED = {
    "model.torch_dtype": "model.dtype",
    "train.group_by_length": "train.train_sampling_strategy",
    "train.warmup_ratio": "train.warmup_steps",
    "train.evaluation_strategy": "train.eval_strategy",
    "train.max_seq_length": "model.max_sequence_len",
}
# Where the libraries declare what can be set: it is read off their sources, since importing trl takes 9 s.
_SOURCES = (
    ("train", "transformers", "training_args.py", "TrainingArguments"),
    ("train", "trl", "trainer/sft_config.py", "SFTConfig"),
    ("model.lora", "peft", "tuners/lora/config.py", "LoraConfig"),
)
_TYPES = defaultdict(
    lambda: str,  # an enum of a library's is text in YAML
    {**vars(builtins), **vars(typing), "PositiveInt": PositiveInt, "NonNegativeInt": NonNegativeInt},
    Share=Annotated[float, Field(gt=0, lt=1)],
    # Any text is true to Jinja, so what papermill or the environment brings as text becomes the switch that it says.
    Variable=Annotated[Any, BeforeValidator(lambda text: {"true": True, "false": False}.get(str(text).lower(), text))],
)


@functools.cache
def known_keys() -> dict[str, str]:
    """Every dotted key of a configuration with its type's annotation, without earlier names."""
    known = {}
    for part, package, file, name in _SOURCES:
        folder = importlib.util.find_spec(package).submodule_search_locations[0]
        classes = ast.parse(Path(folder, file).read_text(encoding="utf-8")).body
        for node in next(one.body for one in classes if isinstance(one, ast.ClassDef) and one.name == name):
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in (kind := ast.unparse(node.annotation)):
                known[f"{part}.{node.target.id}"] = re.sub(r"\w+Config\b", "dict", kind)
    return known | OWN_KEYS


def takes(key: str, *kinds: str) -> bool:
    """Whether a key's annotation names one of these types."""
    return not set(kinds).isdisjoint(re.findall(r"\w+", known_keys().get(key, "Any")))


def is_text(key: str) -> bool:
    """Whether a key takes text alone, so that what looks like a number or a list is text too."""
    return not takes(key, "bool", "int", "float", "list", "dict", "Any", "Literal", "PositiveInt", "NonNegativeInt")


def unknown_key(key: str, extra: Iterable[str] = (), what: str = "key") -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    short = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
    above, dot, last = key[:100].rpartition(".")
    near = difflib.get_close_matches(f"{above}{dot}{short.get(last, last)}", [*extra, *known_keys(), *RENAMED], n=1)
    fix = f"Did you mean {near[0]}?" if near else "See configs/README.md for the keys there are."
    return ConfigError(key, f"unknown {what}", fix)


@functools.cache
def _adapter(kind: str) -> TypeAdapter:
    return TypeAdapter(eval(kind, {}, _TYPES), config={"coerce_numbers_to_str": True, "allow_inf_nan": False})


def typed(key: str, value: Any) -> Any:
    """A value in the type of its key. Text, of papermill or the environment, is read as YAML where a key takes more."""
    value = "no" if value is False and key.endswith("_strategy") else value  # YAML reads `no` as false
    readings, kind = [None, ""] if value == "" else [value], known_keys().get(key, "Any")
    if isinstance(value, str) and not is_text(key):
        with contextlib.suppress(yaml.YAMLError, ValueError):
            readings.insert(0, yaml.safe_load(value))
    for reading in readings:
        if not isinstance(reading, bool) or takes(key, "bool", "Any", "Literal"):  # pydantic would take true for 1
            with contextlib.suppress(ValidationError):
                return _adapter(kind).validate_python(reading)
    raise ConfigError(key, f"{short_repr(value, key)} is not allowed", f"It takes {kind}.")


def short_repr(value: Any, key: str = "") -> str:
    """A value in a message: one line of it, not all of a long one, and nothing of a secret."""
    text = MASK if holds_secret(key, value) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


def is_hf_train(target: str | None) -> bool:
    """Whether a `model._target_` is this kit's class, also under its earlier name."""
    return str(target or HF_TRAIN).replace("ragfoundry.", "ragfit.", 1) == HF_TRAIN


def leaves(tree: dict[str, Any], prefix: str = "", inside: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """`(dotted key, value)` of a tree of mappings; with `inside`, a mapping under another key is a value."""
    for name, value in tree.items():
        goes_on = isinstance(value, dict) and value and (not inside or f"{prefix}{name}" in inside)
        yield from leaves(value, f"{prefix}{name}.", inside) if goes_on else [(f"{prefix}{name}", value)]
