"""The configuration as it is saved and sent: with `${…}` as it was written, and without secrets."""

import contextlib
import hashlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ragfit.config.paths import find_existing
from ragfit.files import write_whole
from ragfit.secrets import masked


def without_secrets(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values that may leave the process.

    What came from the environment stays `${oc.env:NAME}`; keys that hold a secret (`train.hub_token`) are left out,
    and texts in a token's form masked.
    """
    return masked(OmegaConf.to_container(cfg, resolve=False))


def to_yaml(cfg: DictConfig) -> str:
    """`without_secrets` as YAML, which `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets(cfg)))


def save_config(cfg: DictConfig, path: str | PathLike) -> None:
    """Write `to_yaml(cfg)`, which holds no secret, to `path` in UTF-8: the whole file or none.

    Comments at its end tell the digests of the files with rows, for `recorded_rows`.
    """
    digests = {key: _digest(cfg.get(key)) for key in ("data_file", "dev_split")}
    notes = [f"# {key} sha256 {digest}\n" for key, digest in digests.items() if digest]
    write_whole(path, to_yaml(cfg) + "".join(notes))


def recorded_rows(config: Path, key: str, data_file: str) -> bool:
    """Whether a file with rows is still the one whose digest a saved configuration tells under a key."""
    digest = _digest(data_file)
    return digest is not None and f"# {key} sha256 {digest}\n" in config.read_text(encoding="utf-8")


def _digest(data_file: Any) -> str | None:
    path = find_existing(data_file) if isinstance(data_file, str) else None
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_config(cfg: DictConfig, folder: str | PathLike) -> None:
    """Write `ragfit.yaml` into a run's folder, where that can be written."""
    with contextlib.suppress(OSError):
        save_config(cfg, Path(folder, "ragfit.yaml"))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(dotted key, value)` of the values in a tree of mappings."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
