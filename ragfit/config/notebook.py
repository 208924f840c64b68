"""A notebook's parameters cell under papermill, turned into a configuration.

papermill writes `-p train.output_dir ./x` into its injected cell as `train.output_dir = "./x"`. So the parameters cell
defines `train = ragfit.overrides_for("train")` and `model` alike as objects that record assignments, and the next cell
reads them all: `chosen = ragfit.from_parameters(globals())`.
"""

import ast
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from ragfit.config.keys import DATA_KEYS, STRICT, leaves, unknown_key
from ragfit.config.load import load_config
from ragfit.config.overrides import override, split_overrides
from ragfit.secrets import plain_secrets

logger = logging.getLogger(__name__)


class Overrides:
    """Assignments to one part of the configuration, `train.learning_rate = 1e-5`; `from_parameters` checks them."""

    def __init__(self, key: str, values: dict[str, Any] | None = None):
        vars(self).update(_key=key, _values={} if values is None else values)

    def __setattr__(self, name: str, value: Any) -> None:
        for key, part in leaves({f"{self._key}.{name}": value}, inside=STRICT):
            self._values.pop(key, None)  # the last assignment stands last
            self._values[key] = part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # IPython asks for _repr_html_ and the like
            raise AttributeError(name)
        key = f"{self._key}.{name}"
        return self._values[key] if key in self._values else Overrides(key, self._values)

    def __repr__(self) -> str:
        mine = [f"{key} = {value!r}" for key, value in self._values.items() if key.startswith(f"{self._key}.")]
        return "\n".join(mine) or f"{self._key}: as the configuration says"


def overrides_for(part: str) -> Overrides:
    """A record of assignments to a part of the configuration, "model" or "train"."""
    return Overrides(part)


@dataclass(frozen=True)
class Chosen:
    """What a notebook's parameters chose: `demo` is true where they named neither a configuration nor data."""

    config: str
    overrides: tuple[str, ...]
    cfg: DictConfig
    demo: bool


def from_parameters(namespace: Mapping[str, Any], extra: Iterable[str] = ()) -> Chosen:
    """The configuration that a notebook's parameters choose.

    Reads `config`, `overrides`, `model`, `train` and the data keys; None means what the configuration says. The
    file gives way to the plain parameters, and these to `overrides`. With neither a configuration nor a data file the
    demo is chosen; with a data file alone, `configs/training.yaml`.

    Args:
        namespace: the notebook's `globals()`.
        extra: further parameters of this notebook, which are not misspelt keys.

    Raises:
        ConfigError: a parameter that does not exist, or as `load_config`.
    """
    known = ("config", "overrides", "model", "train", *DATA_KEYS, *extra)
    if unknown := [name for name in _injected(namespace.get("In") or ()) if name not in known]:
        raise unknown_key(unknown[0], known, "parameter")
    values = {key: namespace[key] for key in DATA_KEYS if namespace.get(key) not in (None, "")}
    for part in ("model", "train"):
        value = namespace.get(part) or {}
        values |= value._values if isinstance(value, Overrides) else dict(leaves({part: value}, inside=STRICT))
    for key in plain_secrets(values):
        logger.warning("%s: a notebook keeps its parameters, this secret too; write ${oc.env:NAME} instead.", key)
    given = [override(key, value) for key, value in values.items()] + split_overrides(namespace.get("overrides"))
    config, data = namespace.get("config"), any(re.match(r"\+*data_file=(?!$|null$)", text) for text in given)
    name = str(config or ("training" if data else "demo"))
    return Chosen(name, tuple(given), load_config(name, given), not config and not data)


def _injected(cells: Iterable[str]) -> list[str]:
    """Names assigned in the cell that papermill injected; a misspelt one is only a warning to papermill."""
    mine = [cell for cell in cells if cell.partition("\n")[0].strip() == "# Parameters"]
    lines = [node for node in ast.parse(mine[-1]).body if isinstance(node, ast.Assign)] if mine else []
    return [ast.unparse(target).partition(".")[0] for node in lines for target in node.targets]
