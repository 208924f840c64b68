"""YAML files, read through one gate: a stranger's file can be made to fill the memory or to nest without end."""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.errors import ConfigError, MissingPath, first_line

MOST_BYTES = 2**20
MOST_VALUES = 10_000  # aliases (*name) counted as often as they repeat something
DEEPEST = 50
# PyYAML raises anything where a value is not of its tag (`!!bool 3`).
_UNREADABLE = (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError)


def read_yaml(path: Path) -> tuple[str, yaml.Node | None]:
    """The text of a YAML file, and its values with the lines that they stand in; None where it is empty.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds too much.
    """
    with _explained(path):
        if not path.is_file():  # a pipe would be waited for without end
            raise MissingPath(str(path), "there is no such file", "Give the path of a YAML file.")
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(str(path), "it is larger than 1 MB", "Take a file of keys and values, as in configs/.")
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
        if root and _size(root, {}) > MOST_VALUES:
            too_much = f"more than {MOST_VALUES:,} values, with its aliases (*name) written out, or too deep ones"
            fix = "Write what is needed, without aliases, as configs/training.yaml does."
            raise ConfigError(str(path), f"it holds {too_much}", fix)
    return text, root


def load_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file says, as plain values, with `${…}` as it is written.

    Raises:
        ConfigError: as `read_yaml`, and where it is not keys and values.
    """
    text, _ = read_yaml(path)
    with _explained(path):
        cfg = OmegaConf.load(io.StringIO(text))
    if not OmegaConf.is_dict(cfg):
        raise ConfigError(str(path), "it is not a mapping of keys to values", "Correct it.")
    return OmegaConf.to_container(cfg, resolve=False)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        where = f"{path}, line {error.problem_mark.line + 1}"
        raise ConfigError(where, f"this is not YAML: {error.problem}", "Correct that line.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"it cannot be read: {error}", "Save it as UTF-8 text.") from error
    except RecursionError as error:
        raise ConfigError(str(path), "it is nested too deeply", "Begin it like configs/training.yaml.") from error
    except _UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ConfigError(str(path), f"it cannot be read: {reason}", "Correct the file.") from error


def _size(node: yaml.Node, sizes: dict[int, float], depth: int = 0) -> float:
    """How many values a node holds."""
    if depth > DEEPEST:
        return math.inf
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # until it is known: a node may hold itself
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_size(part, sizes, depth + 1) for part in parts)
    return sizes[id(node)]
