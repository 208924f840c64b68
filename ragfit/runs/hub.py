"""Push a finished adapter to a private repository on the Hugging Face hub."""

import logging
import shlex
from pathlib import Path

from ragfit.errors import ConfigError, first_line
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

SILENCE = 120.0  # seconds without a byte from the hub, for which its client would wait without end
# Nothing pickled: in a trainer's checkpoint that holds the optimizer, and the arguments with their token.
SENT = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.md", "*.yaml", "*.model", "*.py"]


def check_tag(tag: str) -> None:
    """Raise a ConfigError for an `hfhub_tag` that no repository can have."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(tag)
    except HFValidationError as error:
        raise ConfigError("hfhub_tag", f"{tag!r} is not a repository name ({error})", "Set org/name.") from error


def push(folder: Path, tag: str, token: str | None = None) -> str | None:
    """Upload a checkpoint to a private repository; its address, or None where that failed, which loses no run."""
    from huggingface_hub import HfApi, get_session

    try:
        get_session().timeout = SILENCE
        api = HfApi(token=token)
        repo = api.create_repo(tag, private=True, exist_ok=True)
        if not api.model_info(repo.repo_id).private:
            raise ValueError("the repository exists and is public: make it private, or choose another name")
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, allow_patterns=SENT)
    except Exception as error:  # the hub's client and its uploader have no class in common
        reason = mask(first_line(error.__cause__ or error), [token] if token else [])
        later = f"python -m ragfit push {shlex.join([str(folder), tag])}"
        said = "hfhub_tag: pushing to %s failed (%s). The adapter is safe in %s; push it later with: %s"
        logger.error(said, tag, reason, folder, later)
        return None
    logger.info("Pushed %s to %s", folder, repo)
    return str(repo)
