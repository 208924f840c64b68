"""The configuration: a YAML file and overrides become one resolved `DictConfig`.

Three parts: `model` (how the model is loaded), `train` (TRL's `SFTConfig`), and data keys at the top level. A key that
is none of these is an error, names of earlier library versions are translated, and a value has the type its field
declares. Importing this module imports no torch.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config.legacy import translate_names
from ragfit.config.overrides import literal, normalize_overrides
from ragfit.config.paths import CONFIGS, find_existing, find_file, user_path
from ragfit.config.save import FROM_ENVIRONMENT, environment_texts, leaves, unresolved
from ragfit.config.schema import (
    DATA_KEYS,
    PROMPT_KEYS,
    RENAMED,
    STRICT,
    get,
    is_text,
    known_keys,
    parent_and_name,
    type_of,
    unknown_key,
)
from ragfit.config.values import accepts, coerce, short_repr
from ragfit.config.yaml_file import read_yaml
from ragfit.errors import ConfigError, first_line

OUTPUT_DIR = "./trained_models"  # where train.output_dir is empty
# Keys of the libraries' that this kit does in another way.
NOT_READ = {
    "train.resume_from_checkpoint": "Set resume_checkpoint.",
    "train.push_to_hub": "Remove it, and set hfhub_tag to push the adapter at the end.",
}


def find_config(config: str | os.PathLike) -> Path:
    """The YAML file of a configuration's name (`paper/training-asqa`) or path."""
    text = os.fspath(config)
    stem = re.sub(r"\.ya?ml$", "", text)
    if stem != text and find_existing(text, "config"):
        return find_file(text, "config")
    folders = list(dict.fromkeys((Path.cwd() / "configs", CONFIGS)))
    for folder in folders:
        if stem and user_path(folder / f"{stem}.yaml", "config").is_file():
            return folder / f"{stem}.yaml"
    names = sorted({p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")})
    near = difflib.get_close_matches(stem, names, 1, 0.5) or [n for n in names if n.endswith(f"/{stem}")]
    meant = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(
        "config",
        f"there is no configuration {short_repr(text)} in {' or '.join(map(str, folders))}",
        f"{meant}Give a path ending in .yaml or one of: {', '.join(names) or '(none found)'}.",
    )


def load_config(config: str | os.PathLike = "training", overrides: str | Iterable[str] = ()) -> DictConfig:
    """The resolved configuration of a YAML file and overrides.

    Args:
        config: a name under `configs/` of the working directory or the project ("paper/training-asqa"), or a path.
        overrides: Hydra overrides, such as `["data_file=x.jsonl", "model.lora.r=8"]`; they win over the file.

    Returns:
        An `omegaconf.DictConfig` with `model`, `train`, every data key, and `translated`: which keys of earlier
        versions became what.

    Raises:
        ConfigError: no such file, YAML that cannot be read, an unknown key, or a value of the wrong type.
    """
    path = find_config(config)
    cfg = read_config(path)
    overrides = [overrides] if isinstance(overrides, str) else list(overrides or ())
    if overrides:
        cfg = compose_config(path, normalize_overrides(overrides, cfg))
    return finish(cfg, path, overrides)


def read_config(config: str | os.PathLike) -> DictConfig:
    """The configuration as its YAML file says it, composed without overrides, neither translated nor checked."""
    path = find_config(config)
    _written(path)
    return compose_config(path, [])


def compose_config(path: Path, overrides: Iterable[str], cfg: DictConfig | None = None) -> DictConfig:
    """Hydra's composition of a YAML file, or of `cfg` in its place, with overrides of `normalize_overrides`."""
    running = GlobalHydra.instance().hydra  # of @hydra.main
    GlobalHydra.instance().clear()
    try:
        cfg = OmegaConf.create(read_yaml(path)[0]) if cfg is None else cfg
        if "defaults" in cfg:
            with initialize_config_dir(str(path.resolve().parent), version_base=None):
                return compose(path.name, list(overrides))
        # Not by its folder: Hydra takes `template=x` for the choice of a group where a folder `template/` lies there.
        ConfigStore.instance().store("ragfit", cfg)
        with initialize(config_path=None, version_base=None):
            return compose("ragfit", list(overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = " ".join((str(error) or str(error.__cause__)).split())
        raise ConfigError(str(path), reason.rstrip("."), "Correct the file or the override.") from error
    finally:
        GlobalHydra.instance().hydra = running


def finish(cfg: DictConfig, source: str | os.PathLike | None = None, overrides: Iterable[str] = ()) -> DictConfig:
    """Translate names of earlier versions, give values their types, refuse unknown keys, fill in missing data keys.

    Args:
        cfg: a composed configuration, of `load_config` or of `@hydra.main`; it may already be finished.
        source: the YAML file it came from, for the messages.
        overrides: what was set beside the file, for the messages too.
    """
    written = _written(Path(source)) if source else {}
    try:
        return _finish(cfg, written)
    except ConfigError as error:
        if source is None:
            raise
        names = [error.where, *(old for old, new in RENAMED.items() if new == error.where)]
        given = tuple(f"{text.lstrip('+~').partition('=')[0]}." for text in overrides)
        if any(f"{name}.".startswith(given) for name in names):
            raise error.in_file(f"an override of {source}") from error.__cause__
        line = next((written[n][0] for n in (*names, error.where.rpartition(".")[0]) if n in written), None)
        raise error.in_file(source, line) from error.__cause__


def _finish(cfg: DictConfig, written: dict[str, tuple[int, yaml.Node]]) -> DictConfig:
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    notes = cfg.pop("translated", None) or {}
    if OmegaConf.is_dict(notes):  # they are told, and nothing that they say is followed
        notes = {key: notes[key] for key in notes if not OmegaConf.is_interpolation(notes, key)}
    try:
        tree, read = OmegaConf.to_container(cfg, resolve=True), environment_texts(cfg)
    except OmegaConfBaseException as error:
        where, problem = error.full_key or "the configuration", f"it cannot be resolved: {first_line(error)}"
        fix = "Correct the ${…}; NAME of the environment is ${oc.env:NAME}."
        raise ConfigError(where, problem, fix) from error
    tree |= {"model": tree.get("model", {}), "train": tree.get("train") or {}}
    for part, value in (("model", tree["model"]), ("train", tree["train"]), ("translated", notes)):
        if part in read:  # what is saved could not tell its keys from those that were added
            problem = f"{read[part]}, all of it from the environment"
            raise ConfigError(part, problem, f"Write keys under {part}:, and ${{oc.env:…}} as their values.")
        if not isinstance(value, dict):
            problem = f"{'empty' if value is None else repr(value)}, not keys and values"
            raise ConfigError(part, problem, f"Write keys under {part}:, indented.")
    _keep_text(tree, written)
    hf_train = translate_names(tree, notes)
    _check_keys(tree, hf_train)
    for key in known_keys():
        if hf_train or not key.startswith("model.") or key.removeprefix("model.") in PROMPT_KEYS:
            _coerce_key(tree, key)
    _check_values(tree, hf_train)
    for key, text in read.items():
        if key in notes:  # the value it was moved with
            notes[key] = f"{text} -> {str(notes[key]).partition(' -> ')[2]}"
        notes[key if get(tree, key) is not None else RENAMED.get(key, key)] = text + FROM_ENVIRONMENT
    data = {key: tree.get(key) for key in DATA_KEYS}
    return OmegaConf.create(literal({"model": tree["model"], "train": tree["train"], **data, "translated": notes}))


def _written(path: Path) -> dict[str, tuple[int, yaml.Node]]:
    """Line and value of each dotted key of a YAML file.

    Raises:
        ConfigError: syntax errors, duplicate keys, and files that are empty or not a mapping.
    """
    found = {}

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in found and key.value != "<<":
                problem = f"{name} is there twice (line {found[name][0]})"
                raise ConfigError(f"{path}, line {line}", problem, "Remove one of them.")
            found[name] = line, value
            if isinstance(value, yaml.MappingNode) and key.value != "<<":
                walk(value, f"{name}.")

    _, root = read_yaml(path)
    if root is None:
        fix = "Write the keys model and train there; configs/training.yaml has them all."
        raise ConfigError(str(path), "it is empty", fix)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(str(path), "it is not a mapping of keys to values", "Begin it like configs/training.yaml.")
    walk(root, "")
    return found


def _keep_text(tree: dict[str, Any], written: dict[str, tuple[int, yaml.Node]]) -> None:
    """Give text its letters back, where YAML read a number: the revision `0123456` (octal, to YAML) or `12e4567`."""
    for key, (_, node) in written.items():
        mapping, name = parent_and_name(tree, key)
        value = mapping.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and is_text(key) and "${" not in node.value:
            mapping[name] = node.value


def _check_keys(tree: dict[str, Any], hf_train: bool) -> None:
    def walk(mapping: dict, prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if type_of(name, not hf_train) is None:
                raise unknown_key(name)
            if "." in str(key):
                above, _, last = name.rpartition(".")
                raise ConfigError(name, "a key with dots", f"Write {last} as a key below {above}:, indented.")
            if name in STRICT and isinstance(value, dict):
                walk(value, f"{name}.")

    for key, value in leaves(tree):
        if key.endswith("._target_") and key != "model._target_":
            problem = f"{value!r}, but values are plain: no class or function is called to make them"
            raise ConfigError(key, problem, f"Remove {key}, and write the keys of {key.rpartition('.')[0]} alone.")
        if value == "???":
            raise ConfigError(key, "???, a value still to be given", f"Set {key}.")
    walk(tree, "")


def _coerce_key(tree: dict[str, Any], key: str) -> None:
    mapping, name = parent_and_name(tree, key)
    if name not in mapping:
        return
    if mapping[name] is None and not accepts(key, None):
        del mapping[name]  # `key:` left empty means that it is not set
    elif mapping[name] is False and name.endswith("_strategy"):
        mapping[name] = "no"  # YAML reads `no` as false
    else:
        mapping[name] = coerce(key, mapping[name])


def _check_values(tree: dict[str, Any], hf_train: bool) -> None:
    """What the type of a single key does not say."""
    model, train, share, text = tree["model"], tree["train"], tree.get("dev_split"), tree.get("output_key")
    if isinstance(tree.get("shuffle"), bool):
        tree["shuffle"] = 42 if tree["shuffle"] else None
    output_dir = train.get("output_dir") or OUTPUT_DIR
    home = user_path(output_dir, "train.output_dir")
    # Here and for all who ask later: transformers alone would see the home folder in it.
    train["output_dir"] = str(home) if output_dir.startswith("~") else output_dir
    for key, fix in NOT_READ.items():
        if train.get(key.removeprefix("train.")):
            raise ConfigError(key, "it is set, but nothing reads it", fix)
    if train.get("num_train_epochs") == 0 and (train.get("max_steps") or 0) <= 0:
        fix = "Set a number above 0, or train.max_steps."
        raise ConfigError("train.num_train_epochs", "0, so nothing would be trained", fix)
    if text and tree.get("input_key") == text:
        problem = f"{short_repr(text)}, as input_key is, so the model would learn to repeat its prompt"
        raise ConfigError("output_key", problem, "Set output_key to the key of a row with the text to learn.")
    if isinstance(share, int | float) and not (0 < share < 1 or isinstance(share, int) and share >= 1):
        fix = "Set a share between 0 and 1, a number of rows, or the path of a data file."
        raise ConfigError("dev_split", f"{share} is not allowed", fix)
    if hf_train and not model.get("model_name_or_path"):
        raise ConfigError("model.model_name_or_path", "it is not set", "Set a model's name on the hub, or its folder.")
    if hf_train and model.get("load_in_4bit") and model.get("load_in_8bit"):
        raise ConfigError("model.load_in_4bit", "true, as model.load_in_8bit is", "Set one to false.")


def resolved(cfg: DictConfig, part: str) -> dict[str, Any]:
    """The keys of a part ("model", "train") as plain values in the types of their keys, with every `${…}` followed."""
    return OmegaConf.to_container(cfg[part], resolve=True)


def differences(cfg: DictConfig, config: str | os.PathLike) -> list[tuple[str, Any, Any]]:
    """What a resolved configuration has other than its YAML file: `(key, value in the file, value)`.

    Keys that are empty on one side and absent on the other are no difference.
    """
    before = dict(leaves(OmegaConf.to_container(read_config(config), resolve=False)))
    after = dict(leaves(unresolved(cfg)))
    keys = [key for key in dict.fromkeys((*after, *before)) if not key.startswith("translated")]
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]
