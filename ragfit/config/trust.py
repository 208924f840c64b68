"""What counts of the configuration that lies in a checkpoint (`ragfit.yaml`): its one reader.

A checkpoint may come from a stranger, and evaluating or merging it must run no code of theirs, read no file or variable
of the user's, and send nothing. So this is a list of what such a file may say: anything else counts only where the
user gives it, and so does whatever has `${…}` in it.
"""

import logging
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ragfit.config.keys import PROMPT_KEYS, is_hf_train, parent_and_name
from ragfit.config.load import compose_config, finish, read_yaml
from ragfit.config.overrides import given_keys, normalize_overrides
from ragfit.config.save import recorded_rows
from ragfit.draw.text import listed, plain

logger = logging.getLogger(__name__)

FILE = "ragfit.yaml"
# What counts, by the part of the configuration that it stands in.
_BELIEVED = {
    "": ("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split"),
    "model": (
        *("model_name_or_path", "trained_adapter", "revision", "dtype", "device_map", "attn_implementation"),
        *("load_in_8bit", "load_in_4bit", "quantization_config", *PROMPT_KEYS),
    ),
    # All else is in the adapter's own file.
    "model.lora": ("r", "target_modules", "target_parameters", "exclude_modules"),
    "model.generation": (
        *("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams"),
        *("repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ),
    "train": (
        *("per_device_eval_batch_size", "seed", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "use_cpu"),
        *("loss_type", "label_smoothing_factor"),
    ),
}
# The other keys of training, and how a run was tracked, mean nothing here and go without a word.
_QUIET = ("train.", "model.lora.", "resume_checkpoint.", "hfhub_tag.", "use_wandb.", "experiment.", "wandb_entity.")


def believed(checkpoint: str | PathLike) -> tuple[dict[str, Any], list[str]]:
    """Read a checkpoint's own configuration.

    Instruction and template are the checkpoint's own files, never what stands at other paths that it names.

    Returns:
        `(tree, set_aside)`: what counts, as plain values in the configuration's shape, and the dotted keys that do
        not, to be named by `warn`. Both are empty where there is no such file.

    Raises:
        ConfigError: the file cannot be read.
    """
    path, set_aside = Path(checkpoint, FILE), []
    if not path.is_file():
        return {}, []
    whole = OmegaConf.to_container(read_yaml(path), resolve=False)

    def walk(mapping: dict, prefix: str = "") -> dict[str, Any]:
        counted = {}
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            part, _, last = name.rpartition(".")
            if name in _BELIEVED and isinstance(value, dict):
                if inner := walk(value, f"{name}."):
                    counted[key] = inner
                continue
            if name in ("data_file", "dev_split") and isinstance(value, str):
                value = _own_rows(checkpoint, name, value)
            elif last not in _BELIEVED.get(part, ()) or not _is_plain(name, value):
                value = None
            if value is not None:
                counted[key] = value
            elif mapping[key] not in (None, False, "", "none", [], {}) and not f"{name}.".startswith(_QUIET):
                set_aside.append(name)
        return counted

    place, name = parent_and_name(whole, "model._target_")
    if is_hf_train(place.get(name)):
        place.pop(name, None)
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
    folder = Path(checkpoint).resolve()
    blobs = folder.parent.parent / "blobs"  # of the hub's cache, which links to them
    return path if path.is_file() and path.resolve().parent in (folder, blobs) else None


def warn(checkpoint: str | PathLike, set_aside: list[str], advice: str) -> None:
    """Name the keys of a checkpoint's own configuration that did not count."""
    if set_aside:
        names = listed([plain(name)[:80] for name in set_aside], 12)
        what = "What a checkpoint's own file says turns nothing on"
        logger.warning("%s: set aside: %s. %s; %s.", Path(checkpoint, FILE), names, what, advice)


def load_believed(checkpoint: str | PathLike, overrides: Iterable[str]) -> DictConfig:
    """The configuration of what counts in a checkpoint, with the user's overrides, which count all the same.

    Raises:
        ConfigError: as `believed` and `ragfit.load_config`.
    """
    tree, set_aside = believed(checkpoint)
    overrides = list(overrides)
    given = tuple(f"{key}." for key in given_keys(overrides))
    advice = "give it as an override of your own, such as model.trust_remote_code=true"
    warn(checkpoint, [name for name in set_aside if not f"{name}.".startswith(given)], advice)
    cfg, path = OmegaConf.create(tree), Path(checkpoint, FILE)
    cfg = compose_config(path, normalize_overrides(overrides, cfg), cfg)
    return finish(cfg, path if path.is_file() else None, overrides)


def _is_plain(name: str, value: Any) -> bool:
    """Whether a value is numbers, switches and text, in lists or under keys, follows nothing and names no code."""
    if isinstance(value, dict):
        return all(not str(key).startswith("_") and _is_plain("", inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_is_plain("", inner) for inner in value)
    kernel = name == "model.attn_implementation" and "/" in str(value)  # of the hub, which is code
    return not kernel and "${" not in str(value)


def _own_rows(checkpoint: str | PathLike, key: str, value: str) -> str | None:
    """The rows that a checkpoint names under a key, where they are no file of the user's that a stranger points at.

    They lie in its folder, or are the very file that the run was trained on: who knows its digest has read it.
    """
    if own := own_file(checkpoint, value):
        return str(own)
    return value if recorded_rows(Path(checkpoint, FILE), key, value) else None
