"""A notebook's parameters cell under papermill, turned into a configuration.

papermill writes `-p train.output_dir ./x` into its injected cell as `train.output_dir = "./x"`. So the parameters cell
defines `model` and `train` as objects that record assignments:

    model = ragfit.overrides_for("model")
    train = ragfit.overrides_for("train")

and the next cell reads them all: `chosen = ragfit.from_parameters(globals())`.
"""

import ast
import re
from dataclasses import dataclass
from os import PathLike

from omegaconf import DictConfig

from ragfit.config.load import load_config
from ragfit.config.overrides import override, refuse_secrets
from ragfit.config.schema import DATA_KEYS, annotation_of, kinds, unknown_key
from ragfit.errors import ConfigError

_START = r"(?:~|\+{0,2}[A-Za-z_][\w./@-]*=)"  # how an override begins
_NUMBER = r"[+-]?\d+(\.\d*)?[eE][+-]?\d+"


class ParameterError(ConfigError, AttributeError):
    """A misspelt key; an AttributeError too, for those who look attributes up."""


class Overrides:
    """Assignments to one part of the configuration, `train.learning_rate = 1e-5`, checked and recorded in order."""

    def __init__(self, key, values=None):
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_values", {} if values is None else values)

    def __setattr__(self, name, value):
        key = f"{self._key}.{name}"
        any_model = "model._target_" in self._values
        for leaf in (key, *_flat(key, value)):
            if annotation_of(leaf, any_model) is None:
                raise ParameterError(f"{leaf} is an unknown key. {unknown_key(leaf)}")
        for leaf, part in _flat(key, value).items():  # a whole `lora` may have a key of it changed later
            self._values.pop(leaf, None)
            self._values[leaf] = part

    def __getattr__(self, name):
        if name.startswith("_"):  # IPython asks for _repr_html_ and the like
            raise AttributeError(name)
        key = f"{self._key}.{name}"
        if key in self._values:
            return self._values[key]
        annotation = annotation_of(key, "model._target_" in self._values)
        if annotation is None:
            raise ParameterError(f"{key} is an unknown key. {unknown_key(key)}")
        if kinds(annotation) & {"dict", "any"}:
            return Overrides(key, self._values)
        raise ParameterError(f"{key} is not set here. Read it from the configuration: chosen.cfg.{key}.")

    def __repr__(self):
        mine = {k: v for k, v in self._values.items() if k.startswith(f"{self._key}.")}
        return "\n".join(f"{k} = {v!r}" for k, v in mine.items()) or f"{self._key}: as the configuration says"


def overrides_for(part, values=None, before=None) -> Overrides:
    """A record of assignments to `part`, "model" or "train": those of `before`, if it is a record, then a mapping of `values`."""
    _watch_injected_cell()
    found = Overrides(part, dict(before._values) if isinstance(before, Overrides) else None)
    for name, value in (values or {}).items():
        setattr(found, name, value)
    return found


def _watch_injected_cell():
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


def _keep_records(lines):
    lines = list(lines)
    for node in _assignments("".join(lines)):
        part = ast.unparse(node.targets[0])
        if part in ("model", "train") and isinstance(node.value, ast.Dict):
            # On as many lines as before (black breaks long ones), so that an error names the right one.
            record = f'{part} = __import__("ragfit").overrides_for("{part}", {ast.unparse(node.value)}, globals().get("{part}"))\n'
            lines[node.lineno - 1 : node.end_lineno] = [record, *["\n"] * (node.end_lineno - node.lineno)]
    return lines


@dataclass(frozen=True)
class Chosen:
    """What a notebook's parameters chose: `demo` is true where they named neither a configuration nor data."""

    config: str
    overrides: tuple[str, ...]
    cfg: DictConfig
    demo: bool


def from_parameters(namespace, extra=()) -> Chosen:
    """The configuration that a notebook's parameters choose.

    Reads `config`, `overrides`, `model`, `train` and the data keys; None means what the configuration says. The
    file gives way to the plain parameters, and these to `overrides`. `${oc.env:NAME}` in a parameter is followed. With
    neither a configuration nor a data file the demo is chosen; with a data file alone, `configs/training.yaml`.

    Args:
        namespace: the notebook's `globals()`.
        extra: further parameters of this notebook, which are not misspelt keys.

    Raises:
        ConfigError: a parameter that does not exist, a secret, which a notebook would keep, or whatever `load_config` raises.
    """
    known = ("config", "overrides", "model", "train", *DATA_KEYS, *extra)
    for name in _injected(namespace.get("In") or ()):
        if name not in (*known, "translated"):
            raise ConfigError(f"There is no parameter {name}. {unknown_key(name, known)}")
    last = split_overrides(namespace.get("overrides"))
    first = [
        override(key, namespace[key], environment=True) for key in DATA_KEYS if namespace.get(key) not in (None, "")
    ]
    for part in ("model", "train"):
        value = namespace.get(part)
        if not isinstance(value, Overrides | dict | None):
            raise ConfigError(f"{part} is {value!r}. Set single keys, such as -p {part}.some_key value, or a mapping.")
        recorded = value._values if isinstance(value, Overrides) else {part: value} if value else {}
        first += [
            override(k, v, environment=True) for key, tree in recorded.items() for k, v in _flat(key, tree).items()
        ]
    refuse_secrets([*first, *last], "a notebook keeps its parameters")
    config = namespace.get("config") or None
    if not isinstance(config, str | PathLike | None):
        raise ConfigError(f"config is {config!r}. Set a name under configs/ or the path of a YAML file.")
    data = any(re.match(r"\+{0,2}data_file=(?!$|null$)", text) for text in (*first, *last))
    name = config or ("training" if data else "demo")
    return Chosen(str(name), (*first, *last), load_config(name, [*first, *last]), not config and not data)


def _flat(key, value) -> dict:
    """The values to set, by dotted key; a mapping that is a value of its own (`generation`) stays whole."""
    if isinstance(value, dict) and key in ("model", "train", "model.lora"):
        return {k: v for name, child in value.items() for k, v in _flat(f"{key}.{name}", child).items()}
    return {key: _numbers(value)}


def _numbers(value):
    """`1e-4`, which papermill's YAML reads as text, as a number inside a mapping."""
    if isinstance(value, dict):
        return {k: float(v) if re.fullmatch(_NUMBER, str(v)) else _numbers(v) for k, v in value.items()}
    return value


def split_overrides(text) -> list[str]:
    """Overrides given as a list, a list's text, or text with one or several of them."""
    if isinstance(text, str) and text.lstrip().startswith("["):
        try:
            text = ast.literal_eval(text.strip())
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"overrides is {text!r}, no list of texts. Write ['limit=10', 'shuffle=1'].") from error
    if isinstance(text, str):
        # A new override begins after a space outside quotes and brackets; other spaces belong to a value.
        quoted = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[[^\]]*\]|\{[^}]*\}"
        text = re.findall(rf"{_START}(?:{quoted}|(?!\s+{_START}).)*|\S+", text, re.DOTALL)
    if not isinstance(text, list | tuple | None) or not all(isinstance(part, str) for part in text or ()):
        raise ConfigError(f"overrides is {text!r}. Write Hydra overrides as text: 'limit=10 train.max_steps=5'.")
    return [part.strip() for part in text or () if part.strip()]


def _injected(cells) -> list[str]:
    """Names assigned in the cell that papermill injected; a misspelt one is only a warning to papermill."""
    found = next(filter(None, map(_assignments, reversed(cells))), [])
    return [re.match(r"\w*", ast.unparse(target))[0] for node in found for target in node.targets]


def _assignments(cell) -> list[ast.Assign]:
    """The assignments of the cell that papermill injected; none where it is another cell."""
    if cell.partition("\n")[0].strip() != "# Parameters":
        return []
    try:
        return [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    except SyntaxError:  # a cell of the user's, with IPython's own syntax
        return []
