"""Merge a run's adapter into its base model: a model of its own, which needs no peft."""

import json
import shutil
from pathlib import Path

from ragfit.config.explain import explained
from ragfit.config.paths import find_model, find_path, user_path
from ragfit.config.trust import believed, own_file, warn
from ragfit.draw.progress import weights_bar
from ragfit.errors import ConfigError
from ragfit.files import part_of
from ragfit.runs.records import CONFIG


@explained("Merging")
def merge_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    base: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Merge an adapter into the base model that it was trained on, and save model, tokenizer and instruction.

    An earlier adapter of `model.trained_adapter` is merged first. Needs memory and disk for the whole base; no GPU.

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
    from ragfit.models.tokenizer import load_tokenizer, resolve

    folder, out = find_path(Path(checkpoint, "adapter_config.json"), "checkpoint").parent, user_path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("out", f"{out} exists and is not empty", "Name a new folder for the merged model.")
    (tree, set_aside), settings = believed(folder), json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if not trust_remote_code:
        warn(folder, set_aside, "give --trust-remote-code if you trust its code")
    keys, remote = tree.get("model", {}), {"trust_remote_code": trust_remote_code}
    base = base or keys.get("model_name_or_path") or str(settings.get("base_model_name_or_path"))
    source, revision = resolve(base, "base"), keys.get("revision")
    with part_of(out) as part:
        with weights_bar():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", revision=revision, **remote)
        if earlier := keys.get("trained_adapter"):
            model = merge_adapter(model, find_model(earlier, "model.trained_adapter") or earlier)
        merge_adapter(model, folder, "checkpoint").save_pretrained(part)
        _stop_where_taught(part, folder)
        own = str(folder) if (folder / "tokenizer_config.json").is_file() else base
        load_tokenizer(own, revision, **remote).save_pretrained(part)
        for path in filter(None, (own_file(folder, name) for name in (CONFIG, "instruction.txt", "template.txt"))):
            shutil.copy(path, part)  # what inference needs again
        part.rename(out)
    return out


def _stop_where_taught(merged: Path, folder: Path) -> None:
    """Have generation stop at what training taught too: in the file, since transformers may refuse to save it."""
    path, fingerprint = merged / "generation_config.json", folder / "fingerprint.json"
    if fingerprint.is_file():
        settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        known, taught = settings.get("eos_token_id", []), json.loads(fingerprint.read_text("utf-8"))["ends"]
        ends = dict.fromkeys([*(known if isinstance(known, list) else [known]), *taught])
        path.write_text(json.dumps(settings | {"eos_token_id": list(ends)}, indent=2), "utf-8")
