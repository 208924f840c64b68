"""The keys a configuration may have, what values they take, and what earlier versions called them.

The libraries' fields are read off their sources, so that no torch is imported.
"""

import ast
import difflib
import functools
import importlib.util
import math
import re
from pathlib import Path

import yaml

from ragfit.errors import ConfigError
from ragfit.secrets import MASK, is_secret_name

HF_TRAIN = "ragfit.models.hf.HFTrain"

DATA_KEYS = {
    "instruction": "str | None",
    "template": "str | None",
    "data_file": "str | None",
    "input_key": "str | None",
    "output_key": "str | None",
    "resume_checkpoint": "bool | str | None",
    "limit": "int | None",
    "shuffle": "bool | int | None",
    "dev_split": "int | float | str | None",
    "hfhub_tag": "str | None",
    "use_wandb": "bool | None",
    "experiment": "str | None",
    "wandb_entity": "str | None",
}
# Read from `model` by `prepare`, whatever class `_target_` names.
PROMPT_KEYS = {
    "completion_start": "str | None",
    "instruction_in_prompt": "bool | None",
    "max_sequence_len": "int | None",
    "over_length": "Literal['drop', 'cut_start', 'cut_end'] | None",
}
MODEL_KEYS = {
    "_target_": "str",
    "model_name_or_path": "str",
    "load_in_4bit": "bool | None",
    "load_in_8bit": "bool | None",
    "quantization_config": "dict | None",
    "dtype": "str | None",
    "device_map": "str | int | dict | None",
    "trust_remote_code": "bool | None",
    "attn_implementation": "str | None",
    "revision": "str | None",
    "lora": "dict | None",
    "trained_adapter": "str | None",
    "generation": "dict | None",
    **PROMPT_KEYS,
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
# Keys of earlier versions that no longer exist and change nothing here.
REMOVED = {
    f"train.{name}"
    for name in [
        "overwrite_output_dir",
        "include_inputs_for_metrics",
        "include_tokens_per_second",
        "logging_dir",
        "save_safetensors",
        "use_mps_device",
        "jit_mode_eval",
        "use_ipex",
        "fp16_opt_level",
        "fp16_backend",
        "half_precision_backend",
        "past_index",
        "tpu_num_cores",
        "tpu_metrics_debug",
        "mp_parameters",
        "ray_scope",
        "use_legacy_prediction_loop",
        "dataset_batch_size",
        "num_of_sequences",
        "chars_per_token",
    ]
}
# What people write whose letters are far from the key they mean.
SYNONYMS = {
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "adafactor": "train.optim",
    "seq_len": "model.max_sequence_len",
    "dispatch_batches": "train.accelerator_config",
    "split_batches": "train.accelerator_config",
    "fsdp_min_num_params": "train.fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "train.fsdp_config",
}
# Bounds, both included, of numbers that the libraries would take and fail on late, or never: after the model was loaded.
BOUNDS = {
    "limit": (1, None),
    "shuffle": (0, 2**32 - 1),
    "model.max_sequence_len": (1, None),
    "model.lora.r": (1, None),
    "model.lora.lora_alpha": (1, None),
    "model.lora.lora_dropout": (0, 1),
    "train.learning_rate": (0, None),
    "train.num_train_epochs": (0, None),
    "train.max_steps": (-1, None),
    "train.per_device_train_batch_size": (1, None),
    "train.per_device_eval_batch_size": (1, None),
    "train.gradient_accumulation_steps": (1, None),
    "train.warmup_steps": (0, None),
    "train.weight_decay": (0, None),
    "train.adam_beta1": (0, 1),
    "train.adam_beta2": (0, 1),
    "train.adam_epsilon": (0, None),
    "train.max_grad_norm": (0, None),
    "train.label_smoothing_factor": (0, 1),
    "train.neftune_noise_alpha": (0, None),
    "train.logging_steps": (0, None),
    "train.save_steps": (0, None),
    "train.eval_steps": (0, None),
    "train.save_total_limit": (0, None),
    "train.dataloader_num_workers": (0, 1024),
    "train.pad_to_multiple_of": (1, 65536),
    "train.seed": (0, 2**32 - 1),
    "train.data_seed": (0, 2**32 - 1),
}
STRICT = ("model", "train", "model.lora")  # their keys are checked; those of other mappings are free


class KeyProblem(Exception):
    """A problem with a key, before it is known which file to name."""

    def __init__(self, key, problem, advice, value=None):
        self.key, self.problem, self.advice, self.value = key, problem, advice, value


def _fields(package, file, name) -> dict[str, str]:
    """Dataclass fields of a class and their annotations, read off the source: importing trl or peft takes 7 to 9 s."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"The package {package} is not installed. Install it with pip install {package}.")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = ((node.target.id, ast.unparse(node.annotation)) for node in body if isinstance(node, ast.AnnAssign))
    return {field: annotation for field, annotation in found if "ClassVar" not in annotation}


@functools.cache
def train_fields() -> dict[str, str]:
    """Field to annotation of `trl.SFTConfig`."""
    return {
        **_fields("transformers", "training_args.py", "TrainingArguments"),
        **_fields("trl", "trainer/base_config.py", "_BaseConfig"),
        **_fields("trl", "trainer/sft_config.py", "SFTConfig"),
    }


@functools.cache
def lora_fields() -> dict[str, str]:
    """Field to annotation of `peft.LoraConfig`."""
    return {
        **_fields("peft", "config.py", "PeftConfigMixin"),
        **_fields("peft", "config.py", "PeftConfig"),
        **_fields("peft", "tuners/lora/config.py", "LoraConfig"),
    }


@functools.cache
def known_keys() -> dict[str, str]:
    """Every dotted key of a configuration and its annotation, without the names of earlier versions."""
    return {
        **DATA_KEYS,
        "model": "dict",
        "train": "dict",
        **{f"model.{key}": annotation for key, annotation in MODEL_KEYS.items()},
        **{f"model.lora.{key}": annotation for key, annotation in lora_fields().items()},
        # `LoraConfig` takes any text here, and is LoRA for a causal language model all the same.
        "model.lora.peft_type": "Literal['LORA'] | None",
        "model.lora.task_type": "Literal['CAUSAL_LM'] | None",
        **{f"train.{key}": annotation for key, annotation in train_fields().items()},
    }


def annotation_of(key, any_model=False) -> str | None:
    """The annotation of a dotted key, `Any` for what is free, None for a key that does not exist."""
    if key in RENAMED or key in known_keys():
        return known_keys()[RENAMED.get(key, key)]
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts))]
    free = any(k not in STRICT and kinds(known_keys().get(k, "None")) & {"dict", "list", "any"} for k in above)
    private = re.fullmatch(r"model\._(convert|recursive|partial|args)_", key)  # of Hydra's instantiate
    return "Any" if free or private or key in REMOVED or (any_model and parts[0] == "model") else None


@functools.cache
def _enums() -> dict[str, list[str]]:
    """The values of each of transformers' enums that training arguments are written with."""
    found = {}
    folder = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    for file in ("training_args.py", "trainer_utils.py"):
        for node in ast.parse((folder / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
                found[node.name] = [
                    item.value.value
                    for item in node.body
                    if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
                ]
    return found


@functools.cache
def kinds(annotation) -> frozenset[str]:
    """What an annotation accepts: `null`, `any`, type names, and `=value` for the choices of a Literal."""

    def walk(node):
        match node:
            case ast.Constant(value=None):
                return {"null"}
            case ast.BinOp(left=ast.Name(id=name), right=ast.Name(id="str")) if name in _enums():
                return {f"={value}" for value in _enums()[name]}
            case ast.BinOp():
                return walk(node.left) | walk(node.right)
            case ast.Subscript(value=ast.Name(id="Optional" | "Union" as name), slice=inner):
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return set().union(*map(walk, parts), {"null"} if name == "Optional" else ())
            case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
                values = [c.value for c in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
                return {"bool" if isinstance(value, bool) else f"={value}" for value in values}
            case ast.Subscript(value=inner):
                return walk(inner)
            case ast.Name(id="int" | "float" | "bool" | "str" | "list" | "dict" as name):
                return {name}
            case ast.Name(id="Any"):
                return {"any"}
            case ast.Name(id=name) if name.endswith("Config"):
                return {"dict"}
        return {"str"}  # the libraries' enums are written as text

    found = walk(ast.parse(annotation, mode="eval").body)
    choices = {kind for kind in found if kind[0] == "="}
    # `bool | Literal["gaussian", "pissa", "pissa_niter_[number of iters]"]` names patterns, not choices.
    return frozenset(found if choices >= found - {"null"} else found - choices | ({"str"} if choices else set()))


def nearest(key, extra=()) -> str | None:
    """The known dotted key that `key` most likely means."""
    key = key[:100]  # difflib takes minutes over a key of 100,000 characters
    *parent, last = key.split(".")
    if last in SYNONYMS:
        return SYNONYMS[last]

    def likeness(known):
        *known_parent, known_last = known.split(".")
        if known.endswith(f".{key}"):
            return 1.0
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, known_last).ratio() - 0.1 * (parent != known_parent))

    best = max((*extra, *known_keys(), *RENAMED), key=likeness)
    return best if likeness(best) >= 0.6 else None


def unknown_key(key, extra=()) -> str:
    """What to do about a key that does not exist."""
    near = nearest(key, extra)
    part = next((p for p in ("model.lora", "train", "model") if key.startswith(f"{p}.")), None)
    mine = [k for k in known_keys() if k.rpartition(".")[0] == (part or "")]
    return f"Did you mean {near}?" if near else f"{part or 'The configuration'} has: {', '.join((*extra, *mine))}."


def coerce(value, accepted, key):
    """`value` as one of the kinds `accepted`: "1e-4" is a number where a number is expected."""
    text = value.strip() if isinstance(value, str) else None
    choices = {kind[1:] for kind in accepted if kind[0] == "="}
    if "any" in accepted or value is None or text in choices:
        return value if text not in choices else text
    if text is not None and "null" in accepted:
        if value == "" or "str" not in accepted and text.lower() in ("", "null", "none"):
            return None
    if text is not None:
        if "bool" in accepted and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if accepted & {"int", "float"}:
            for number in (int, float) if "int" in accepted or text.isdigit() else (float,):
                try:
                    return coerce(number(text), accepted, key)
                except (ValueError, KeyProblem):
                    pass
        if accepted & {"list", "dict"} and text[:1] + text[-1:] in ("[]", "{}"):
            try:
                return coerce(yaml.safe_load(text), accepted, key)
            except (yaml.YAMLError, KeyProblem):
                pass
        if "str" in accepted:
            return value
    elif isinstance(value, bool):
        if "bool" in accepted:
            return value
    elif isinstance(value, int | float):
        if math.isfinite(value) and ("float" in accepted or "int" in accepted and value == int(value)):
            return value if "float" in accepted else int(value)
        if "bool" in accepted and value in (0, 1):
            return bool(value)
        if "str" in accepted:
            return str(value)
    elif type(value).__name__ in accepted:
        return value
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    names |= {"list": "a list", "dict": "keys and values", "null": "empty"}
    wanted = [names[k] for k in names if k in accepted] + ([f"one of {', '.join(sorted(choices))}"] if choices else [])
    near = difflib.get_close_matches(str(value), choices, 1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise KeyProblem(key, f"{key} is {short_repr(value, key)}", f"{meant}It takes {' or '.join(wanted)}.", value)


def check_bounds(key, value, accepted):
    """Raise `KeyProblem` for a number beyond `BOUNDS`."""
    low, high = BOUNDS[key]
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or low <= value <= (math.inf if high is None else high)
    ):
        return
    kind = "a number" if "float" in accepted else "a whole number"
    advice = f"Set {kind} {f'of at least {low}' if high is None else f'between {low} and {high}'}"
    raise KeyProblem(key, f"{key} is {value}", f"{advice}{', or leave it empty' if 'null' in accepted else ''}.", value)


def short_repr(value, key=""):
    """A value in a message: one line of it, not all of a long one, and nothing of a secret."""
    text = MASK if is_secret_name(key) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"


def parent_and_name(tree, key) -> tuple[dict, str]:
    """The mapping that holds a dotted key, `{}` where there is none, and the key's last part."""
    *above, last = key.split(".")
    for part in above:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return (tree if isinstance(tree, dict) else {}), last


def is_dotted(part, key):
    """Whether a key of a YAML file's `part` ("" is the top level) is a dotted one, such as `train.learning_rate`."""
    return (
        part in ("", *STRICT)
        and isinstance(key, str)
        and "." in key
        and annotation_of(f"{part}.{key}".lstrip("."), True) is not None
    )


def nested(tree):
    """Put what a dotted key says where it belongs. What is there already wins: an override, for a file may not say both."""

    def fill(mapping, key, value):
        if isinstance(value, dict) and isinstance(mapping.get(key), dict):
            for name, part in value.items():
                fill(mapping[key], name, part)
        else:
            mapping.setdefault(key, value)

    for part in ("", *STRICT):
        mapping = get(tree, part) if part else tree
        for key in [key for key in mapping if is_dotted(part, key)] if isinstance(mapping, dict) else ():
            first, *below = key.split(".")
            value = mapping.pop(key)
            for name in reversed(below):
                value = {name: value}
            fill(mapping, first, value)
    return tree


def get(tree, key):
    mapping, last = parent_and_name(tree, key)
    return mapping.get(last)


def is_hf_train(target):
    return str(target or HF_TRAIN).replace("ragfoundry.", "ragfit.", 1) == HF_TRAIN
