"""The configuration: a YAML file and overrides become one `DictConfig`, with `${…}` kept as it is written."""

import os
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
from ragfit.config.keys import leaves
from ragfit.config.overrides import normalize_overrides
from ragfit.config.paths import CONFIGS, find_existing
from ragfit.errors import ConfigError, first_line

__all__ = ["OUTPUT_DIR", "differences", "finish", "load_config", "normalize_overrides", "read_config", "resolved"]


def find_config(config: str | os.PathLike) -> Path:
    """The YAML file of a configuration's name (`paper/training-asqa`) or path."""
    for name in (config, f"configs/{config}", f"configs/{config}.yaml"):
        if (path := find_existing(name)) and path.is_file():
            return path
    names = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
    problem = f"there is no configuration {str(config)!r} here or in {CONFIGS}"
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
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    return finish(read_config(config, overrides), find_config(config), overrides)


def read_config(config: str | os.PathLike, overrides: Iterable[str] = ()) -> DictConfig:
    """The configuration as its YAML file and overrides say it, neither translated nor checked."""
    return compose_config(find_config(config), overrides)


def compose_config(path: Path, overrides: Iterable[str], cfg: DictConfig | None = None) -> DictConfig:
    """Hydra's composition of a YAML file, or of `cfg` in its place, with overrides."""
    overrides, running = normalize_overrides(overrides), GlobalHydra.instance().hydra  # of @hydra.main
    GlobalHydra.instance().clear()
    try:
        cfg = OmegaConf.load(path) if cfg is None else cfg
        if not OmegaConf.is_dict(cfg) or not cfg:
            raise ValueError("it holds no keys and values")
        if "defaults" in cfg:
            with initialize_config_dir(str(path.resolve().parent), version_base=None):
                return compose(path.name, overrides)
        # Not by its folder: Hydra takes `template=x` for the choice of a group where a folder `template/` lies there.
        ConfigStore.instance().store("ragfit", cfg)
        with initialize(config_path=None, version_base=None):
            return compose("ragfit", overrides)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, HydraException) as error:
        mark, reason = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(where, reason, "Correct the file or the override.") from error
    finally:
        GlobalHydra.instance().hydra = running


def differences(cfg: DictConfig, config: str | os.PathLike) -> list[tuple[str, Any, Any]]:
    """What a configuration has other than its YAML file: `(key, value there, value)`; empty and absent are one."""
    before, after = (dict(leaves(OmegaConf.to_container(one, resolve=False))) for one in (read_config(config), cfg))
    keys = dict.fromkeys((*after, *before))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
