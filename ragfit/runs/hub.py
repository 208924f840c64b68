"""Push a finished adapter to a private repository on the Hugging Face hub.

python -m ragfit.hub trained_models/checkpoint org/name
"""

import contextlib
import logging
import shlex

from ragfit.errors import ConfigError, RagfitError, first_line
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
        raise ConfigError(
            f"hfhub_tag: {tag!r} is no repository name ({error}). Set hfhub_tag to name or org/name."
        ) from error


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
                repo_id=repo.repo_id,
                folder_path=str(folder),
                ignore_patterns=list(LEFT_OUT),
                commit_message="Upload adapter trained with ragfit",
            )
    except Exception as error:  # network, login and server errors have no common class; none may lose the run
        reason = first_line(error) + (f": {first_line(error.__cause__)}" if error.__cause__ else "")
        logger.error(
            "hfhub_tag: pushing to %s failed (%s). The adapter is safe in %s; push it later with: python -m ragfit.hub %s",
            tag,
            mask(reason, [token] if token else []),
            folder,
            shlex.join([str(folder), str(tag)]),
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
