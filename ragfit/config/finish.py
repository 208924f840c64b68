"""A composed configuration made ready: names, types, and what the keys mean together.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. A key that
is none of these is an error, earlier names are translated, and a value has the type of its key.
"""

import logging
import os
import re
from collections.abc import Iterable
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
    is_text,
    parent_and_name,
    simple_type,
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


def finish(cfg: DictConfig, source: str | os.PathLike | None = None, overrides: Iterable[str] = ()) -> DictConfig:
    """Translate earlier names, give values their types, refuse what is unknown or not read, add missing data keys.

    Args:
        cfg: a composed configuration, of `load_config` or of `@hydra.main`; it may already be finished.
        source: the YAML file it came from, for the messages.
        overrides: what was set beside the file.
    """
    given = given_keys(overrides)
    try:
        finished = _finish(OmegaConf.to_container(cfg, resolve=False), given)
    except ConfigError as error:
        mine = any(f"{error.where}.".startswith(f"{key}.") for key in given)
        where = f"an override of {source}" if mine else source
        raise (error.in_file(where) if source else error) from error.__cause__
    # Beside the keys, since it is neither compared nor saved: who named the files, for an error in one of them.
    vars(finished)["named_in"] = {key: source for key in ("data_file", "dev_split") if source and key not in given}
    return finished


def _finish(tree: dict[str, Any], given: set[str]) -> DictConfig:
    tree |= {part: typed(part, tree.get(part) or {}) for part in ("model", "train")}
    hf_train = _translate(tree, given)
    given |= {RENAMED[key] for key in given & RENAMED.keys()}
    dev = tree.get("dev_split")
    if "data_file" in given and "dev_split" not in given and tree.get("data_file") and isinstance(dev, str):
        # The configuration's dev rows belong to its own data file.
        logger.warning("dev_split: %s is not taken over beside a data_file of yours.", dev)
        tree["dev_split"] = None
    _give_types(tree, hf_train, given)
    _put_right(tree, given)
    values = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    _check_together(values, hf_train)
    for key in refuse_unread(values, given):
        place, name = parent_and_name(tree, key)
        del place[name]
    return OmegaConf.create({"model": tree["model"], "train": tree["train"], **{k: tree.get(k) for k in DATA_KEYS}})


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


def _give_types(tree: dict[str, Any], hf_train: bool, given: set[str]) -> None:
    """Check names, and check and convert values, in place; what stands there as `${…}` stays so."""
    try:
        values = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = f"it cannot be resolved: {first_line(error)}"
        fix = "Give the value, or correct the ${…}; NAME of the environment is ${oc.env:NAME}."
        raise ConfigError(error.full_key or "the configuration", problem, fix) from error
    for part in ("", *STRICT):
        mapping = get(tree, part) if part else tree
        for name in list(mapping) if isinstance(mapping, dict) else ():
            key = f"{part}.{name}".lstrip(".")
            if not is_known(key, not hf_train):
                raise unknown_key(key)
            if "." in str(name):
                raise ConfigError(key, "a key with dots", "Write its last part below the others, indented.")
            if mapping[name] is None and part in ("train", "model.lora"):
                del mapping[name]  # `key:` left empty means that it is not set
            elif hf_train or part not in ("model", "model.lora") or name in PROMPT_KEYS:
                _give_type(mapping, name, key, get(values, key), key in given)


def _give_type(mapping: dict[str, Any], name: str, key: str, value: Any, is_given: bool) -> None:
    written, kind = mapping[name], simple_type(key)
    follows = "${" in str(written)
    if is_text(key) and type(value) in (int, float) and not follows and not is_given:
        # YAML has read it as a number, which need not be what was written: 0123456 is an octal one.
        raise ConfigError(key, f"{value!r} is a number, and this takes text", "Write it in quotes.")
    value = typed(key, "no" if value is False and name.endswith("_strategy") else value)  # YAML reads `no` as false
    if not follows:
        mapping[name] = value
    elif isinstance(written, str) and kind:  # then OmegaConf gives it its type wherever it is read
        mapping[name] = _NODES[kind](written)


def _put_right(tree: dict[str, Any], given: set[str]) -> None:
    """Set what other keys decide."""
    model, train = tree["model"], tree["train"]
    if isinstance(tree.get("shuffle"), bool):
        tree["shuffle"] = 42 if tree["shuffle"] else None
    marker = model.get("completion_start")
    if marker and "${" not in marker:
        model["completion_start"] = marker.replace("\\n", "\n")  # as a shell or 'single quotes' leave it
    train["output_dir"] = os.path.expanduser(train.get("output_dir") or OUTPUT_DIR)  # noqa: PTH111  (keeps ./)
    if train.get("report_to") in (None, "", "none", [], ["none"]):
        train["report_to"] = "wandb" if OmegaConf.create(tree).get("use_wandb") else "none"
    # Steps that the user gives, beside a strategy that the user has not turned off.
    if "train.save_steps" in given and "train.save_strategy" not in given and train.get("save_strategy") == "no":
        train["save_strategy"] = "steps"
    off = train.get("eval_strategy") is None or train["eval_strategy"] == "no" and "train.eval_steps" in given
    if off and train.get("eval_steps") and tree.get("dev_split") and "train.eval_strategy" not in given:
        train["eval_strategy"] = "steps"


def _check_together(values: dict[str, Any], hf_train: bool) -> None:
    """What the type of a single key does not say."""
    model, train, share, text = values["model"], values["train"], values.get("dev_split"), values.get("output_key")
    if isinstance(share, int | float) and not (0 < share < 1 or isinstance(share, int) and share >= 1):
        fix = "Set a share between 0 and 1, a number of rows, or the path of a data file."
        raise ConfigError("dev_split", f"{share} is not allowed", fix)
    if text and values.get("input_key") == text:
        problem = f"{text!r}, as input_key is, so the model would learn to repeat its prompt"
        raise ConfigError("output_key", problem, "Set output_key to the key of a row with the text to learn.")
    if train.get("num_train_epochs") == 0 and (train.get("max_steps") or 0) <= 0:
        fix = "Set a number above 0, or train.max_steps."
        raise ConfigError("train.num_train_epochs", "0, so nothing would be trained", fix)
    if hf_train and not model.get("model_name_or_path"):
        raise ConfigError("model.model_name_or_path", "it is not set", "Set a model's name on the hub, or its folder.")


def resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    """The keys of a part ("model", "train") as plain values in the types of their keys, with every `${…}` followed."""
    values = OmegaConf.to_container(cfg[part], resolve=True)
    if part == "model" and not is_hf_train(values.get("_target_")):
        return values
    return {name: value if value is None else typed(f"{part}.{name}", value) for name, value in values.items()}
