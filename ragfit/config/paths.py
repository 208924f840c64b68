"""Paths and names that users give, each looked up in one way."""

import os
from pathlib import Path

import platformdirs

from ragfit.errors import ConfigError

DEMO_PREFIX = "demo:"
PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
# Beside the package in a source tree, where users edit them; an installed wheel has them inside the package.
CONFIGS = PROJECT_ROOT / ("configs" if (PROJECT_ROOT / "configs" / "training.yaml").is_file() else "ragfit/configs")
PathText = str | os.PathLike


def user_path(value: PathText) -> Path:
    """A path as a user gives it, with the home folder in the place of `~`."""
    return Path(os.path.expanduser(value))  # noqa: PTH111  (raises nothing for ~nobody)


def find_existing(value: PathText | None) -> Path | None:
    """`value` as a path, looked up from the working directory, then the project's root; None where neither has it."""
    path = user_path(value or "\0")
    project = CONFIGS.joinpath(*path.parts[1:]) if path.parts[:1] == ("configs",) else PROJECT_ROOT / path
    return next((place for place in (path, project) if os.path.exists(place)), None)  # noqa: PTH110  (nor a long text)


def find_path(value: PathText | None, key: str) -> Path:
    """As `find_existing`, with a ConfigError naming the key where there is no such path."""
    if path := find_existing(value):
        return path
    problem = f"there is no {str(value)[:300]!r} at {Path.cwd()} or {PROJECT_ROOT}"
    raise ConfigError(key, problem, f"Set {key} to a path that exists.")


def find_file(value: PathText | None, key: str) -> Path:
    """As `find_path`, of a file."""
    if (path := find_path(value, key)).is_dir():
        raise ConfigError(key, f"{path} is a folder", "Name the file in it.")
    return path


def find_model(name: PathText, key: str = "model.model_name_or_path") -> Path | None:
    """The folder of a model or an adapter, or None for a name on the hub; a ConfigError for what can be neither."""
    only_a_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    return find_path(name, key) if only_a_path else find_existing(name)


def cache_folder() -> Path:
    """The kit's cache folder, which may not exist yet."""
    return Path(os.environ.get("RAGFIT_CACHE") or platformdirs.user_cache_path("ragfit")).expanduser().absolute()


def is_demo(name: object) -> bool:
    return isinstance(name, str) and name.startswith(DEMO_PREFIX)
