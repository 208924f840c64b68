"""Merge a run's adapter into its base model: a model of its own, which needs no peft.

    python -m ragfit.merge trained_models/checkpoint merged_model
"""

import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from ragfit.config import find_existing, find_path
from ragfit.errors import ConfigError, RagfitError, explained, first_line, for_terminal

# What inference needs again and save_pretrained does not write.
KEPT = ("ragfit.yaml", "instruction.txt", "template.txt")


@explained("Merging")
def merge_checkpoint(checkpoint, out, base=None, dtype=None):
    """Merge an adapter into the base model that it was trained on, and save model, tokenizer and instruction.

    The base is loaded in full (in its own type, never quantized), an earlier adapter of `model.trained_adapter` is merged
    first, and then this one. Needs memory and disk for the whole base model; no GPU.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any folder that `peft` has saved.
        out: the folder to write, which must not exist or be empty; it is written whole or not at all.
        base: the base model's folder or name, where it has moved.
        dtype: the type of the merged weights ("bfloat16", …); the base's own by default.

    Returns:
        Path of the folder.

    Raises:
        ConfigError: there is nothing to merge, the folder is taken, the disk is too small, or the adapter and the base
            do not belong together.
    """
    folder, out = find_path(checkpoint, "checkpoint"), Path(out)
    settings, model_keys = _adapter(folder), model_keys_of(folder)
    base = base or model_keys.get("model_name_or_path") or settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder} does not say which base model it belongs to. Name it with --base.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty. Name a new folder for the merged model.")
    earlier = earlier_adapter(folder)
    if earlier and not find_existing(earlier) and Path(earlier).is_absolute():
        raise ConfigError(
            f"{folder} was trained on top of the adapter {earlier} (model.trained_adapter), which is not there any more. "
            "Bring it back: without it the merged model is another one."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    model = _load_base(base, dtype, model_keys)
    _check_space(model, out.parent)
    if earlier:
        from ragfit.models.hf import merge_adapter

        model = merge_adapter(model, earlier)
    model = _merged(model, folder, base)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
    try:
        model.save_pretrained(part)
        _tokenizer(folder, base, model_keys).save_pretrained(part)
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copy(folder / name, part / name)
        part.chmod(0o755)  # mkdtemp's folders are the owner's alone
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}. Name a folder with enough space.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def earlier_adapter(checkpoint):
    """The adapter that was merged into the base before this one was trained (`model.trained_adapter`), or None."""
    return model_keys_of(checkpoint).get("trained_adapter")


def quantized_in_training(checkpoint):
    """How a run's base was quantized: "8-bit", "4-bit", "quantized", or None."""
    keys = model_keys_of(checkpoint)
    eight, four = keys.get("load_in_8bit"), keys.get("load_in_4bit")
    return "8-bit" if eight else "4-bit" if four else "quantized" if keys.get("quantization_config") else None


def model_keys_of(checkpoint):
    """The keys of `model` of a run's saved configuration, or {} where there is none.

    What the run took from the environment is read there again; where it is not set, the text `${oc.env:…}` stays.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.load(Path(checkpoint, "ragfit.yaml"))
        keys = OmegaConf.to_container(tree.model)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, OmegaConfBaseException):
        return {}
    if not isinstance(tree.model, DictConfig):
        return {}
    for key in keys:
        with contextlib.suppress(OmegaConfBaseException):
            value = tree.model[key]
            keys[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return keys


def _adapter(folder):
    """The adapter's settings, with a clear word where there is none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise ConfigError(f"{folder} holds a whole model, so there is nothing to merge. Load it as it is.")
        raise ConfigError(f"{folder} holds no adapter (adapter_config.json). Name the folder checkpoint of a run's train.output_dir.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}. Take the adapter from another copy.") from error


def _load_base(base, dtype, model_keys):
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    from ragfit.models.hf import choose_dtype, resolve
    from ragfit.progress import weights_bar

    remote = {"trust_remote_code": bool(model_keys.get("trust_remote_code")), "revision": model_keys.get("revision")}
    kind = choose_dtype(dtype) if dtype else "auto"
    try:
        source = resolve(base)
    except ConfigError as error:
        raise ConfigError(f"The base model of the adapter was not found at {base!r}. Name its folder, or its name on the hub, with --base.") from error
    try:
        config = AutoConfig.from_pretrained(source, **remote)
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigError(
                f"The base model {base} is stored quantized, and an adapter is not merged into quantized weights. "
                "Name the unquantized model with --base."
            )
        with torch.no_grad(), weights_bar():
            return AutoModelForCausalLM.from_pretrained(source, dtype=kind, **remote)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"The base model {base} could not be loaded: {first_line(error)}. Name its folder, or its name on the hub, with --base."
        ) from error


def _check_space(model, folder):
    need = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < need * 1.02:
        raise ConfigError(f"The merged model takes {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Name another folder.")


def _merged(model, folder, base):
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        tuned = PeftModel.from_pretrained(model, str(folder))
        if not hasattr(tuned.base_model, "merge_and_unload"):
            raise ConfigError(f"{folder} holds an adapter of a kind that cannot be merged. Load it with peft instead.")
        return tuned.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:  # another model's, or weights that are no numbers
        raise ConfigError(
            f"The adapter in {folder} could not be merged into {base}: {first_line(error)}. Name the model that it was trained on with --base."
        ) from error


def _tokenizer(folder, base, model_keys):
    """The tokenizer that the run saved beside its adapter, or the base model's."""
    from ragfit.tokenizers import load_tokenizer

    name = folder if (folder / "tokenizer_config.json").is_file() else base
    return load_tokenizer(str(name), model_keys.get("revision"), bool(model_keys.get("trust_remote_code")))


def main(argv=None):
    """Merge from the command line."""
    parser = argparse.ArgumentParser("python -m ragfit.merge", description="Merge a run's adapter into its base model.")
    parser.add_argument("checkpoint", help="the folder checkpoint of a run's train.output_dir")
    parser.add_argument("out", help="a new folder for the merged model")
    parser.add_argument("--base", help="the base model's folder or name, where it has moved")
    parser.add_argument("--dtype", help="the type of the merged weights, such as bfloat16; the base's own by default")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        out = merge_checkpoint(args.checkpoint, args.out, args.base, args.dtype)
    except RagfitError as error:
        sys.exit(for_terminal(error))
    how = quantized_in_training(args.checkpoint)
    if how:
        print(f"The adapter was trained on {how} weights and merged into full ones, so answers can differ a little from those of the run.")
    print(f"saved {out}; it loads with AutoModelForCausalLM.from_pretrained")


if __name__ == "__main__":
    main()
