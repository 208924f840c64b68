"""Overrides in Hydra's grammar: written from Python values, split, and put in order for Hydra."""

import ast
import contextlib
import os
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ragfit.config.keys import get, is_hf_train, is_known, is_text, unknown_key
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
            keys = {k: re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", k) if isinstance(k, str) else repr(k) for k in value}
            return "{" + ",".join(f"{keys[k]}:{write(v)}" for k, v in value.items()) + "}"
        if not isinstance(value, str):
            fix = "Use text, a number, a list or a mapping."
            raise ConfigError(key, f"an object of type {type(value).__name__} is not a value", fix)
        return QuotedString(value, Quote.single).with_quotes()

    text = f"{key}={write(literal(value, environment))}"
    with contextlib.suppress(HydraException):
        if "{" not in text or repr(_parse(text).value()) == repr(literal(value, environment)):
            return text
    raise ConfigError(key, f"Hydra's overrides cannot express a key of {value!r}", "Write it in a YAML file.")


def literal(tree: Any, environment: bool = False) -> Any:
    """Plain values with `${` escaped, which OmegaConf would follow; with `environment`, `${oc.env:` is left to it."""
    if isinstance(tree, dict):
        return {key: literal(value, environment) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literal(value, environment) for value in tree]
    if isinstance(tree, os.PathLike):
        return literal(os.fspath(tree), environment)
    return re.sub(r"(\\*)\$\{" + r"(?!oc\.env:)" * environment, r"\1\1\\${", tree) if isinstance(tree, str) else tree


def split_overrides(text: str | list[str] | tuple[str, ...] | None) -> list[str]:
    """Overrides given as a list, a list's text, or text with one or several of them.

    A new one begins after a space outside quotes and brackets; other spaces belong to a value.
    """
    given, start = text, r"(?:~|\+{0,2}[A-Za-z_][\w./@-]*=)"
    quoted = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[[^\]]*\]|\{[^}]*\}"
    if isinstance(text, str) and text.lstrip().startswith("["):
        with contextlib.suppress(SyntaxError, ValueError):
            text = ast.literal_eval(text.strip())
    if isinstance(text, str):
        text = re.findall(rf"{start}(?:{quoted}|(?!\s+{start}).)*|\S+", text, re.DOTALL)
    if not isinstance(text, list | tuple | None) or not all(isinstance(part, str) for part in text or ()):
        fix = "Write Hydra overrides as text: 'limit=10 train.max_steps=5'."
        raise ConfigError("overrides", f"{given!r} is not text", fix)
    return [part.strip() for part in text or () if part.strip()]


def normalize_overrides(overrides: Iterable[str], cfg: DictConfig) -> list[str]:
    """Overrides as Hydra takes them: known keys need no `+`, and what a text key is given is text.

    Args:
        overrides: Hydra overrides in any of its forms.
        cfg: the configuration they will be applied to, as composed without them (`read_config`).

    Raises:
        ConfigError: an override that cannot be read, or a key that does not exist, with the nearest real one.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    parsed = [_parse_text(text) for text in overrides]
    targets = [o.value() for _, o in parsed if o.key_or_group == "model._target_"]
    any_model = not is_hf_train((targets or [get(tree, "model._target_")])[-1])
    normal = []
    for text, o in parsed:
        key = o.key_or_group
        if o.package is not None or "/" in key or key.split(".")[0] == "hydra":
            normal.append(text)
            continue
        if not is_known(key, any_model):
            raise unknown_key(key).in_file("an override")
        if o.is_delete():  # empty is not set, and Hydra refuses to delete what a file does not have
            normal.append(f"++{key}=null")
            continue
        if is_text(key) and not isinstance(o.value(), str | None) and not o.is_sweep_override():
            name, _, raw = text.partition("=")
            text = override(name, raw.strip())  # [/INST] is a marker, not a list
        # Hydra would refuse to change a key that is not in the file.
        normal.append(f"++{text}" if o.type == OverrideType.CHANGE else text)
    return normal


def given_keys(overrides: Iterable[str]) -> set[str]:
    """The dotted keys that overrides set."""
    return {text.lstrip("+~").partition("=")[0] for text in overrides}


def _parse(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


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


def refuse_secrets(words: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for an override that gives a secret as it is; `keeps` is a clause that says what keeps it."""
    for word in words:
        key, _, value = word.lstrip("+~-").partition("=")
        with contextlib.suppress(ConfigError):
            parsed = _parse_text(word)[1]
            value = value if parsed.is_sweep_override() else parsed.value()
        refuse_plain(plain_secrets({key: value}), keeps)


def refuse_plain(keys: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for the first of the keys that hold a secret as it is."""
    for key in keys:
        instead = "log in with hf auth login, or write ${oc.env:NAME} as the value and set NAME in the environment."
        raise ConfigError(key, f"{keeps}, and this is a secret", f"Remove it; {instead}")
