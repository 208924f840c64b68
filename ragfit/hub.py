"""Push a finished adapter to a private repository on the Hugging Face hub.

    python -m ragfit.hub trained_models/checkpoint org/name
"""

import logging
import shlex
import sys

from ragfit.errors import ConfigError, first_line

logger = logging.getLogger(__name__)


def check_tag(tag):
    """Raise a ConfigError for an `hfhub_tag` that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(str(tag))
    except HFValidationError as error:
        raise ConfigError(f"hfhub_tag: {tag!r} is no repository name ({error}). Set hfhub_tag to name or org/name.") from error


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
        api = HfApi(token=token)
        repo = api.create_repo(str(tag), private=True, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=str(folder), commit_message="Upload adapter trained with ragfit")
    except Exception as error:  # network, login and server errors have no common class; none may lose the run
        logger.error(
            "hfhub_tag: pushing to %s failed (%s). The adapter is safe in %s; push it later with: python -m ragfit.hub %s",
            tag, first_line(error), folder, shlex.join([str(folder), str(tag)]),
        )
        return None
    logger.info("Pushed %s to %s", folder, repo)
    return str(repo)


def main(argv=None):
    """Push from the command line; the exit code is 1 where it failed."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 2:
        sys.exit("usage: python -m ragfit.hub CHECKPOINT_FOLDER ORG/NAME")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(0 if push(*argv) else 1)


if __name__ == "__main__":
    main()
