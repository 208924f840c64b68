"""The keys a configuration may have, what values they take, and what earlier versions called them.

The libraries' fields are read off their sources, since importing trl or peft takes 7 to 9 s.
"""

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

from pydantic import Field

from ragfit.errors import ConfigError

HF_TRAIN = "ragfit.models.hf.HFTrain"

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

DATA_KEYS: dict[str, Any] = {
    "instruction": str | None,
    "template": str | None,
    "data_file": str | None,
    "input_key": str | None,
    "output_key": str | None,
    "resume_checkpoint": bool | str | None,
    "limit": Count | None,
    "shuffle": bool | Seed | None,
    "dev_split": int | float | str | None,
    "hfhub_tag": str | None,
    "use_wandb": bool | None,
    "experiment": str | None,
    "wandb_entity": str | None,
}
# Read from `model` by `prepare`, whatever class `_target_` names.
PROMPT_KEYS: dict[str, Any] = {
    "completion_start": str | None,
    "instruction_in_prompt": bool | None,
    "max_sequence_len": Count | None,
    "over_length": Literal["drop", "cut_documents", "cut_start", "cut_end"] | None,
    "chat_template_kwargs": dict | None,
}
MODEL_KEYS: dict[str, Any] = {
    "_target_": str,
    "model_name_or_path": str,
    "load_in_4bit": bool | None,
    "load_in_8bit": bool | None,
    "quantization_config": dict | None,
    "dtype": str | None,
    "device_map": str | int | dict | None,
    "trust_remote_code": bool | None,
    "attn_implementation": str | None,
    "revision": str | None,
    "lora": dict | None,
    "trained_adapter": str | None,
    "generation": dict | None,
    **PROMPT_KEYS,
}
# Keys of `train` that are this kit's own and not TRL's.
OWN_TRAIN_KEYS: dict[str, Any] = {
    "early_stopping_patience": Count | None,
    "early_stopping_threshold": NotNegative | None,
    "stop_on_nan": bool | None,
}
# Where the libraries declare more than works: such a value would fail late, or change the run silently.
NARROWED: dict[str, Any] = {
    "model.lora.peft_type": Literal["LORA"] | None,
    "model.lora.task_type": Literal["CAUSAL_LM"] | None,
    "model.lora.init_lora_weights": bool | str,  # its Literal names a pattern, `pissa_niter_[number of iters]`
    "model.lora.layer_replication": list[list[int]] | None,  # of tuples, which YAML has not
    "model.lora.r": Count,
    "model.lora.lora_alpha": Count,
    "model.lora.lora_dropout": Share,
    "train.learning_rate": NotNegative,
    "train.num_train_epochs": NotNegative,
    "train.weight_decay": NotNegative,
    "train.completion_only_loss": Literal[True] | None,
    "train.max_steps": Annotated[int, Field(ge=-1)],
    "train.per_device_train_batch_size": Count,
    "train.per_device_eval_batch_size": Count,
    "train.gradient_accumulation_steps": Count,
    "train.warmup_steps": NotNegative,
    "train.logging_steps": NotNegative,
    "train.save_steps": NotNegative,
    "train.eval_steps": NotNegative | None,
    "train.label_smoothing_factor": Share,
    "train.dataloader_num_workers": Annotated[int, Field(ge=0, le=1024)],
    "train.pad_to_multiple_of": Annotated[int, Field(ge=1, le=65536)] | None,
    "train.seed": Seed,
    "train.data_seed": Seed | None,
}
# Keys of earlier versions: the value moves to the new key.
RENAMED = {
    "model.torch_dtype": "model.dtype",
    "train.group_by_length": "train.train_sampling_strategy",
    "train.warmup_ratio": "train.warmup_steps",
    "train.evaluation_strategy": "train.eval_strategy",
    "train.max_seq_length": "model.max_sequence_len",
    "train.max_length": "model.max_sequence_len",
    "train.no_cuda": "train.use_cpu",
    "train.per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "train.per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "train.use_liger": "train.use_liger_kernel",
    "train.torchdynamo": "train.torch_compile_backend",
    "train.xpu_backend": "train.ddp_backend",
    "train.push_to_hub_token": "train.hub_token",
    "train.push_to_hub_model_id": "train.hub_model_id",
}
OTHER_TYPES = {"train.group_by_length": bool, "train.warmup_ratio": Share}  # than the keys that they became


def renamed(packing: Any) -> dict[str, str]:
    """`RENAMED` by the value of `train.packing`, with which `train.max_length` is the length of a pack."""
    packs = packing and str(packing).strip().lower() not in ("false", "0", "null", "none", "")
    return {old: new for old, new in RENAMED.items() if not (packs and old == "train.max_length")}


# Keys of earlier versions that no longer exist and change nothing here.
REMOVED = {
    f"train.{name}"
    for name in (
        *("overwrite_output_dir", "include_inputs_for_metrics", "include_tokens_per_second", "logging_dir"),
        *("save_safetensors", "use_mps_device", "jit_mode_eval", "use_ipex", "fp16_opt_level", "fp16_backend"),
        *("half_precision_backend", "past_index", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "ray_scope"),
        *("use_legacy_prediction_loop", "dataset_batch_size", "num_of_sequences", "chars_per_token"),
    )
}
# What people write whose letters are far from the key they mean.
SYNONYMS = {
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "seq_len": "model.max_sequence_len",
}
STRICT = ("model", "train", "model.lora")  # their keys are checked; those of other mappings are free
# Where the libraries declare their fields, base classes first.
_SOURCES = {
    "train": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "model.lora": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}


class _Names(dict):
    """What names in the libraries' annotations stand for in YAML: a class of configuration a mapping, others text."""

    def __missing__(self, name: str) -> type:
        return dict if name.endswith("Config") else str


_NAMES = _Names(
    {t.__name__: t for t in (bool, int, float, str, list, dict, tuple)}
    | {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}
)


@functools.cache
def _classes(package: str, file: str) -> dict[str, ast.ClassDef]:
    """The classes in a library's source file."""
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    tree = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@functools.cache
def _enums() -> dict[str, Any]:
    """The values of each of transformers' enums that training arguments are written with, as a Literal."""
    literals = {}
    classes = _classes("transformers", "training_args.py") | _classes("transformers", "trainer_utils.py")
    for name, node in classes.items():
        if any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
            values = [item.value for item in node.body if isinstance(item, ast.Assign)]
            literals[name] = Literal[tuple(value.value for value in values if isinstance(value, ast.Constant))]
    return literals


def _fields(package: str, file: str, name: str) -> dict[str, Any]:
    """The dataclass fields of a class, with their types."""
    found = {}
    for node in _classes(package, file)[name].body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in (text := ast.unparse(node.annotation)):
            # `SaveStrategy | str` takes the enum's values, written as text.
            text = re.sub(rf"\b({'|'.join(_enums())}) \| str\b", r"\1", text)
            found[node.target.id] = eval(text, {}, _Names(_NAMES | _enums()))
    return found


@functools.cache
def library_fields(part: str) -> dict[str, Any]:
    """The fields of `trl.SFTConfig` ("train") or `peft.LoraConfig` ("model.lora"), with their types."""
    return {key: kind for source in _SOURCES[part] for key, kind in _fields(*source).items()}


@functools.cache
def known_keys() -> dict[str, Any]:
    """Every dotted key of a configuration with its type, without the names of earlier versions."""
    return {
        **DATA_KEYS,
        "model": dict,
        "train": dict,
        **{f"model.{key}": kind for key, kind in MODEL_KEYS.items()},
        **{f"model.lora.{key}": kind for key, kind in library_fields("model.lora").items()},
        **{f"train.{key}": kind for key, kind in (library_fields("train") | OWN_TRAIN_KEYS).items()},
        **NARROWED,
    }


def type_of(key: str, any_model: bool = False) -> Any:
    """The type of a dotted key's values, `Any` for what is free, None for a key that does not exist.

    Args:
        any_model: whether `model` is for another class than this kit's, which may take any key.
    """
    if key in RENAMED or key in known_keys():
        return known_keys()[RENAMED.get(key, key)]
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts))]
    free = any(k not in STRICT and _holds_values(known_keys().get(k)) for k in above)
    return Any if free or key in REMOVED or (any_model and parts[0] == "model") else None


def _holds_values(kind: Any) -> bool:
    """Whether a type takes lists or mappings, perhaps among others."""
    return kind is Any or {list, dict} & {get_origin(part) or part for part in (kind, *get_args(kind))} != set()


def is_text(key: str) -> bool:
    """Whether a key takes text alone, so that what looks like a number or a list is text too."""
    return type_of(key, True) in (str, str | None)


def nearest(key: str, extra: Iterable[str] = ()) -> str | None:
    """The known dotted key that `key` most likely means."""
    key = key[:100]  # difflib takes minutes over a key of 100,000 characters
    *parent, last = key.split(".")
    if last in SYNONYMS:
        return SYNONYMS[last]

    def likeness(known: str) -> float:
        *known_parent, known_last = known.split(".")
        if known.endswith(f".{key}"):
            return 1.0
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, known_last).ratio() - 0.1 * (parent != known_parent))

    best = max((*extra, *known_keys(), *RENAMED), key=likeness)
    return best if likeness(best) >= 0.6 else None


def unknown_key(key: str, extra: Iterable[str] = (), what: str = "key") -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    near = nearest(key, extra)
    part = next((p for p in ("model.lora", "train", "model") if key.startswith(f"{p}.")), None)
    mine = [k for k in known_keys() if k.rpartition(".")[0] == (part or "")]
    there = f"{part or 'The configuration'} has: {', '.join((*extra, *mine))}."
    return ConfigError(key, f"unknown {what}", f"Did you mean {near}?" if near else there)


def parent_and_name(tree: Any, key: str) -> tuple[dict, str]:
    """The mapping that holds a dotted key, `{}` where there is none, and the key's last part."""
    *above, last = key.split(".")
    for part in above:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return (tree if isinstance(tree, dict) else {}), last


def get(tree: dict, key: str) -> Any:
    """The value of a dotted key, or None."""
    mapping, last = parent_and_name(tree, key)
    return mapping.get(last)


def is_hf_train(target: str | None) -> bool:
    """Whether a `model._target_` is this kit's class, also under its earlier name."""
    return str(target or HF_TRAIN).replace("ragfoundry.", "ragfit.", 1) == HF_TRAIN
