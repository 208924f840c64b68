"""The configuration as it is saved and sent: with `${…}` as it was written, and without secrets."""

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ragfit.config.keys import leaves
from ragfit.config.paths import PathText, find_existing
from ragfit.files import write_whole
from ragfit.secrets import masked

__all__ = ["digest_of_rows", "keep_config", "leaves", "save_config", "to_yaml", "without_secrets"]


def without_secrets(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values that may leave the process: what holds a secret is left out or masked."""
    return masked(OmegaConf.to_container(cfg, resolve=False))


def to_yaml(cfg: DictConfig) -> str:
    """`without_secrets` as YAML, which `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets(cfg)))


def save_config(cfg: DictConfig, path: PathText) -> None:
    """Write `to_yaml(cfg)` to `path`, the whole file or none; its last lines are digests of the files with rows."""
    write_whole(path, to_yaml(cfg) + "".join(digest_of_rows(key, cfg.get(key)) for key in ("data_file", "dev_split")))


def keep_config(cfg: DictConfig, folder: PathText) -> None:
    """Write `ragfit.yaml` into a run's folder."""
    save_config(cfg, Path(folder, "ragfit.yaml"))


def digest_of_rows(key: str, data_file: Any) -> str:
    """The line of a saved configuration by which a file with rows is known again; empty where there is no file."""
    path = find_existing(str(data_file or ""))
    if path is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        return f"# {key} sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}\n"
