"""Overrides of a configuration in Hydra's grammar: written from Python values, and put in order for Hydra."""

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ragfit.config.schema import get, is_hf_train, is_text, known_keys, renamed, type_of, unknown_key
from ragfit.errors import ConfigError
from ragfit.secrets import plain_secrets


def override(key: str, value: Any, environment: bool = False) -> str:
    """A Hydra override, `key=value`, that parses back to exactly this Python value.

    With `environment`, `${oc.env:NAME}` in it is followed, as in a YAML file.

    >>> override("model.completion_start", "<|assistant|>")
    "model.completion_start='<|assistant|>'"
    """

    def write(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, int | float):
            return repr(value)
        if isinstance(value, list):
            return f"[{','.join(map(write, value))}]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{_escaped_key(k)}:{write(v)}" for k, v in value.items()) + "}"
        if not isinstance(value, str):
            fix = "Use text, a number, a list or a mapping."
            raise ConfigError(key, f"an object of type {type(value).__name__} is not a value", fix)
        if value == "???":
            raise ConfigError(key, "'???' means a missing value to Hydra", "Give the value.")
        return QuotedString(value, Quote.single).with_quotes()

    value = literal(value, environment)
    text = f"{key}={write(value)}"
    with contextlib.suppress(HydraException):
        if "{" not in text or repr(_parse(text).value()) == repr(value):
            return text
    raise ConfigError(key, f"Hydra's overrides cannot express a key of {value!r}", "Write it in a YAML file.")


def _escaped_key(key: Any) -> str:
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", key) if isinstance(key, str) else repr(key)


def literal(tree: Any, environment: bool = False) -> Any:
    """Plain values with `${` escaped, which OmegaConf would follow; with `environment`, `${oc.env:` is left to it."""
    if isinstance(tree, dict):
        return {key: literal(value, environment) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literal(value, environment) for value in tree]
    if isinstance(tree, os.PathLike):
        return literal(os.fspath(tree), environment)
    return re.sub(r"(\\*)\$\{" + r"(?!oc\.env:)" * environment, r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _parse(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def refuse_secrets(words: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for an override that gives a secret as it is, in any of Hydra's forms and at any depth.

    Args:
        words: overrides, or all words of a command line.
        keeps: a clause that says what keeps them.
    """
    for word in words:
        try:
            given = _parse(word)
            key, values = given.key_or_group, [given.value()]
            if given.is_choice_sweep():
                values = [_parse(f"{key}={value}").value() for value in given.sweep_string_iterator()]
        except (HydraException, ValueError):
            key, _, *values = word.lstrip("+~-").partition("=")
        refuse_plain(plain_secrets([{key: value} for value in values]), keeps)


def refuse_plain(keys: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for the first of the keys that hold a secret as it is."""
    for key in keys:
        instead = "log in with hf auth login, or write ${oc.env:NAME} as the value and set NAME in the environment."
        raise ConfigError(key, f"{keeps}, and this is a secret", f"Remove it; {instead}")


def _parse_text(text: str) -> tuple[str, Override]:
    """An override as Hydra reads it; `key=<|assistant|>`, which its grammar refuses, with the value quoted."""
    try:
        return text, _parse(text)
    except (HydraException, ValueError) as error:  # a number of 5,000 digits is a ValueError
        match = re.fullmatch(r"(\+{0,2}[\w.]+)=(.*)", text, re.DOTALL)
        if match and (is_text(match[1].lstrip("+")) or match[2][:1] not in "'\"[{"):
            quoted = override(match[1], match[2])
            return quoted, _parse(quoted)
        shown = re.sub("=.*", "=…", text, flags=re.DOTALL)  # the value may be a secret under a misspelt key
        fix = "Write key=value, close brackets and quotes, and quote text: key='a, b'."
        raise ConfigError("", f"The override {shown!r} cannot be read: it is not in Hydra's grammar", fix) from error


def normalize_overrides(overrides: Iterable[str], cfg: DictConfig) -> list[str]:
    """Overrides as Hydra takes them: known keys need no `+`, names of earlier versions work, others are errors.

    Args:
        overrides: Hydra overrides in any of its forms.
        cfg: the configuration they will be applied to, as composed without them (`read_config`).

    Raises:
        ConfigError: an override that cannot be read, or a key that does not exist, with the nearest real one.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    parsed = [_parse_text(text) for text in overrides]
    values = {o.key_or_group: o.value() for _, o in parsed}
    target = values.get("model._target_", get(tree, "model._target_"))
    names = renamed(values.get("train.packing", get(tree, "train.packing")))
    normal, given = [], set()
    for text, o in parsed:
        key = o.key_or_group
        if o.package is not None or "/" in key or key.split(".")[0] == "hydra":
            normal.append(text)
            continue
        if type_of(key, not is_hf_train(target)) is None:
            raise unknown_key(key).in_file("an override")
        # The key's other names, which must not say otherwise.
        group = {k for k in (*names, *names.values()) if names.get(k, k) == names.get(key, key)} - {key}
        siblings = sorted(k for k in group if k in given or get(tree, k) is not None)
        if not o.is_delete():
            if is_text(key) and not isinstance(o.value(), str | None) and not o.is_sweep_override():
                name, _, raw = text.partition("=")
                text = override(name, raw.strip())  # [/INST] is a marker, not a list
            # Hydra would refuse to change a key that is not in the file.
            text = f"++{text}" if o.type == OverrideType.CHANGE else text
            normal += [f"++{k}=null" for k in siblings] + [text]
        elif key in known_keys():  # empty is not set, and Hydra refuses to delete what is null
            normal += [f"++{k}=null" for k in (*siblings, key)]
        elif key in given or get(tree, key) is not None:
            normal.append(text)
        given.add(key)
    return normal
