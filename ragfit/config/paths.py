"""Paths and names that users give, each looked up in one way."""

import contextlib
import os
from pathlib import Path

from ragfit.config.schema import short_repr
from ragfit.errors import ConfigError, first_line

DEMO_PREFIX = "demo:"

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
# Beside the package in a source tree, where users edit them; an installed wheel has them inside the package.
CONFIGS = PROJECT_ROOT / ("configs" if (PROJECT_ROOT / "configs" / "training.yaml").is_file() else "ragfit/configs")


def user_path(value, key="path") -> Path:
    """A path as a user gives it, with the home folder in the place of `~`; every such path comes through here.

    Raises:
        ConfigError: naming `key`, where the system cannot even look it up: the text of an instruction in the place of its
            file, a NUL character, the home of nobody, a folder that may not be entered.
    """
    try:
        path = Path(value).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ConfigError(
            f"{key}: {short_repr(str(value))} cannot be looked up: {reason}. {_other_path(key, 'another path')}"
        ) from error
    return path


def _other_path(key, otherwise):
    return (
        f"Set {key} to {'the path of a file that holds the text' if key in ('instruction', 'template') else otherwise}."
    )


def _places(path) -> tuple[Path, ...]:
    """Where a path is looked up: from the working directory, then from the project's root."""
    in_configs = path.parts[:1] == ("configs",)
    return path, CONFIGS.joinpath(*path.parts[1:]) if in_configs else PROJECT_ROOT / path


def find_existing(value, key="path") -> Path | None:
    """`value` as a path, looked up from the working directory, then the project's root; None where neither has it."""
    if not value:
        return None
    places = (user_path(place, key) for place in _places(user_path(value, key)))
    return next((place for place in places if place.exists()), None)


def find_path(value, key) -> Path:
    """As `find_existing`, with a `ConfigError` naming the key and both places where there is no such path."""
    found = find_existing(value, key)
    if found is None:
        places = " or ".join(
            dict.fromkeys(
                short_repr(str(Path.cwd() / place)).strip("'") for place in _places(user_path(value or "", key))
            )
        )
        raise ConfigError(
            f"{key}: there is no {short_repr(str(value))} at {places}. {_other_path(key, 'a path that exists')}"
        )
    return found


def find_file(value, key) -> Path:
    """As `find_path`, of a regular file: whoever reads a pipe or a device may wait without end."""
    found = find_path(value, key)
    if not found.is_file():
        what = (
            "a folder. Name the file in it" if found.is_dir() else "a pipe or a device. Write its content into a file"
        )
        raise ConfigError(f"{key}: {found} is {what}.")
    return found


def find_model(name, key="model.model_name_or_path") -> Path | None:
    """The folder of a model or an adapter, or None for a name on the hub.

    Raises:
        ConfigError: a file, or what can only be a path and does not exist.
    """
    found = find_existing(name, key)
    if found is not None and not found.is_dir():
        raise ConfigError(f"{key}: {name} is a file. Give the folder with the model's files, or a name on the hub.")
    text = str(name)
    if found is None and (
        text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text
    ):
        find_path(name, key)  # raises, naming the places looked at
    return found


def cache_folder():
    """The kit's cache folder, which may not exist yet."""
    import platformdirs

    return Path(os.environ.get("RAGFIT_CACHE") or platformdirs.user_cache_path("ragfit")).expanduser().absolute()


def check_reachable(name, key, repo_type="model"):
    """Raise a ConfigError at once where the hub refuses connections and has left nothing of `name` in its cache.

    The hub's client would try for half a minute, file by file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode() or in_cache(name, repo_type, key):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # no name server, no route, a refusal, a proxy's: each of its own class
        raise ConfigError(
            f"{key}: there is no {name} on this disk, and the hub at {constants.ENDPOINT} cannot be reached: {first_line(error)}. "
            f"Set {key} to a path that exists, or mend the network (a proxy is named by HTTPS_PROXY)."
        ) from error


def in_cache(name, repo_type="model", key="model.model_name_or_path"):
    """Whether the hub's cache on this disk holds something of a repository; not for what is no repository's name."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        return user_path(
            Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type)), key
        ).is_dir()
    except HFValidationError:
        return False


def is_demo(name) -> bool:
    """Tells whether a model name asks for the demo model rather than a folder or a hub name.

    Args:
        name: The value of ``model_name_or_path``.

    Returns:
        True for names that begin with ``demo:``, known or not.
    """
    return isinstance(name, str) and name.startswith(DEMO_PREFIX)
