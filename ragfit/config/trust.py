"""What counts of the configuration that lies in a checkpoint (`ragfit.yaml`): its one reader.

A checkpoint may come from a stranger, and evaluating or merging it must run no code of theirs, read no file or variable
of the user's, and send nothing. So this is a list of what such a file may say, not of what it may not: whatever a later
version of a library makes of another key, it counts only where the user gives it.
"""

import io
import logging
import re
import tempfile
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ragfit.config.load import load_config
from ragfit.config.overrides import literal
from ragfit.config.paths import find_existing, in_cache
from ragfit.config.schema import PROMPT_KEYS, RENAMED, is_hf_train
from ragfit.draw.text import plain
from ragfit.errors import ConfigError, first_line

logger = logging.getLogger(__name__)

FILE = "ragfit.yaml"
_PLACES = ("model.model_name_or_path", "model.trained_adapter", "data_file", "dev_split")
_MODEL = [
    "model_name_or_path",
    "trained_adapter",
    "revision",
    "dtype",
    "device_map",
    "attn_implementation",
    "load_in_8bit",
    "load_in_4bit",
    "quantization_config",
]
_LORA = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "bias",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "peft_type",
    "task_type",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
]
_GENERATION = [
    "max_new_tokens",
    "min_new_tokens",
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "bad_words_ids",
    "suppress_tokens",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
]
_TRAIN = [
    "per_device_eval_batch_size",
    "seed",
    "bf16",
    "fp16",
    "bf16_full_eval",
    "fp16_full_eval",
    "tf32",
    "use_cpu",
    "loss_type",
    "label_smoothing_factor",
    "pad_to_multiple_of",
]
_BELIEVED = {
    *("data_file", "input_key", "output_key", "limit", "shuffle", "dev_split"),
    *(f"model.{key}" for key in (*_MODEL, *PROMPT_KEYS)),
    *(f"model.lora.{key}" for key in _LORA),
    *(f"model.generation.{key}" for key in _GENERATION),
    *(f"train.{key}" for key in _TRAIN),
}
_OPENED = ("model", "model.lora", "model.generation", "train")
# The other keys of `train`, and how a run was tracked, mean nothing here and go without a word, except these, which
# would run, write or send something.
_QUIET = ("train", "resume_checkpoint", "hfhub_tag", "use_wandb", "experiment", "wandb_entity", "translated")
_NAMED = tuple(
    f"train.{name}"
    for name in [
        "accelerator_config",
        "deepspeed",
        "fsdp",
        "hub_",
        "liger",
        "logging_dir",
        "parallelism_config",
        "push_to_hub",
        "report_to",
        "torch_compile",
        "torchdynamo",
        "use_liger",
    ]
)
# `${oc.env:NAME}` and `${another.key}`; no other resolver, and none within another.
_INTERPOLATION = re.compile(r"\$\{(?:(?P<env>oc\.env:\w+(?:,[^${}]*)?)|[A-Za-z_][\w.]*)\}")


def believed(checkpoint):
    """Read a checkpoint's own configuration.

    Text with `${oc.env:NAME}` is followed only to what is on this disk: a folder, a file, a model in the hub's cache.
    Elsewhere it would put what the environment holds, a token maybe, into requests, messages and files. The instruction
    and the template are the checkpoint's own files, never those at the paths that it names.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any other.

    Returns:
        `(tree, set_aside)`: what counts, as plain values in the configuration's shape, and the dotted keys that do
        not, to be named by `warn`. Both are empty where there is no such file.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = Path(checkpoint, FILE)
    if not path.is_file():
        return {}, []
    whole, found, set_aside = _read(path), {}, []

    def walk(mapping, prefix=""):
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name in _OPENED and isinstance(value, dict):
                walk(value, f"{name}.")
            elif RENAMED.get(name, name) in _BELIEVED and _is_plain(name, value):
                found[name] = value
            elif value in (None, False, "", "none", [], {}) or name == "model._target_" and is_hf_train(value):
                pass  # what it would be without it
            elif name.startswith(_NAMED) or name.partition(".")[0] not in _QUIET:
                set_aside.append(name)

    walk({key: value for key, value in whole.items() if key not in ("instruction", "template")})
    tree = _resolved(found, set_aside)
    for key in ("instruction", "template"):
        own = own_file(checkpoint, f"{key}.txt")
        if own and own.stat().st_size:
            tree[key] = str(own)
        elif whole.get(key) and not own:
            set_aside.append(key)
    return tree, set_aside


def own_file(checkpoint, name) -> Path | None:
    """A file of a checkpoint, or None where it has none. A link to elsewhere is none: it could name any file of the user's."""
    path = Path(checkpoint, name)
    folder = path.parent.resolve()
    blobs = folder.parent.parent / "blobs"  # of the hub's cache, which links to them
    return path if path.is_file() and path.resolve().parent in (folder, blobs) else None


def warn(checkpoint, set_aside, advice):
    """Name the keys of a checkpoint's own configuration that did not count."""
    if set_aside:
        names = ", ".join(plain(name)[:80] for name in set_aside[:12]) + (", …" if len(set_aside) > 12 else "")
        what = "What a checkpoint's own file says turns nothing on"
        logger.warning("%s: set aside: %s. %s; %s.", Path(checkpoint, FILE), names, what, advice)


def load_believed(checkpoint, overrides):
    """The resolved configuration of what counts in a checkpoint, with the user's overrides, which count all the same.

    Raises:
        ConfigError: as `believed` and `ragfit.load_config`.
    """
    tree, set_aside = believed(checkpoint)
    given = tuple(text.lstrip("+~").partition("=")[0] + "." for text in overrides)
    advice = "give it as an override of your own, such as model.trust_remote_code=true"
    warn(checkpoint, [name for name in set_aside if not f"{name}.".startswith(given)], advice)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(literal(tree))), encoding="utf-8")
        try:
            return load_config(path, overrides)
        except ConfigError as error:
            place = re.escape(str(path)) + r"(, line \d+)?"
            raise ConfigError(re.sub(place, lambda _: str(Path(checkpoint, FILE)), str(error))) from error


def _read(path):
    """The file's values as they are written, nothing followed, nothing composed by Hydra."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 20 or isinstance(event, yaml.AliasEvent):  # a few aliases can mean gigabytes
                raise yaml.YAMLError("it has aliases (*name), or values within values, as no run writes them")
        whole = OmegaConf.load(io.StringIO(text))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = plain(first_line(error))
        raise ConfigError(f"{path} cannot be read: {reason}. Take the checkpoint from another copy.") from error
    if not isinstance(whole, DictConfig):
        raise ConfigError(f"{path} is no mapping of keys to values. Take the checkpoint from another copy.")
    return OmegaConf.to_container(whole, resolve=False)


def _is_plain(name, value):
    """Whether a value is numbers, switches and text, in lists or under keys, and its `${…}` may be followed."""
    if isinstance(value, dict):
        return all(not str(key).startswith("_") and _is_plain("", inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_is_plain("", inner) for inner in value)
    tokens = [_INTERPOLATION.match(value, start) for start in _interpolations(value)]
    # One reference to another key, and none in lists: two of them in each of thirty keys mean gigabytes.
    references = sum(token is not None and not token["env"] for token in tokens)
    return references <= bool(name) and all(token and (name in _PLACES or not token["env"]) for token in tokens)


def _interpolations(value):
    """Where a value, if it is text, has `${` that is not escaped."""
    found = re.finditer(r"(\\*)\$\{", value) if isinstance(value, str) else ()
    return [token.end() - 2 for token in found if len(token[1]) % 2 == 0]


def _resolved(found, set_aside):
    """The values of `found` in the configuration's shape, with what they refer to put in."""
    cfg = OmegaConf.create({})
    for name, value in found.items():
        OmegaConf.update(cfg, name, value, force_add=True)
    # Places first, since other keys may refer to them.
    for name in sorted(found, key=lambda name: name not in _PLACES):
        text = found[name]
        try:
            value = OmegaConf.select(cfg, name)
            value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, RecursionError):
            value = None
        if name == "model.attn_implementation" and "/" in str(value):
            value = None  # a kernel of the hub, which is code
        if name in _PLACES and _interpolations(text):
            value = value if _on_this_disk(value) else text
        elif value is None and text is not None:
            set_aside.append(name)
        OmegaConf.update(cfg, name, literal(value))
    return OmegaConf.to_container(cfg, resolve=True)


def _on_this_disk(name):
    return isinstance(name, str) and bool(find_existing(name) or in_cache(name))
