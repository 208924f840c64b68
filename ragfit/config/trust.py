"""What counts of the configuration that lies in a checkpoint (`ragfit.yaml`): its one reader.

A checkpoint may come from a stranger, and evaluating or merging it must run no code of theirs, read no file or variable
of the user's, and send nothing. So this is a list of what such a file may say, not of what it may not: whatever a later
version of a library makes of another key, it counts only where the user gives it.
"""

import logging
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config.load import compose_config, finish
from ragfit.config.overrides import literal, normalize_overrides
from ragfit.config.paths import find_existing, in_cache
from ragfit.config.schema import PROMPT_KEYS, get, is_hf_train, renamed
from ragfit.config.yaml_file import load_yaml
from ragfit.draw.text import listed, plain
from ragfit.errors import ConfigError

logger = logging.getLogger(__name__)

FILE = "ragfit.yaml"
# What may name a place on this disk by `${oc.env:NAME}`.
_PLACES = ("model.model_name_or_path", "model.trained_adapter", "data_file", "dev_split")
# What counts, by the part of the configuration that it stands in.
_BELIEVED = {
    "": ("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split"),
    "model": (
        *("model_name_or_path", "trained_adapter", "revision", "dtype", "device_map", "attn_implementation"),
        *("load_in_8bit", "load_in_4bit", "quantization_config", *PROMPT_KEYS),
    ),
    "model.lora": (
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "exclude_modules"),
        *("modules_to_save", "bias", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "rank_pattern"),
        *("alpha_pattern", "init_lora_weights", "peft_type", "task_type", "lora_bias", "target_parameters"),
        *("trainable_token_indices", "layer_replication"),
    ),
    "model.generation": (
        *("max_new_tokens", "min_new_tokens", "max_length", "min_length", "do_sample", "temperature", "top_k"),
        *("top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams"),
        *("length_penalty", "early_stopping", "bad_words_ids", "suppress_tokens"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ),
    "train": (
        *("per_device_eval_batch_size", "seed", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32"),
        *("use_cpu", "loss_type", "label_smoothing_factor", "pad_to_multiple_of"),
    ),
}
# The other keys of `train`, and how a run was tracked, mean nothing here and go without a word, except these, which
# would run, write or send something.
_QUIET = ("train", "resume_checkpoint", "hfhub_tag", "use_wandb", "experiment", "wandb_entity", "translated")
_NAMED = tuple(
    f"train.{name}"
    for name in (
        *("accelerator_config", "deepspeed", "fsdp", "hub_", "liger", "logging_dir", "parallelism_config"),
        *("push_to_hub", "report_to", "torch_compile", "torchdynamo", "use_liger"),
    )
)
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+(,[^${}]*)?\}")


def believed(checkpoint: str | PathLike) -> tuple[dict[str, Any], list[str]]:
    """Read a checkpoint's own configuration.

    Text with `${oc.env:NAME}` is followed only to what is on this disk: a folder, a file, a model in the hub's cache.
    Elsewhere it would put what the environment holds, a token maybe, into requests, messages and files. The instruction
    and the template are the checkpoint's own files, never those at the paths that it names.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any other.

    Returns:
        `(tree, set_aside)`: what counts, as plain values in the configuration's shape, and the dotted keys that do
        not, to be named by `warn`. Both are empty where there is no such file.

    Raises:
        ConfigError: the file cannot be read.
    """
    path, set_aside = Path(checkpoint, FILE), []
    if not path.is_file():
        return {}, []
    try:
        whole = load_yaml(path)
    except ConfigError as error:
        raise ConfigError(plain(error.where), plain(error.problem), "Take the checkpoint from another copy.") from error

    names = renamed(get(whole, "train.packing"))

    def walk(mapping: dict, prefix: str = "") -> dict[str, Any]:
        counted = {}
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            part, _, last = names.get(name, name).rpartition(".")
            if name in _BELIEVED and isinstance(value, dict):
                if inner := walk(value, f"{name}."):
                    counted[key] = inner
            elif last in _BELIEVED.get(part, ()) and _is_plain(name, value):
                counted[key] = _followed(value)
            elif value in (None, False, "", "none", [], {}) or name == "model._target_" and is_hf_train(value):
                pass  # what it would be without it
            elif name.startswith(_NAMED) or name.partition(".")[0] not in _QUIET:
                set_aside.append(name)
        return counted

    tree = walk({key: value for key, value in whole.items() if key not in ("instruction", "template")})
    for key in ("instruction", "template"):
        own = own_file(checkpoint, f"{key}.txt")
        if own and own.stat().st_size:
            tree[key] = str(own)
        elif whole.get(key) and not own:
            set_aside.append(key)
    return tree, set_aside


def own_file(checkpoint: str | PathLike, name: str) -> Path | None:
    """A file of a checkpoint, or None where it has none or a link to elsewhere, perhaps to a file of the user's."""
    path = Path(checkpoint, name)
    folder = path.parent.resolve()
    blobs = folder.parent.parent / "blobs"  # of the hub's cache, which links to them
    return path if path.is_file() and path.resolve().parent in (folder, blobs) else None


def warn(checkpoint: str | PathLike, set_aside: list[str], advice: str) -> None:
    """Name the keys of a checkpoint's own configuration that did not count."""
    if set_aside:
        names = listed([plain(name)[:80] for name in set_aside], 12)
        what = "What a checkpoint's own file says turns nothing on"
        logger.warning("%s: set aside: %s. %s; %s.", Path(checkpoint, FILE), names, what, advice)


def load_believed(checkpoint: str | PathLike, overrides: Iterable[str]) -> DictConfig:
    """The resolved configuration of what counts in a checkpoint, with the user's overrides, which count all the same.

    Raises:
        ConfigError: as `believed` and `ragfit.load_config`.
    """
    tree, set_aside = believed(checkpoint)
    overrides = list(overrides)
    given = tuple(text.lstrip("+~").partition("=")[0] + "." for text in overrides)
    advice = "give it as an override of your own, such as model.trust_remote_code=true"
    warn(checkpoint, [name for name in set_aside if not f"{name}.".startswith(given)], advice)
    cfg, path = OmegaConf.create(literal(tree)), Path(checkpoint, FILE)
    cfg = compose_config(path, normalize_overrides(overrides, cfg), cfg)
    return finish(cfg, path if path.is_file() else None, overrides)


def _is_plain(name: str, value: Any) -> bool:
    """Whether a value is numbers, switches and text, in lists or under keys, and follows at most the environment."""
    if isinstance(value, dict):
        return all(not str(key).startswith("_") and _is_plain("", inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_is_plain("", inner) for inner in value)
    if name == "model.attn_implementation" and "/" in str(value):
        return False  # a kernel of the hub, which is code
    begun = _interpolations(value)
    return not begun or name in _PLACES and all(_ENVIRONMENT.match(value, start) for start in begun)


def _interpolations(value: Any) -> list[int]:
    """Where a value, if it is text, has `${` that is not escaped."""
    begun = re.finditer(r"(\\*)\$\{", value) if isinstance(value, str) else ()
    return [match.end() - 2 for match in begun if len(match[1]) % 2 == 0]


def _followed(value: Any) -> Any:
    """A value as OmegaConf reads it; what the environment holds only where that is on this disk."""
    try:
        read = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]
    except OmegaConfBaseException:
        return value
    on_this_disk = isinstance(read, str) and (find_existing(read) or in_cache(read))
    return value if _interpolations(value) and not on_this_disk else read
