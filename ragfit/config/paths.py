"""Paths and names that users give, each looked up in one way."""

import os
from pathlib import Path
from typing import Any

from ragfit.errors import ConfigError, MissingPath, first_line

DEMO_PREFIX = "demo:"
PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
# Beside the package in a source tree, where users edit them; an installed wheel has them inside the package.
CONFIGS = PROJECT_ROOT / ("configs" if (PROJECT_ROOT / "configs" / "training.yaml").is_file() else "ragfit/configs")
PathText = str | os.PathLike


def user_path(value: PathText, key: str = "path") -> Path:
    """A path as a user gives it, with the home folder in the place of `~`."""
    try:
        return Path(value).expanduser()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(key, f"{value!r} is no path: {error}", f"Set {key} to a path.") from error


def _places(path: Path) -> tuple[Path, Path]:
    """Where a path is looked up: from the working directory, then from the project's root."""
    in_configs = path.parts[:1] == ("configs",)
    return path, CONFIGS.joinpath(*path.parts[1:]) if in_configs else PROJECT_ROOT / path


def find_existing(value: PathText | None, key: str = "path") -> Path | None:
    """`value` as a path, looked up from the working directory, then the project's root; None where neither has it."""
    places = _places(user_path(value, key)) if value else ()
    try:
        return next((place for place in places if place.exists()), None)
    except OSError as error:  # the text of an instruction in the place of its file, say
        problem = f"{str(value)[:100]!r} cannot be looked up: {first_line(error)}"
        raise ConfigError(key, problem, f"Set {key} to the path of a file that holds it.") from error


def find_path(value: PathText | None, key: str) -> Path:
    """As `find_existing`, with a `MissingPath` naming the key and both places where there is no such path."""
    path = find_existing(value, key)
    if path is None:
        places = " or ".join(dict.fromkeys(str(Path.cwd() / place) for place in _places(Path(value or ""))))
        raise MissingPath(key, f"there is no {str(value)!r} at {places}", f"Set {key} to a path that exists.")
    return path


def find_file(value: PathText | None, key: str) -> Path:
    """As `find_path`, of a file."""
    path = find_path(value, key)
    if path.is_dir():
        raise ConfigError(key, f"{path} is a folder", "Name the file in it.")
    return path


def find_model(name: PathText, key: str = "model.model_name_or_path") -> Path | None:
    """The folder of a model or an adapter, or None for a name on the hub.

    Raises:
        ConfigError: a file, or what can only be a path and does not exist.
    """
    path, text = find_existing(name, key), str(name)
    if path is not None and not path.is_dir():
        raise ConfigError(key, f"{name} is a file", "Give the folder with the model's files, or a name on the hub.")
    local = text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text
    return find_path(name, key) if path is None and local else path


def cache_folder() -> Path:
    """The kit's cache folder, which may not exist yet."""
    import platformdirs

    return Path(os.environ.get("RAGFIT_CACHE") or platformdirs.user_cache_path("ragfit")).expanduser().absolute()


def is_demo(name: Any) -> bool:
    """Whether a model name asks for the demo model: it begins with `demo:`, known or not."""
    return isinstance(name, str) and name.startswith(DEMO_PREFIX)
