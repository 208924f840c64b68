"""A notebook's parameters cell under papermill, turned into a configuration.

papermill writes `-p train.output_dir ./x` into its injected cell as `train.output_dir = "./x"`. So the parameters cell
defines `model` and `train` as objects that record assignments:

    model = ragfit.overrides_for("model")
    train = ragfit.overrides_for("train")

and the next cell reads them all: `chosen = ragfit.from_parameters(globals())`.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from omegaconf import DictConfig

from ragfit.config.load import load_config
from ragfit.config.overrides import override, refuse_secrets
from ragfit.config.schema import DATA_KEYS, STRICT, type_of, unknown_key
from ragfit.config.values import accepts
from ragfit.errors import ConfigError

_START = r"(?:~|\+{0,2}[A-Za-z_][\w./@-]*=)"  # how an override begins
_NUMBER = r"[+-]?\d+(\.\d*)?[eE][+-]?\d+"


class ParameterError(ConfigError, AttributeError):
    """A misspelt key; an AttributeError too, for those who look attributes up."""


class Overrides:
    """Assignments to one part of the configuration, `train.learning_rate = 1e-5`, checked and recorded in order."""

    def __init__(self, key: str, values: dict[str, Any] | None = None):
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_values", {} if values is None else values)

    def _check(self, key: str) -> None:
        if type_of(key, "model._target_" in self._values) is None:
            raise ParameterError(*unknown_key(key).args)

    def __setattr__(self, name: str, value: Any) -> None:
        key = f"{self._key}.{name}"
        self._check(key)
        for leaf, part in _flat(key, value).items():  # a whole `lora` may have a key of it changed later
            self._check(leaf)
            self._values.pop(leaf, None)
            self._values[leaf] = part

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # IPython asks for _repr_html_ and the like
            raise AttributeError(name)
        key = f"{self._key}.{name}"
        if key in self._values:
            return self._values[key]
        self._check(key)
        if accepts(key, {}):
            return Overrides(key, self._values)
        raise ParameterError(key, "it is not set here", f"Read it from the configuration: chosen.cfg.{key}.")

    def __repr__(self) -> str:
        mine = {k: v for k, v in self._values.items() if k.startswith(f"{self._key}.")}
        return "\n".join(f"{k} = {v!r}" for k, v in mine.items()) or f"{self._key}: as the configuration says"


def overrides_for(part: str, values: Mapping[str, Any] | None = None, before: Any = None) -> Overrides:
    """A record of assignments to a part of the configuration.

    Args:
        part: "model" or "train".
        values: what is assigned at once.
        before: an earlier record, whose assignments come first; anything else counts as none.
    """
    _watch_injected_cell()
    record = Overrides(part, dict(before._values) if isinstance(before, Overrides) else None)
    for name, value in (values or {}).items():
        setattr(record, name, value)
    return record


def _watch_injected_cell() -> None:
    """In a notebook, let `-f` and `-y` give a whole `model` and `-p model.lora.r` change a key of it.

    papermill's cell would put a plain dict in the place of the record of assignments, and fail at the next line.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None and _keep_records not in shell.input_transformers_post:
        shell.input_transformers_post.append(_keep_records)


def _keep_records(lines: list[str]) -> list[str]:
    lines = list(lines)
    for node in _assignments("".join(lines)):
        part = ast.unparse(node.targets[0])
        if part in ("model", "train") and isinstance(node.value, ast.Dict):
            values = f'{ast.unparse(node.value)}, globals().get("{part}")'
            record = f'{part} = __import__("ragfit").overrides_for("{part}", {values})\n'
            # On as many lines as before (black breaks long ones), so that an error names the right one.
            lines[node.lineno - 1 : node.end_lineno] = [record, *["\n"] * (node.end_lineno - node.lineno)]
    return lines


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
        ConfigError: a parameter that does not exist, a secret, which a notebook would keep, or as `load_config`.
    """
    known = ("config", "overrides", "model", "train", *DATA_KEYS, *extra)
    for name in _injected(namespace.get("In") or ()):
        if name not in (*known, "translated"):
            raise unknown_key(name, known, "parameter")
    for name in {"answers", "examples", "rows"}.intersection(extra):  # else the last cell would fail, after training
        if not isinstance(count := namespace.get(name), int | None) or (count or 0) < 0:
            raise ConfigError(name, f"{count!r} is not a number of rows", "Give a whole number, or None for all.")
    values = {key: namespace[key] for key in DATA_KEYS if namespace.get(key) not in (None, "")}
    for part in ("model", "train"):
        value = namespace.get(part)
        if isinstance(value, Overrides):
            values |= value._values
        elif isinstance(value, dict | None):
            values |= _flat(part, value or {})
        else:
            fix = f"Set single keys, such as -p {part}.some_key value, or a mapping."
            raise ConfigError(part, f"{value!r} is not keys and values", fix)
    given = [override(key, value, environment=True) for key, value in values.items()]
    given += split_overrides(namespace.get("overrides"))
    refuse_secrets(given, "a notebook keeps its parameters")
    config = namespace.get("config") or None
    if not isinstance(config, str | PathLike | None):
        fix = "Set a name under configs/ or the path of a YAML file."
        raise ConfigError("config", f"{config!r} is neither text nor a path", fix)
    data = any(re.match(r"\+{0,2}data_file=(?!$|null$)", text) for text in given)
    name = config or ("training" if data else "demo")
    return Chosen(str(name), tuple(given), load_config(name, given), not config and not data)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """The values to set, by dotted key; a mapping that is a value of its own (`generation`) stays whole."""
    if isinstance(value, dict) and key in STRICT:
        return {k: v for name, child in value.items() for k, v in _flat(f"{key}.{name}", child).items()}
    return {key: _numbers(value)}


def _numbers(value: Any) -> Any:
    """`1e-4`, which papermill's YAML reads as text, as a number inside a mapping."""
    if isinstance(value, dict):
        return {k: float(v) if re.fullmatch(_NUMBER, str(v)) else _numbers(v) for k, v in value.items()}
    return value


def split_overrides(text: str | list[str] | tuple[str, ...] | None) -> list[str]:
    """Overrides given as a list, a list's text, or text with one or several of them."""
    given = text
    if isinstance(text, str) and text.lstrip().startswith("["):
        try:
            text = ast.literal_eval(text.strip())
        except (SyntaxError, ValueError) as error:
            fix = "Write ['limit=10', 'shuffle=1']."
            raise ConfigError("overrides", f"{given!r} is not a list of texts", fix) from error
    if isinstance(text, str):
        # A new override begins after a space outside quotes and brackets; other spaces belong to a value.
        quoted = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[[^\]]*\]|\{[^}]*\}"
        text = re.findall(rf"{_START}(?:{quoted}|(?!\s+{_START}).)*|\S+", text, re.DOTALL)
    if not isinstance(text, list | tuple | None) or not all(isinstance(part, str) for part in text or ()):
        fix = "Write Hydra overrides as text: 'limit=10 train.max_steps=5'."
        raise ConfigError("overrides", f"{given!r} is not text", fix)
    return [part.strip() for part in text or () if part.strip()]


def _injected(cells: Iterable[str]) -> list[str]:
    """Names assigned in the cell that papermill injected; a misspelt one is only a warning to papermill."""
    last = next(filter(None, map(_assignments, reversed(cells))), [])
    return [re.match(r"\w*", ast.unparse(target))[0] for node in last for target in node.targets]


def _assignments(cell: str) -> list[ast.Assign]:
    """The assignments of the cell that papermill injected; none where it is another cell."""
    if cell.partition("\n")[0].strip() != "# Parameters":
        return []
    try:
        return [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    except SyntaxError:  # a cell of the user's, with IPython's own syntax
        return []
