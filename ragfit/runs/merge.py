"""Merge a run's adapter into its base model: a model of its own, which needs no peft.

python -m ragfit.merge trained_models/checkpoint merged_model
"""

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.config.explain import explained
from ragfit.config.paths import find_model, find_path, is_demo, user_path
from ragfit.config.trust import believed, own_file, warn
from ragfit.errors import ConfigError, first_line
from ragfit.files import part_of
from ragfit.models.refusal import errors_as
from ragfit.runs.records import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What inference needs again and save_pretrained does not write.
KEPT = (CONFIG, "instruction.txt", "template.txt")


@explained("Merging")
def merge_checkpoint(
    checkpoint: str | PathLike,
    out: str | PathLike,
    base: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Merge an adapter into the base model that it was trained on, and save model, tokenizer and instruction.

    The base is loaded in full (in its own type, never quantized), an earlier adapter of `model.trained_adapter` is
    merged first, and then this one. Needs memory and disk for the whole base model; no GPU.

    Args:
        checkpoint: the folder `checkpoint` of a run, or any folder that `peft` has saved.
        out: the folder to write, which must not exist or be empty; it is written whole or not at all.
        base: the base model's folder or name, where it has moved.
        dtype: the type of the merged weights ("bfloat16", …); the base's own by default.
        trust_remote_code: run code that comes with the base model or the tokenizer. What the checkpoint's own files say
            of it does not count.

    Returns:
        The folder.

    Raises:
        ConfigError: there is nothing to merge, the folder is taken, or the adapter and the base do not belong together.
    """
    from ragfit.models.adapter import find_adapter, merge_adapter
    from ragfit.models.tokenizer import load_tokenizer

    folder, out = find_path(checkpoint, "checkpoint"), user_path(out, "out")
    settings, (tree, set_aside) = _adapter(folder), believed(folder)
    keys = tree.get("model", {})
    given = "model.trust_remote_code" if trust_remote_code else ""
    named = [key for key in set_aside if key.startswith("model.") and key != given]
    warn(folder, named, "give --trust-remote-code if you trust its code")
    base = base or keys.get("model_name_or_path") or settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError("base", f"{folder} does not say which base model it belongs to", "Name it with --base.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("out", f"{out} exists and is not empty", "Name a new folder for the merged model.")
    earlier = find_adapter(keys["trained_adapter"]) if keys.get("trained_adapter") else None

    def refusal(reason: str) -> ConfigError:
        problem = f"the adapter in {folder} could not be merged into {base}: {reason}"
        fix = "Name the model that it was trained on with --base, or take the adapter from another copy."
        return ConfigError("checkpoint", problem, fix)

    with part_of(out) as part:
        model = _load_base(base, dtype, keys.get("revision"), trust_remote_code)
        if earlier:
            model = merge_adapter(model, earlier)
        merge_adapter(model, folder, refusal).save_pretrained(part)
        own_tokenizer = (folder / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(str(folder if own_tokenizer else base), keys.get("revision"), trust_remote_code)
        tokenizer.save_pretrained(part)
        for name in KEPT:
            if own := own_file(folder, name):
                shutil.copy(own, part / name)
        part.rename(out)
    return out


def _adapter(folder: Path) -> dict:
    """The adapter's settings, with a clear word where there is none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        if any(folder.glob("*.safetensors")):
            raise ConfigError("checkpoint", f"{folder} holds a whole model, not an adapter", "Load it as it is.")
        fix = "Name the folder checkpoint of a run's train.output_dir."
        raise ConfigError("checkpoint", f"{folder} holds no adapter (adapter_config.json)", fix)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fix = "Take the adapter from another copy."
        raise ConfigError("checkpoint", f"{path} is not JSON: {error}", fix) from error


def _load_base(base: str, dtype: str | None, revision: str | None, trust_remote_code: bool) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM

    from ragfit.draw.progress import weights_bar
    from ragfit.models.demo import model_folder
    from ragfit.models.hf import choose_dtype

    def refusal(error: Exception) -> ConfigError:
        code = "Give --trust-remote-code if you trust the code that comes with it."
        fix = code if "custom code" in str(error) else "Name its folder, or its name on the hub, with --base."
        return ConfigError("base", f"{base} could not be loaded: {first_line(error)}", fix)

    source = str(model_folder(base) if is_demo(base) else find_model(base, "base") or base)
    kind = choose_dtype(dtype) if dtype else "auto"
    remote = {"trust_remote_code": trust_remote_code, "revision": revision}
    with errors_as(refusal), weights_bar():
        if AutoConfig.from_pretrained(source, **remote).to_dict().get("quantization_config"):
            problem = f"{base} is stored quantized, and an adapter is not merged into quantized weights"
            raise ConfigError("base", problem, "Name the unquantized model with --base.")
        return AutoModelForCausalLM.from_pretrained(source, dtype=kind, **remote)
