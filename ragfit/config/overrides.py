"""Overrides of a configuration in Hydra's grammar: written from Python values, and put in order for Hydra."""

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ragfit.config.schema import RENAMED, annotation_of, get, is_hf_train, kinds, known_keys, unknown_key
from ragfit.errors import ConfigError
from ragfit.secrets import plain_secrets


def override(key, value, environment=False) -> str:
    """A Hydra override, `key=value`, that parses back to exactly this Python value.

    With `environment`, `${oc.env:NAME}` in it is followed, as in a YAML file.

    >>> override("model.completion_start", "<|assistant|>")
    "model.completion_start='<|assistant|>'"
    """

    def write(value):
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, int | float):
            return repr(value)
        if isinstance(value, list | tuple):
            return f"[{','.join(map(write, value))}]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{_escaped_key(k)}:{write(v)}" for k, v in value.items()) + "}"
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise ConfigError(f"{key}: a {type(value).__name__} is no value. Use text, a number, a list or a mapping.")
        if value == "???":
            raise ConfigError(f"{key}: '???' means a missing value to Hydra. Give the value.")
        return QuotedString(literal(value, environment), Quote.single).with_quotes()

    text = f"{key}={write(value)}"
    if "{" in text and not _keys_survive(text, value):
        raise ConfigError(f"{key}: Hydra's overrides cannot express a key of {value!r}. Write it in a YAML file.")
    return text


def _escaped_key(key):
    return re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", key) if isinstance(key, str) else repr(key)


def _keys_survive(text, value):
    def keys(tree):
        if isinstance(tree, dict):
            return [(type(k), k, keys(v)) for k, v in tree.items()]
        return [keys(v) for v in tree] if isinstance(tree, list | tuple) else None

    try:
        return keys(_parse(text).value()) == keys(value)
    except HydraException:
        return False


def literal(tree, environment=False):
    """`tree` with `${` escaped, so that OmegaConf does not read it as an interpolation; with `environment` but for `${oc.env:`."""
    if isinstance(tree, dict):
        return {key: literal(value, environment) for key, value in tree.items()}
    if isinstance(tree, list):
        return [literal(value, environment) for value in tree]
    return re.sub(r"(\\*)\$\{" + r"(?!oc\.env:)" * environment, r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _parse(text) -> Override:
    return OverridesParser.create().parse_override(text)


def refuse_secrets(words, keeps):
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
        except HydraException:
            key, _, *values = word.lstrip("+~-").partition("=")
        refuse_plain(plain_secrets([{key: value} for value in values]), keeps)


def refuse_plain(keys, keeps):
    """Raise a ConfigError for the first of the keys that hold a secret as it is."""
    for key in keys:
        raise ConfigError(
            f"{key}: {keeps}, and this is a secret. Remove it; log in with hf auth login, "
            f"or write ${{oc.env:NAME}} as the value and set NAME in the environment."
        )


def _quoted(text, error):
    """`key=<|assistant|>` with its value quoted, which Hydra's grammar refuses as it stands."""
    match = re.fullmatch(r"(\+{0,2}[\w.]+)=(.*)", text, re.DOTALL)
    pure_text = match and kinds(annotation_of(match[1].lstrip("+")) or "Any") <= {"str", "null"}
    if match and (pure_text or match[2][:1] not in "'\"[{"):
        return override(match[1], match[2])
    raise ConfigError(
        f"The override {_without_value(text)!r} cannot be read: it is not in Hydra's grammar. "
        "Write key=value, close brackets and quotes, and quote text: key='a, b'."
    ) from error


def _without_value(text):
    """An override in a message: the value may be a secret under a misspelt key."""
    return re.sub("=.*", "=…", text, flags=re.DOTALL)


def normalize_overrides(overrides, cfg) -> list[str]:
    """Overrides as Hydra takes them: known keys need no `+`, names of earlier versions work, others are errors.

    Args:
        overrides: Hydra overrides in any of its forms.
        cfg: the configuration they will be applied to, as composed without them (`read_config`).

    Raises:
        ConfigError: an override that cannot be read, or a key that does not exist, with the nearest real one.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    parsed = []
    for text in overrides:
        try:
            parsed.append((text, _parse(text)))
        except HydraException as error:
            parsed.append((quoted := _quoted(text, error), _parse(quoted)))
    targets = {o.key_or_group: o.value() for _, o in parsed if o.key_or_group == "model._target_"}
    any_model = not is_hf_train(targets.get("model._target_", get(tree, "model._target_")))
    found, given = [], set()
    for text, o in parsed:
        key = o.key_or_group
        if o.package is not None or "/" in key or key.split(".")[0] == "hydra":
            found.append(text)
            continue
        annotation = annotation_of(key, any_model)
        if annotation is None:
            raise ConfigError(f"The override {_without_value(text)!r} names an unknown key, {key}. {unknown_key(key)}")
        group = {k for k in (*RENAMED, *RENAMED.values()) if RENAMED.get(k, k) == RENAMED.get(key, key)} - {key}
        siblings = sorted(k for k in group if k in given or get(tree, k) is not None)
        if not o.is_delete():
            raw = text.partition("=")[2]
            if kinds(annotation) <= {"str", "null"} and not isinstance(o.value(), str | None):
                if not o.is_sweep_override():
                    text = override(text.partition("=")[0], raw.strip())  # [/INST] is a marker, not a list
            # Hydra, which sees neither a key that is not in the file nor one with dots, adds or changes it so.
            text = f"++{text}" if o.type == OverrideType.CHANGE else text
            found += [f"++{k}=null" for k in siblings] + [text]
        elif key in known_keys():  # empty is not set, and Hydra refuses to delete what is null
            found += [f"++{k}=null" for k in (*siblings, key)]
        elif key in given or get(tree, key) is not None:
            found.append(text)
        given.add(key)
    return found
