"""Paths and names that users give, each looked up in one way."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ragfit.config.values import short_repr
from ragfit.errors import ConfigError, MissingPath, first_line

DEMO_PREFIX = "demo:"

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
# Beside the package in a source tree, where users edit them; an installed wheel has them inside the package.
CONFIGS = PROJECT_ROOT / ("configs" if (PROJECT_ROOT / "configs" / "training.yaml").is_file() else "ragfit/configs")
PathText = str | os.PathLike


def user_path(value: PathText, key: str = "path") -> Path:
    """A path as a user gives it, with the home folder in the place of `~`; every such path comes through here.

    Raises:
        ConfigError: naming `key`, where the system cannot even look it up: the text of an instruction in the place of
            its file, a NUL character, the home of nobody, a folder that may not be entered; or where it is
            neither text nor a path.
    """
    try:
        path = Path(value).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        problem = f"{short_repr(str(value))} cannot be looked up: {reason}"
        raise ConfigError(key, problem, _other_path(key, "another path")) from error
    return path


def _other_path(key: str, otherwise: str) -> str:
    of_text = "the path of a file that holds the text"
    named = {"instruction": of_text, "template": of_text, "dev_split": f"a share such as 0.1, a number, or {otherwise}"}
    return f"Set {key} to {named.get(key, otherwise)}."


def _places(path: Path) -> tuple[Path, ...]:
    """Where a path is looked up: from the working directory, then from the project's root."""
    in_configs = path.parts[:1] == ("configs",)
    return path, CONFIGS.joinpath(*path.parts[1:]) if in_configs else PROJECT_ROOT / path


def find_existing(value: PathText | None, key: str = "path") -> Path | None:
    """`value` as a path, looked up from the working directory, then the project's root; None where neither has it."""
    if not value:
        return None
    places = (user_path(place, key) for place in _places(user_path(value, key)))
    return next((place for place in places if place.exists()), None)


def find_path(value: PathText | None, key: str) -> Path:
    """As `find_existing`, with a `MissingPath` naming the key and both places where there is no such path."""
    path = find_existing(value, key)
    if path is None:
        places = dict.fromkeys(short_repr(str(Path.cwd() / place)).strip("'") for place in _places(Path(value or "")))
        problem = f"there is no {short_repr(str(value))} at {' or '.join(places)}"
        raise MissingPath(key, problem, _other_path(key, "a path that exists"))
    return path


def find_file(value: PathText | None, key: str) -> Path:
    """As `find_path`, of a regular file: whoever reads a pipe or a device may wait without end."""
    path = find_path(value, key)
    if path.is_dir():
        raise ConfigError(key, f"{path} is a folder", "Name the file in it.")
    if not path.is_file():
        raise ConfigError(key, f"{path} is a pipe or a device", "Write its content into a file.")
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


def check_reachable(name: str, key: str, repo_type: str = "model") -> None:
    """Raise a ConfigError at once where the hub refuses connections and has left nothing of `name` in its cache.

    The hub's client would try for half a minute, file by file.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode() or in_cache(name, repo_type, key):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except (HTTPError, OSError, ValueError) as error:  # no route, a refusal, an address that is none
        hub = f"the hub at {constants.ENDPOINT} cannot be reached: {first_line(error)}"
        fix = f"Set {key} to a path that exists, or mend the network (a proxy is named by HTTPS_PROXY)."
        raise ConfigError(key, f"there is no {name} on this disk, and {hub}", fix) from error


def in_cache(name: str, repo_type: str = "model", key: str = "model.model_name_or_path") -> bool:
    """Whether the hub's cache on this disk holds something of a repository; not for what is no repository's name."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = repo_folder_name(repo_id=name, repo_type=repo_type)
    except HFValidationError:
        return False
    return user_path(Path(constants.HF_HUB_CACHE, folder), key).is_dir()


def is_demo(name: Any) -> bool:
    """Whether a model name asks for the demo model: it begins with `demo:`, known or not."""
    return isinstance(name, str) and name.startswith(DEMO_PREFIX)
