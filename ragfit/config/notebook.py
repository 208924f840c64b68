"""A notebook's parameters cell under papermill, turned into a configuration.

papermill writes `-p train.output_dir ./x` into its injected cell as `train.output_dir = "./x"`. So the parameters cell
defines `model` and `train` as objects that record assignments:

    model = ragfit.overrides_for("model")
    train = ragfit.overrides_for("train")

and the next cell reads them all: `chosen = ragfit.from_parameters(globals())`.
"""

import ast
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from ragfit.config.keys import DATA_KEYS, STRICT, unknown_key
from ragfit.config.load import load_config
from ragfit.config.overrides import override, split_overrides
from ragfit.errors import ConfigError
from ragfit.secrets import plain_secrets

logger = logging.getLogger(__name__)


class Overrides:
    """Assignments to one part of the configuration, `train.learning_rate = 1e-5`; `from_parameters` checks them."""

    def __init__(self, key: str, values: dict[str, Any] | None = None):
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_values", {} if values is None else values)

    def __setattr__(self, name: str, value: Any) -> None:
        for key, part in _flat(f"{self._key}.{name}", value).items():
            self._values.pop(key, None)  # the last assignment stands last
            self._values[key] = part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # IPython asks for _repr_html_ and the like
            raise AttributeError(name)
        key = f"{self._key}.{name}"
        return self._values[key] if key in self._values else Overrides(key, self._values)

    def __repr__(self) -> str:
        mine = {k: v for k, v in self._values.items() if k.startswith(f"{self._key}.")}
        return "\n".join(f"{k} = {v!r}" for k, v in mine.items()) or f"{self._key}: as the configuration says"


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
    file gives way to the plain parameters, and these to `overrides`. `${oc.env:NAME}` in a parameter is followed. With
    neither a configuration nor a data file the demo is chosen; with a data file alone, `configs/training.yaml`.

    Args:
        namespace: the notebook's `globals()`.
        extra: further parameters of this notebook, which are not misspelt keys.

    Raises:
        ConfigError: a parameter that does not exist, or as `load_config`.
    """
    known = ("config", "overrides", "model", "train", *DATA_KEYS, *extra)
    for name in _injected(namespace.get("In") or ()):
        if name not in known:
            raise unknown_key(name, known, "parameter")
    for name in {"answers", "examples", "rows"}.intersection(extra):  # else the last cell would fail, after training
        if not isinstance(count := namespace.get(name), int | None) or (count or 0) < 0:
            raise ConfigError(name, f"{count!r} is not a number of rows", "Give a whole number, or None for all.")
    values = {key: namespace[key] for key in DATA_KEYS if namespace.get(key) not in (None, "")}
    for part in ("model", "train"):
        value = namespace.get(part) or {}
        values |= value._values if isinstance(value, Overrides) else _flat(part, value)
    for key in plain_secrets(values):
        logger.warning("%s: a notebook keeps its parameters, this secret too; write ${oc.env:NAME} instead.", key)
    given = [override(key, value, environment=True) for key, value in values.items()]
    given += split_overrides(namespace.get("overrides"))
    config = namespace.get("config") or None
    data = any(re.match(r"\+{0,2}data_file=(?!$|null$)", text) for text in given)
    name = config or ("training" if data else "demo")
    return Chosen(str(name), tuple(given), load_config(str(name), given), not config and not data)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """The values to set, by dotted key; a mapping that is a value of its own (`generation`) stays whole."""
    if not isinstance(value, dict):
        return {key: value}
    if key in STRICT:
        return {k: v for name, child in value.items() for k, v in _flat(f"{key}.{name}", child).items()}
    # papermill's YAML reads `1e-4` as text.
    number = r"[+-]?\d+(\.\d*)?[eE][+-]?\d+"
    return {key: {k: float(v) if re.fullmatch(number, str(v)) else v for k, v in value.items()}}


def _injected(cells: Iterable[str]) -> list[str]:
    """Names assigned in the cell that papermill injected; a misspelt one is only a warning to papermill."""
    for cell in reversed(list(cells)):
        if cell.partition("\n")[0].strip() == "# Parameters":
            try:
                lines = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
            except SyntaxError:  # a cell of the user's, with IPython's own syntax
                continue
            return [re.match(r"\w*", ast.unparse(target))[0] for node in lines for target in node.targets]
    return []
