"""Names of earlier library versions, translated."""

import json
import re
from typing import Any

from ragfit.config.paths import find_existing
from ragfit.config.schema import HF_TRAIN, OTHER_TYPES, REMOVED, is_hf_train, parent_and_name, renamed
from ragfit.config.values import coerce, short_repr
from ragfit.errors import ConfigError
from ragfit.secrets import MASK, is_secret_name


def translate_names(tree: dict[str, Any], notes: dict[str, str]) -> bool:
    """Move renamed keys in place.

    Args:
        tree: a configuration as plain values, which is changed.
        notes: what became of each key is added here.

    Returns:
        Whether the model is this kit's `HFTrain`.
    """

    def note(key: str, old: Any, new: str) -> None:
        old = MASK if is_secret_name(key) else old
        plain = isinstance(old, str) and old.isprintable()
        notes[key] = f"{old if plain else json.dumps(old, default=str)} -> {new}"

    target = tree["model"].get("_target_") or HF_TRAIN
    if str(target).startswith("ragfoundry."):
        note("model._target_", target, target := target.replace("ragfoundry", "ragfit", 1))
    tree["model"] = {"_target_": target} | tree["model"] | {"_target_": target}
    quantization, class_name = parent_and_name(tree, key := "model.quantization_config._target_")
    if is_hf_train(target) and str(quantization.get(class_name)).endswith("BitsAndBytesConfig"):
        note(key, quantization.pop(class_name), "dropped, it is the class that is made of these keys")
    for key in ("instruction", "template"):
        value = tree.get(key)
        if isinstance(value, str) and re.match(r"(\./)?ragfoundry/", value) and not find_existing(value):
            tree[key] = value.replace("ragfoundry/", "ragfit/", 1)
            note(key, value, tree[key])
    names = renamed(tree["train"].get("packing"))
    for old in (*names, *sorted(REMOVED)):
        mapping, name = parent_and_name(tree, old)
        if (old.startswith("model.") and not is_hf_train(target)) or (value := mapping.pop(name, None)) is None:
            continue
        if old in REMOVED:
            note(old, value, "dropped, there is no such setting any more")
            continue
        moved, new = value, names[old]
        typed = coerce(old, value, OTHER_TYPES.get(old, Any))
        place, new_name = parent_and_name(tree, new)
        if old == "train.group_by_length":
            if not typed:
                note(old, value, "dropped, it is the default")
                continue
            moved = "group_by_length"
        if place.get(new_name) in (None, 0, moved):
            place[new_name] = moved
            note(old, value, new if moved == value else f"{new}: {moved}")
        elif new == "model.max_sequence_len":
            note(old, value, f"dropped, {new} is {place[new_name]}")
        else:
            problem = f"{short_repr(value, old)}, but {new}, its present name, is {short_repr(place[new_name], new)}"
            raise ConfigError(old, problem, f"Leave {old} empty.")
    train, report = tree["train"], tree["train"].get("report_to", "none")
    if report in (None, "", "none", [], ["none"]):
        train["report_to"] = "wandb" if coerce("use_wandb", tree.get("use_wandb")) else "none"
        if report != train["report_to"]:
            note("train.report_to", report, train["report_to"])
    return is_hf_train(target)
