"""Push a finished adapter to a private repository on the Hugging Face hub.

    python -m ragfit.hub trained_models/checkpoint org/name
"""

import contextlib
import logging
import shlex
import sys
from pathlib import Path

from ragfit.config import user_path
from ragfit.errors import ConfigError, RagfitError, first_line, for_terminal
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

SILENCE = 120.0  # seconds without a byte from the hub; its client waits for ever
# What Trainer's checkpoints hold beside weights, and nobody needs to use them.
LEFT_OUT = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "trainer_state.json",
    "ragfit_checkpoint.json", "global_step*/*", ".*",
)  # fmt: skip


def check_tag(tag):
    """Raise a ConfigError for an `hfhub_tag` that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(str(tag))
    except HFValidationError as error:
        raise ConfigError(f"hfhub_tag: {tag!r} is no repository name ({error}). Set hfhub_tag to name or org/name.") from error


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
        return user_path(Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type)), key).is_dir()
    except HFValidationError:
        return False


def push(folder, tag, token=None):
    """Upload a checkpoint folder.

    Args:
        folder: `output_dir/checkpoint` of a run.
        tag: `name` or `org/name`; made, private, where it does not exist.
        token: a token of the hub; the one of `hf auth login` or of the environment where None.

    Returns:
        The address of the repository, or None where the push failed: the folder is untouched, and the log says
        how to push it later.
    """
    from huggingface_hub import HfApi

    try:
        with _no_endless_wait():
            api = HfApi(token=token)
            repo = api.create_repo(str(tag), private=True, exist_ok=True)
            if not api.model_info(repo.repo_id).private:
                raise RagfitError("the repository exists and is public; make it private, or choose another name")
            api.upload_folder(
                repo_id=repo.repo_id, folder_path=str(folder), ignore_patterns=list(LEFT_OUT), commit_message="Upload adapter trained with ragfit"
            )
    except Exception as error:  # network, login and server errors have no common class; none may lose the run
        reason = first_line(error) + (f": {first_line(error.__cause__)}" if error.__cause__ else "")
        logger.error(
            "hfhub_tag: pushing to %s failed (%s). The adapter is safe in %s; push it later with: python -m ragfit.hub %s",
            tag, mask(reason, [token] if token else []), folder, shlex.join([str(folder), str(tag)]),
        )
        return None
    logger.info("Pushed %s to %s", folder, repo)
    return str(repo)


@contextlib.contextmanager
def _no_endless_wait():
    from huggingface_hub.utils import get_session

    session = get_session()
    before, session.timeout = session.timeout, SILENCE
    try:
        yield
    finally:
        session.timeout = before


def main(argv=None):
    """Push from the command line; the exit code is 1 where it failed."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 2:
        sys.exit("usage: python -m ragfit.hub CHECKPOINT_FOLDER ORG/NAME")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check_tag(argv[1])
        folder = user_path(argv[0], "checkpoint")
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(f"{folder} holds no adapter and no model. Name the folder checkpoint of a run's train.output_dir.")
        sys.exit(0 if push(folder, argv[1]) else 1)
    except RagfitError as error:
        sys.exit(for_terminal(error))


if __name__ == "__main__":
    main()
