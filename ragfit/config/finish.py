"""A composed configuration made ready: names, types, and what the keys mean together.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. A key that
is none of these is an error, earlier names are translated, and a value has the type of its key.
"""

import logging
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config.keys import (
    DATA_KEYS,
    HF_TRAIN,
    PROMPT_KEYS,
    RENAMED,
    STRICT,
    get,
    is_hf_train,
    is_known,
    known_keys,
    parent_and_name,
    short_repr,
    simple_type,
    takes_nothing,
    typed,
    unknown_key,
)
from ragfit.config.overrides import given_keys
from ragfit.config.paths import find_existing
from ragfit.config.unread import refuse_unread
from ragfit.errors import ConfigError, first_line

logger = logging.getLogger(__name__)

OUTPUT_DIR = "./trained_models"  # where train.output_dir is empty
_NODES = {bool: BooleanNode, int: IntegerNode, float: FloatNode}


def finish(cfg: DictConfig, source: str | PathLike | None = None, overrides: Iterable[str] = ()) -> DictConfig:
    """Translate earlier names, give values their types, refuse what is unknown or not read, add missing data keys.

    Args:
        cfg: a composed configuration, of `load_config` or of `@hydra.main`; it may already be finished.
        source: the YAML file it came from, for the messages.
        overrides: what was set beside the file.
    """
    given = given_keys(overrides)
    try:
        return _finish(OmegaConf.to_container(cfg, resolve=False), given)
    except ConfigError as error:
        mine = any(f"{error.where}.".startswith(f"{key}.") for key in given)
        where = f"an override of {source}" if mine else source
        raise (error.in_file(where) if source else error) from error.__cause__


def _finish(tree: dict[str, Any], given: set[str]) -> DictConfig:
    tree = {"model": {}, **tree, "train": tree.get("train") or {}}
    for part in ("model", "train"):
        if not isinstance(tree[part], dict):
            raise ConfigError(part, f"{tree[part]!r}, not keys and values", f"Write keys under {part}:, indented.")
    hf_train = _translate(tree, given)
    given |= {RENAMED[key] for key in given & RENAMED.keys()}
    _check_names(tree, hf_train)
    own_data = "data_file" in given and "dev_split" not in given and tree.get("data_file")
    if own_data and isinstance(tree.get("dev_split"), str):
        # The configuration's dev rows belong to its own data file.
        logger.warning("dev_split: %s is not taken over beside a data_file of yours.", tree["dev_split"])
        tree["dev_split"] = None
    try:
        values = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = f"it cannot be resolved: {first_line(error)}"
        fix = "Give the value, or correct the ${…}; NAME of the environment is ${oc.env:NAME}."
        raise ConfigError(error.full_key or "the configuration", problem, fix) from error
    for key in known_keys():
        if hf_train or not key.startswith("model.") or key.removeprefix("model.") in PROMPT_KEYS:
            _give_type(tree, values, key)
    _put_right(tree, values, given)
    _check_together(values, hf_train)
    data = {key: tree.get(key) for key in DATA_KEYS}
    return OmegaConf.create({"model": tree["model"], "train": tree["train"], **data})


def _translate(tree: dict[str, Any], given: set[str]) -> bool:
    """Move values of earlier names to today's, in place; returns whether the model is this kit's `HFTrain`."""
    target = tree["model"].get("_target_") or HF_TRAIN
    hf_train = is_hf_train(target)
    tree["model"] = {**tree["model"], "_target_": HF_TRAIN if hf_train else target}
    quantization, name = parent_and_name(tree, "model.quantization_config._target_")
    if str(quantization.get(name)).endswith("BitsAndBytesConfig"):
        del quantization[name]  # the class that is made of these keys
    for key in ("instruction", "template"):
        text = tree.get(key)
        if isinstance(text, str) and re.match(r"(\./)?ragfoundry/", text) and not find_existing(text):
            tree[key] = text.replace("ragfoundry/", "ragfit/", 1)
    packs = typed("train.packing", tree["train"].get("packing") or False)
    for old, new in RENAMED.items():
        place, name = parent_and_name(tree, old)
        if name not in place or (old == "train.max_length" and packs) or (old.startswith("model.") and not hf_train):
            continue
        value = place.pop(name)
        if old == "train.group_by_length" and value is not None:
            value = "group_by_length" if typed("use_wandb", value) else None
        place, name = parent_and_name(tree, new)
        # Of two in one file today's counts; what an override says, under either name, counts more.
        if new not in given and (old in given or value is not None and place.get(name) is None):
            place[name] = value
    return hf_train


def _check_names(tree: dict[str, Any], hf_train: bool) -> None:
    for part in ("", *STRICT):
        mapping = get(tree, part) if part else tree
        for name in mapping if isinstance(mapping, dict) else ():
            key = f"{part}.{name}".lstrip(".")
            if not is_known(key, not hf_train):
                raise unknown_key(key)
            if "." in str(name):
                above, _, last = key.rpartition(".")
                raise ConfigError(key, "a key with dots", f"Write {last} as a key below {above}:, indented.")


def _give_type(tree: dict[str, Any], values: dict[str, Any], key: str) -> None:
    """Check and convert the value of a key in both trees; what stands in `tree` as `${…}` stays so."""
    (place, name), (written, _) = parent_and_name(values, key), parent_and_name(tree, key)
    if name not in place:
        return
    value, text = place[name], written.get(name)
    if value is None and not takes_nothing(key):  # `key:` left empty means that it is not set
        del place[name]
        written.pop(name, None)
        return
    if value is False and name.endswith("_strategy"):
        value = "no"  # YAML reads `no` as false
    place[name] = typed(key, value)
    kind = simple_type(key)
    if "${" not in str(text) and name in written and not isinstance(text, dict):
        written[name] = place[name]
    elif isinstance(text, str) and kind:  # then OmegaConf gives it its type wherever it is read
        written[name] = _NODES[kind](text)


def _put_right(tree: dict[str, Any], values: dict[str, Any], given: set[str]) -> None:
    """Set in both trees what other keys decide."""
    train = values["train"]

    def put(key: str, value: Any) -> None:
        for whole in (tree, values):
            mapping, name = parent_and_name(whole, key)
            mapping[name] = value

    if isinstance(values.get("shuffle"), bool):
        put("shuffle", 42 if values["shuffle"] else None)
    marker = tree["model"].get("completion_start")
    if marker and "${" not in marker:
        put("model.completion_start", marker.replace("\\n", "\n"))  # as a shell or 'single quotes' leave it
    if not train.get("output_dir"):
        put("train.output_dir", OUTPUT_DIR)
    elif train["output_dir"].startswith("~"):
        put("train.output_dir", str(Path(train["output_dir"]).expanduser()))
    if train.get("report_to") in (None, "", "none", [], ["none"]):
        put("train.report_to", "wandb" if values.get("use_wandb") else "none")
    # Steps that the user gives, beside a strategy that the user has not turned off.
    if "train.save_steps" in given and "train.save_strategy" not in given and train.get("save_strategy") == "no":
        put("train.save_strategy", "steps")
    off = train.get("eval_strategy") is None or train["eval_strategy"] == "no" and "train.eval_steps" in given
    if off and train.get("eval_steps") and values.get("dev_split") and "train.eval_strategy" not in given:
        put("train.eval_strategy", "steps")
    for key in refuse_unread(values, given):
        for whole in (tree, values):
            mapping, name = parent_and_name(whole, key)
            mapping.pop(name)


def _check_together(values: dict[str, Any], hf_train: bool) -> None:
    """What the type of a single key does not say."""
    model, train, share, text = values["model"], values["train"], values.get("dev_split"), values.get("output_key")
    if isinstance(share, int | float) and not (0 < share < 1 or isinstance(share, int) and share >= 1):
        fix = "Set a share between 0 and 1, a number of rows, or the path of a data file."
        raise ConfigError("dev_split", f"{share} is not allowed", fix)
    if text and values.get("input_key") == text:
        problem = f"{short_repr(text)}, as input_key is, so the model would learn to repeat its prompt"
        raise ConfigError("output_key", problem, "Set output_key to the key of a row with the text to learn.")
    if train.get("num_train_epochs") == 0 and (train.get("max_steps") or 0) <= 0:
        fix = "Set a number above 0, or train.max_steps."
        raise ConfigError("train.num_train_epochs", "0, so nothing would be trained", fix)
    if hf_train and not model.get("model_name_or_path"):
        raise ConfigError("model.model_name_or_path", "it is not set", "Set a model's name on the hub, or its folder.")
    if hf_train and model.get("load_in_4bit") and model.get("load_in_8bit"):
        raise ConfigError("model.load_in_4bit", "true, as model.load_in_8bit is", "Set one to false.")


def resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    """The keys of a part ("model", "train") as plain values in the types of their keys, with every `${…}` followed."""
    values = OmegaConf.to_container(cfg[part], resolve=True)
    if part == "model" and not is_hf_train(values.get("_target_")):
        return values
    return {name: value if value is None else typed(f"{part}.{name}", value) for name, value in values.items()}
