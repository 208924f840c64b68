"""What counts of the configuration that lies in a checkpoint (`ragfit.yaml`): its one reader.

A stranger's checkpoint must run no code, read no file or variable of the user's, and send nothing. So this is a list of
what such a file may say: all else, and whatever has `${…}` in it, counts only where the user gives it.
"""

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ragfit.config.finish import finish, nested
from ragfit.config.keys import PROMPT_KEYS, STRICT, is_hf_train, leaves
from ragfit.config.load import compose_config
from ragfit.config.overrides import given_keys
from ragfit.config.paths import PathText
from ragfit.config.save import digest_of_rows

logger = logging.getLogger(__name__)

FILE = "ragfit.yaml"
_COUNTS = {
    "": "data_file dev_split input_key output_key limit shuffle",
    "model.": "model_name_or_path trained_adapter revision dtype device_map attn_implementation load_in_8bit "
    f"load_in_4bit quantization_config {' '.join(PROMPT_KEYS)}",
    "model.lora.": "r target_modules target_parameters exclude_modules",  # all else is in the adapter's own file
    "model.generation.": "max_new_tokens min_new_tokens do_sample temperature top_k top_p min_p num_beams "
    "early_stopping repetition_penalty no_repeat_ngram_size length_penalty bos_token_id eos_token_id pad_token_id",
    "train.": "per_device_eval_batch_size seed bf16 fp16 bf16_full_eval fp16_full_eval use_cpu loss_type "
    "label_smoothing_factor",
}
BELIEVED = {f"{part}{name}" for part, names in _COUNTS.items() for name in names.split()}
# The other keys of training, and how a run was tracked, mean nothing here and go without a word.
_QUIET = ("train.", "model.lora.", "resume_checkpoint", "hfhub_tag", "use_wandb", "experiment", "wandb_entity")


def believed(checkpoint: PathText) -> tuple[dict[str, Any], list[str]]:
    """What counts of a checkpoint's own configuration, in its shape, and the dotted keys that do not, for `warn`."""
    path = Path(checkpoint, FILE)
    if not path.is_file():
        return {}, []
    tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    keys = dict(leaves(tree, inside=(*STRICT, "model.generation")))
    quiet = (*_QUIET, "model._target_") if is_hf_train(keys.get("model._target_")) else _QUIET
    counted = {key: value for key, value in keys.items() if key in BELIEVED and _is_plain(key, value)}
    for key in ("data_file", "dev_split"):
        if isinstance(name := counted.get(key), str):
            # Rows in its folder, or known by the digest that it tells: who has that has read the file.
            own, digest = own_file(checkpoint, name), digest_of_rows(key, name)
            counted[key] = str(own) if own else name if digest and digest in path.read_text(encoding="utf-8") else None
    for key in ("instruction", "template"):
        own = own_file(checkpoint, f"{key}.txt")  # whatever path it names
        counted[key] = str(own) if own and own.stat().st_size else None
    said = [key for key, value in keys.items() if value not in (None, False, "", "none", [], {})]
    set_aside = [key for key in said if counted.get(key) is None and not key.startswith(quiet)]
    return nested({key: value for key, value in counted.items() if value is not None}), set_aside


def own_file(checkpoint: PathText, name: str) -> Path | None:
    """A file of a checkpoint, or None where it has none or a link to elsewhere, perhaps to a file of the user's."""
    path, folder = Path(checkpoint, name), Path(checkpoint).resolve()
    blobs = folder.parent.parent / "blobs"  # of the hub's cache, which links to them
    return path if path.is_file() and path.resolve().parent in (folder, blobs) else None


def _is_plain(key: str, value: Any) -> bool:
    """Whether a value follows no `${…}`, and names no code: no `_target_`, and no attention kernel of the hub."""
    kernel = key == "model.attn_implementation" and "/" in str(value)
    return not kernel and not re.search(r"\$\{|['\"]_\w*['\"]:", repr(value))


def warn(checkpoint: PathText, set_aside: Collection[str], advice: str) -> None:
    """Say that not all of a checkpoint's own configuration counted."""
    if set_aside:
        said = "%s says more than counts here, where it may be a stranger's; %s."
        logger.warning(said, Path(checkpoint, FILE), advice)


def load_believed(checkpoint: PathText, overrides: Iterable[str]) -> DictConfig:
    """The configuration of what counts in a checkpoint, with the user's overrides, which count all the same."""
    overrides, (tree, set_aside) = list(overrides), believed(checkpoint)
    given = tuple(given_keys(overrides))
    advice = "give it as an override of your own, such as model.trust_remote_code=true"
    warn(checkpoint, [name for name in set_aside if not name.startswith(given)], advice)
    path = Path(checkpoint, FILE)
    return finish(compose_config(path, overrides, OmegaConf.create(tree)), path, overrides)
