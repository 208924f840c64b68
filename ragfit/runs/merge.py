"""Merge a run's adapter into its base model: a model of its own, which needs no peft.

python -m ragfit.merge trained_models/checkpoint merged_model
"""

import contextlib
import glob
import json
import shutil
import tempfile
from pathlib import Path

from ragfit.config.explain import explained
from ragfit.config.paths import find_existing, find_path, user_path
from ragfit.config.trust import believed, own_file, warn
from ragfit.errors import ConfigError, first_line

# What inference needs again and save_pretrained does not write.
KEPT = ("ragfit.yaml", "instruction.txt", "template.txt")


@explained("Merging")
def merge_checkpoint(checkpoint, out, base=None, dtype=None, trust_remote_code=False):
    """Merge an adapter into the base model that it was trained on, and save model, tokenizer and instruction.

    The base is loaded in full (in its own type, never quantized), an earlier adapter of `model.trained_adapter` is merged
    first, and then this one. Needs memory and disk for the whole base model; no GPU.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any folder that `peft` has saved.
        out: the folder to write, which must not exist or be empty; it is written whole or not at all.
        base: the base model's folder or name, where it has moved.
        dtype: the type of the merged weights ("bfloat16", …); the base's own by default.
        trust_remote_code: run code that comes with the base model or the tokenizer. What the checkpoint's own files say
            of it does not count.

    Returns:
        Path of the folder.

    Raises:
        ConfigError: there is nothing to merge, the folder is taken, the disk is too small, or the adapter and the base
            do not belong together.
    """
    from safetensors import SafetensorError

    from ragfit.models.hf import merge_adapter

    folder, out = find_path(checkpoint, "checkpoint"), user_path(out, "out")
    settings, (tree, set_aside) = _adapter(folder), believed(folder)
    model_keys = tree.get("model", {}) | {"trust_remote_code": trust_remote_code}
    given = {"model.trust_remote_code"} if trust_remote_code else set()
    named = [key for key in set_aside if key.startswith("model.") and key not in given]
    warn(folder, named, "give --trust-remote-code if you trust its code")
    base = base or model_keys.get("model_name_or_path") or settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder} does not say which base model it belongs to. Name it with --base.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty. Name a new folder for the merged model.")
    earlier = model_keys.get("trained_adapter")
    if earlier and not find_existing(earlier) and Path(earlier).is_absolute():
        raise ConfigError(
            f"{folder} was trained on top of the adapter {earlier} (model.trained_adapter), which is not there any more. "
            "Restore that adapter; without it the merged weights would be wrong."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _part_of(out) as part:
            model = _load_base(base, dtype, model_keys)
            _check_space(model, out.parent)
            if earlier:
                model = merge_adapter(model, earlier)
            _merged(model, folder, base).save_pretrained(part)
            _tokenizer(folder, base, model_keys).save_pretrained(part)
            for name in KEPT:
                if own := own_file(folder, name):
                    shutil.copy(own, part / name)
            part.chmod(0o755)  # mkdtemp's folders are the owner's alone
            if out.exists():
                out.rmdir()
            part.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"{out} cannot be written: {reason}. Name a folder with enough space.") from error
    return out


@contextlib.contextmanager
def _part_of(out):
    """A hidden folder beside `out` to write it in. What killed merges into `out` left there is removed."""
    from filelock import FileLock, Timeout

    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"Another merge is writing {out}. Wait for it, or name another folder.") from None
    try:
        for dead in out.parent.glob(f".{glob.escape(out.name)}.part-*"):  # the living hold the lock
            shutil.rmtree(dead, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _adapter(folder):
    """The adapter's settings, with a clear word where there is none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise ConfigError(f"{folder} holds a whole model, so there is nothing to merge. Load it as it is.")
        raise ConfigError(
            f"{folder} holds no adapter (adapter_config.json). Name the folder checkpoint of a run's train.output_dir."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}. Take the adapter from another copy.") from error


def _load_base(base, dtype, model_keys):
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    from ragfit.draw.progress import weights_bar
    from ragfit.models.hf import choose_dtype, resolve

    remote = {"trust_remote_code": model_keys["trust_remote_code"], "revision": model_keys.get("revision")}
    kind = choose_dtype(dtype) if dtype else "auto"
    try:
        source = resolve(base)
    except ConfigError as error:
        raise ConfigError(
            f"The base model of the adapter was not found at {base!r}. Name its folder, or its name on the hub, with --base."
        ) from error
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
        advice = "Name its folder, or its name on the hub, with --base"
        if "custom code" in str(error):
            advice = "Give --trust-remote-code if you trust the code that comes with it"
        raise ConfigError(f"The base model {base} could not be loaded: {first_line(error)}. {advice}.") from error


def _check_space(model, folder):
    need = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < need * 1.02:
        raise ConfigError(
            f"The merged model takes {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. Name another folder."
        )


def _merged(model, folder, base):
    from ragfit.models.hf import load_adapter

    def sentence(reason):
        advice = "Name the model that it was trained on with --base"
        return f"The adapter in {folder} could not be merged into {base}: {reason}. {advice}."

    tuned = load_adapter(model, folder, sentence)
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:  # of a kind that cannot be merged, or weights that are no numbers
        raise ConfigError(sentence(first_line(error))) from error


def _tokenizer(folder, base, model_keys):
    """The tokenizer that the run saved beside its adapter, or the base model's."""
    from ragfit.models.tokenizer import load_tokenizer

    name = folder if (folder / "tokenizer_config.json").is_file() else base
    return load_tokenizer(str(name), model_keys.get("revision"), model_keys["trust_remote_code"])
