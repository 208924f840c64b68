"""Push a finished adapter to a private repository on the Hugging Face hub.

python -m ragfit push trained_models/checkpoint org/name
"""

import logging
import shlex
from pathlib import Path

from ragfit.errors import ConfigError, first_line
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

SILENCE = 120.0  # seconds without a byte from the hub, for which its client would wait without end
# What Trainer's checkpoints hold beside the weights, and nobody needs to use them.
LEFT_OUT = [
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "trainer_state.json",
    "ragfit_checkpoint.json", "global_step*/*", ".*",
]  # fmt: skip


def check_tag(tag: str) -> None:
    """Raise a ConfigError for an `hfhub_tag` that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(tag)
    except HFValidationError as error:
        problem = f"{tag!r} is not a repository name ({error})"
        raise ConfigError("hfhub_tag", problem, "Set hfhub_tag to name or org/name.") from error


def push(folder: Path, tag: str, token: str | None = None) -> str | None:
    """Upload a checkpoint folder.

    Args:
        folder: `output_dir/checkpoint` of a run.
        tag: `name` or `org/name`; made, private, where it does not exist.
        token: a token of the hub; the one of `hf auth login` or of the environment where None.

    Returns:
        The address of the repository, or None where the push failed: the log says how to push it later.
    """
    from huggingface_hub import HfApi, get_session

    try:
        get_session().timeout = SILENCE
        api = HfApi(token=token)
        repo = api.create_repo(tag, private=True, exist_ok=True)
        if not api.model_info(repo.repo_id).private:
            raise ValueError("the repository exists and is public: make it private, or choose another name")
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, ignore_patterns=LEFT_OUT)
    except Exception as error:  # the hub's client and its uploader have no common class, and none may lose the run
        reason = mask(first_line(error.__cause__ or error), [token] if token else [])
        later = f"python -m ragfit push {shlex.join([str(folder), tag])}"
        said = "hfhub_tag: pushing to %s failed (%s). The adapter is safe in %s; push it later with: %s"
        logger.error(said, tag, reason, folder, later)
        return None
    logger.info("Pushed %s to %s", folder, repo)
    return str(repo)
