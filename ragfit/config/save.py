"""The configuration as it is saved, sent and compared: unresolved, and without secrets."""

import contextlib
import copy
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ragfit.config.overrides import literal
from ragfit.config.values import coerce
from ragfit.errors import ConfigError
from ragfit.files import write_whole
from ragfit.secrets import masked

FROM_ENVIRONMENT = " -> what the environment holds"


def _nodes(cfg: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig | ListConfig, Any]]:
    """`(dotted key, node, name)` of all values; each is `node[name]`, since a name may have dots itself."""
    for name in range(len(cfg)) if OmegaConf.is_list(cfg) else list(cfg):
        yield f"{prefix}{name}", cfg, name
        given = not OmegaConf.is_interpolation(cfg, name) and not OmegaConf.is_missing(cfg, name)
        if given and OmegaConf.is_config(cfg[name]):
            yield from _nodes(cfg[name], f"{prefix}{name}.")


def _value(node: DictConfig | ListConfig, name: Any) -> Any:
    value = node[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def environment_texts(cfg: DictConfig) -> dict[str, str]:
    """The texts of a composed configuration's values that come from the environment, directly or through other keys."""
    texts, asked = {}, []

    def env(*names: Any) -> Any:
        asked.append(names)
        return oc.env(*names)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        for key, node, name in _nodes(cfg):
            asked.clear()
            if OmegaConf.is_interpolation(node, name):
                _value(node, name)
            if asked:
                texts[key] = OmegaConf.to_container(node, resolve=False)[name]
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return texts


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """A finished configuration as plain values, with what came from the environment as it was written."""
    written = copy.deepcopy(cfg)
    notes = written.get("translated") or {}
    said = [key for key in notes if str(notes[key]).endswith(FROM_ENVIRONMENT)]
    texts = {key: notes.pop(key).removesuffix(FROM_ENVIRONMENT) for key in said}
    for key, node, name in list(_nodes(written)):
        if key not in texts or key.startswith("translated.") or (value := _value(node, name)) is None:
            continue
        node[name] = texts[key]
        try:
            same = coerce(key, _value(node, name)) == value
        except OmegaConfBaseException:  # the environment does not hold it any more
            same = True
        except ConfigError:
            same = False
        if not same:  # it has been set or translated since
            node[name] = literal(value)
    return OmegaConf.to_container(written, resolve=False)


def without_secrets(cfg: DictConfig) -> dict[str, Any]:
    """The configuration that may leave the process, for tracker, checkpoint and hub.

    It is `unresolved`; keys that hold a secret (`train.hub_token`) are left out, and texts in a token's form masked.
    """
    return masked(unresolved(cfg))


def to_yaml(cfg: DictConfig) -> str:
    """`without_secrets` as YAML, with what was translated as comments at the top; `load_config` reads it back."""
    tree = without_secrets(cfg)
    notes = (f"# {key}: {' '.join(str(note).split())}\n" for key, note in (tree.get("translated") or {}).items())
    return "".join(notes) + OmegaConf.to_yaml(OmegaConf.create(tree))


def save_config(cfg: DictConfig, path: str | PathLike) -> None:
    """Write `to_yaml(cfg)`, which holds no secret, to `path` in UTF-8: the whole file or none."""
    write_whole(path, to_yaml(cfg))


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
