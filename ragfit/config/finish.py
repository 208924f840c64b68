"""A composed configuration made ready: names, types, and what the keys mean together.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. On the way
it is `flat`: one mapping of dotted keys, such as `train.seed`, to what is written there.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config import keys
from ragfit.config.overrides import given_keys
from ragfit.config.paths import find_existing
from ragfit.config.unread import refuse_unread
from ragfit.draw.progress import say
from ragfit.errors import ConfigError, first_line

OUTPUT_DIR = "./trained_models"  # where train.output_dir is empty
_NODES = {"bool": BooleanNode, "int": IntegerNode, "PositiveInt": IntegerNode, "float": FloatNode}


def finish(cfg: DictConfig, source: str | os.PathLike | None = None, overrides: Iterable[str] = ()) -> DictConfig:
    """Translate earlier names, give values their types, refuse what is unknown or not read, add missing data keys."""
    given = given_keys(overrides)
    try:
        finished = OmegaConf.create(_finished(OmegaConf.to_container(cfg, resolve=False), given))
    except ConfigError as error:
        mine = any(key.startswith(error.where) or error.where.startswith(key) for key in given)
        place = f"an override of {source}" if mine else source
        raise (error.in_file(place) if source else error) from error.__cause__
    # Beside the keys, since it is neither compared nor saved: who named the files, for an error in one of them.
    vars(finished)["named_in"] = {key: source for key in ("data_file", "dev_split") if source and key not in given}
    return finished


def _finished(tree: dict[str, Any], given: set[str]) -> dict[str, Any]:
    tree = {"model": None, "train": None, **tree}  # first, since a file may say `train.seed` at its top
    tree |= {part: keys.typed(part, tree[part] or {}) for part in ("model", "train")}
    flat = {**dict.fromkeys(keys.DATA_KEYS), **dict(keys.leaves(tree, inside=keys.STRICT))}
    free = () if keys.is_hf_train(flat.get("model._target_")) else ("model.",)  # another class takes what it likes
    _translate(flat, free)
    for key, value in _followed(flat).items():
        if not key.startswith(free) or key.removeprefix("model.") in keys.PROMPT_KEYS:
            value = keys.typed(key, value)
            node = _NODES.get(keys.known_keys()[key].removesuffix(" | None"), lambda written: written)
            # What follows `${…}` is given its type by OmegaConf, wherever it is read.
            flat[key] = node(flat[key]) if "${" in str(flat.get(key)) else value
    _decide(flat, given)
    for key in refuse_unread(_followed(flat), given):
        del flat[key]
    return nested(flat)


def _translate(flat: dict[str, Any], free: tuple[str, ...]) -> None:
    """Put today's names in the place of earlier ones, today's first, and refuse names that nothing has."""
    for old, new in keys.RENAMED.items():
        if old in flat and not old.startswith(free):
            value = flat.pop(old)
            flat[new] = value if flat.get(new) is None else flat[new]
    for key in ("instruction", "template"):
        if re.match(r"(\./)?ragfoundry/", str(flat[key])) and not find_existing(flat[key]):
            flat[key] = flat[key].replace("ragfoundry/", "ragfit/", 1)
    if not free:
        flat["model._target_"] = keys.HF_TRAIN
    by_length, said = "train.train_sampling_strategy", {"true": "group_by_length", "false": None}
    flat[by_length] = said.get(str(flat.get(by_length)).lower(), flat.get(by_length))  # what group_by_length said
    for key in flat:
        if key not in keys.known_keys() and not key.startswith(free):
            raise keys.unknown_key(key)


def _followed(flat: dict[str, Any]) -> dict[str, Any]:
    """The keys with every `${…}` followed."""
    try:
        tree = OmegaConf.to_container(OmegaConf.create(nested(flat)), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(error.full_key or "${…}", first_line(error), "Give the value, or correct it.") from error
    return dict(keys.leaves(tree, inside=keys.STRICT))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The keys as a tree. What is empty in `train` or `model.lora` is not set, as libraries' defaults are not None."""
    tree: dict[str, Any] = {"model": {}, "train": {}}
    for key, value in flat.items():
        place, (*above, last) = tree, key.split(".")
        for part in above:
            place = place.setdefault(part, {})
        if value is not None or above in ([], ["model"]):
            place[last] = value
    return tree


def _decide(flat: dict[str, Any], given: set[str]) -> None:
    """Set what other keys decide."""
    if "data_file" in given and "dev_split" not in given and flat["data_file"] and isinstance(flat["dev_split"], str):
        # The configuration's dev rows belong to its own data file.
        say(f"dev_split: {flat['dev_split']} is not taken over beside a data_file of yours.")
        flat["dev_split"] = None
    if marker := flat.get("model.completion_start"):
        flat["model.completion_start"] = marker.replace("\\n", "\n")  # as a shell or 'single quotes' leave it
    flat["train.output_dir"] = os.path.expanduser(flat.get("train.output_dir") or OUTPUT_DIR)  # noqa: PTH111 (keeps ./)
    if flat.get("train.report_to") in (None, "", "none", [], ["none"]):
        flat["train.report_to"] = "wandb" if _followed(flat)["use_wandb"] else "none"
    for event in ("save", "eval"):
        # Steps that the user gives count, beside a strategy that the user has not turned off.
        steps, strategy = f"train.{event}_steps", f"train.{event}_strategy"
        if steps in given and strategy not in given and flat.get(strategy) in (None, "no"):
            flat[strategy] = "steps"


def resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    """The keys of a part ("model", "train") as plain values in the types of their keys, with every `${…}` followed."""
    values = OmegaConf.to_container(cfg[part], resolve=True)
    if part == "model" and not keys.is_hf_train(values.get("_target_")):
        return values
    return {name: value if value is None else keys.typed(f"{part}.{name}", value) for name, value in values.items()}
