"""Merge a run's adapter into its base model: a model of its own, which needs no peft.

python -m ragfit merge trained_models/checkpoint merged_model
"""

import json
import shutil
from os import PathLike
from pathlib import Path

from ragfit.config.explain import explained
from ragfit.config.paths import find_model, find_path, user_path
from ragfit.config.trust import believed, own_file, warn
from ragfit.draw.progress import say, weights_bar
from ragfit.errors import ConfigError
from ragfit.files import part_of
from ragfit.runs.records import CONFIG


@explained("Merging")
def merge_checkpoint(
    checkpoint: str | PathLike,
    out: str | PathLike,
    base: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Merge an adapter into the base model that it was trained on, and save model, tokenizer and instruction.

    The base is loaded in full, an earlier adapter of `model.trained_adapter` is merged first, and then this one. Needs
    memory and disk for the whole base model; no GPU.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any folder that `peft` has saved.
        out: the folder to write, which must not exist or be empty; it is written whole or not at all.
        base: the base model's folder or name, where it has moved.
        dtype: the type of the merged weights ("bfloat16", …); the base's own by default.
        trust_remote_code: run code that comes with the base model or the tokenizer.

    Raises:
        ConfigError: there is nothing to merge, the folder is taken, or base, adapter or merged model is another than
            the checkpoint's fingerprint says.
    """
    from transformers import AutoModelForCausalLM

    from ragfit.models.adapter import merge_adapter
    from ragfit.models.hf import choose_dtype
    from ragfit.models.tokenizer import load_tokenizer, resolve

    folder, out = find_path(checkpoint, "checkpoint"), user_path(out)
    if not (folder / "adapter_config.json").is_file():
        fix = "Name the folder checkpoint of a run's train.output_dir; one with a whole model needs no merging."
        raise ConfigError("checkpoint", f"{folder} holds no adapter_config.json", fix)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("out", f"{out} exists and is not empty", "Name a new folder for the merged model.")
    settings, (tree, set_aside) = json.loads((folder / "adapter_config.json").read_text("utf-8")), believed(folder)
    keys = tree.get("model", {})
    given = "model.trust_remote_code" if trust_remote_code else ""
    named = [key for key in set_aside if key.startswith("model.") and key != given]
    warn(folder, named, "give --trust-remote-code if you trust its code")
    base = base or keys.get("model_name_or_path") or settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError("base", f"{folder} does not say which base model it belongs to", "Name it with --base.")
    earlier, remote = keys.get("trained_adapter"), {"trust_remote_code": trust_remote_code}
    source, kind = resolve(base, "base"), choose_dtype(dtype) if dtype else "auto"
    earlier = earlier and (find_model(earlier, "model.trained_adapter") or earlier)
    with part_of(out) as part:
        with weights_bar():
            revision = keys.get("revision")
            model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, revision=revision, **remote)
        if earlier:
            model = merge_adapter(model, earlier)
        merge_adapter(model, folder, "checkpoint").save_pretrained(part)
        _stop_where_taught(part, folder)
        own = str(folder) if (folder / "tokenizer_config.json").is_file() else base
        load_tokenizer(own, revision, **remote).save_pretrained(part)
        for name in (CONFIG, "instruction.txt", "template.txt"):  # what inference needs again
            if path := own_file(folder, name):
                shutil.copy(path, part / name)
        part.rename(out)
    if any(keys.get(key) for key in ("load_in_8bit", "load_in_4bit", "quantization_config")):
        say("The adapter was trained on quantized weights and merged into full ones: answers can differ a little.")
    return out


def _stop_where_taught(merged: Path, folder: Path) -> None:
    """Have generation stop at the ends that training has taught, beside those that the base stops at.

    In the file, since transformers refuses to save some bases' own settings once one of them has changed.
    """
    path, fingerprint = merged / "generation_config.json", folder / "fingerprint.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    taught = json.loads(fingerprint.read_text(encoding="utf-8"))["ends"] if fingerprint.is_file() else []
    before = settings.get("eos_token_id")
    known = before if isinstance(before, list) else [before] if before is not None else []
    if new := [token for token in taught if token not in known]:
        path.write_text(json.dumps({**settings, "eos_token_id": [*known, *new]}, indent=2) + "\n", encoding="utf-8")
