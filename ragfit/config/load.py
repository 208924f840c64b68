"""The configuration: a YAML file and overrides become one `DictConfig`, with `${…}` kept as it is written.

`read_config` reads the file, `compose_config` puts the overrides on it, and `finish` checks what came of it.
"""

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

from ragfit.config.finish import OUTPUT_DIR, finish, resolved
from ragfit.config.keys import short_repr
from ragfit.config.overrides import normalize_overrides
from ragfit.config.paths import CONFIGS, find_existing
from ragfit.config.save import leaves
from ragfit.errors import ConfigError, first_line

__all__ = ["OUTPUT_DIR", "differences", "finish", "load_config", "read_config", "resolved"]


def find_config(config: str | os.PathLike) -> Path:
    """The YAML file of a configuration's name (`paper/training-asqa`) or path."""
    text = os.fspath(config)
    stem = re.sub(r"\.ya?ml$", "", text)
    for name in (*[text] * (stem != text), f"configs/{stem}.yaml"):
        if (path := find_existing(name)) and path.is_file():
            return path
    folders = dict.fromkeys((Path.cwd() / "configs", CONFIGS))
    names = sorted({p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml")})
    problem = f"there is no configuration {short_repr(text)} in {' or '.join(map(str, folders))}"
    raise ConfigError("config", problem, f"Give a path ending in .yaml or one of: {', '.join(names)}.")


def load_config(config: str | os.PathLike = "training", overrides: str | Iterable[str] = ()) -> DictConfig:
    """The configuration of a YAML file and overrides.

    Args:
        config: a name under `configs/` of the working directory or the project ("paper/training-asqa"), or a path.
        overrides: Hydra overrides, such as `["data_file=x.jsonl", "model.lora.r=8"]`; they win over the file.

    Returns:
        An `omegaconf.DictConfig` with `model`, `train` and every data key.

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
    cfg = read_yaml(path)
    return compose_config(path, [], cfg) if "defaults" in cfg else cfg


def read_yaml(path: Path) -> DictConfig:
    """What a YAML file says, with `${…}` as it is written.

    Raises:
        ConfigError: it cannot be read, or is not keys and values.
    """
    try:
        cfg = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        where = f"{path}, line {error.problem_mark.line + 1}"
        raise ConfigError(where, f"this is not YAML: {error.problem}", "Correct that line.") from error
    except (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"it cannot be read: {first_line(error)}", "Correct the file.") from error
    if not OmegaConf.is_dict(cfg) or not cfg:
        raise ConfigError(str(path), "it holds no keys and values", "Begin it like configs/training.yaml.")
    return cfg


def compose_config(path: Path, overrides: Iterable[str], cfg: DictConfig | None = None) -> DictConfig:
    """Hydra's composition of a YAML file, or of `cfg` in its place, with overrides of `normalize_overrides`."""
    cfg = read_yaml(path) if cfg is None else cfg
    running = GlobalHydra.instance().hydra  # of @hydra.main
    GlobalHydra.instance().clear()
    try:
        if "defaults" in cfg:
            with initialize_config_dir(str(path.resolve().parent), version_base=None):
                return compose(path.name, list(overrides))
        # Not by its folder: Hydra takes `template=x` for the choice of a group where a folder `template/` lies there.
        ConfigStore.instance().store("ragfit", cfg)
        with initialize(config_path=None, version_base=None):
            return compose("ragfit", list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join((str(error) or str(error.__cause__)).split())
        raise ConfigError(str(path), reason.rstrip("."), "Correct the file or the override.") from error
    finally:
        GlobalHydra.instance().hydra = running


def differences(cfg: DictConfig, config: str | os.PathLike) -> list[tuple[str, Any, Any]]:
    """What a configuration has other than its YAML file: `(key, value in the file, value)`.

    Keys that are empty on one side and absent on the other are no difference.
    """
    before = dict(leaves(OmegaConf.to_container(read_config(config), resolve=False)))
    after = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    keys = dict.fromkeys((*after, *before))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
