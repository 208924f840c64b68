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

from ragfit.config.keys import get, is_hf_train, is_known, is_text, short_repr, unknown_key
from ragfit.errors import ConfigError
from ragfit.secrets import plain_secrets

_KEY = re.compile(r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z_][\w./-]*")  # which Hydra reads as text without quotes


def override(key: str, value: Any, environment: bool = False) -> str:
    """A Hydra override, `key=value`, that parses back to exactly this Python value.

    With `environment`, `${oc.env:NAME}` in it is followed, as in a YAML file.

    >>> override("model.completion_start", "<|assistant|>")
    "model.completion_start='<|assistant|>'"
    """

    def write(part: Any) -> str:
        if part is None or isinstance(part, bool):
            return {None: "null", True: "true", False: "false"}[part]
        if isinstance(part, int | float):
            return repr(part)
        if isinstance(part, str | os.PathLike):
            # OmegaConf would follow `${`.
            escaped = re.sub(r"(\\*)\$\{" + r"(?!oc\.env:)" * environment, r"\1\1\\${", os.fspath(part))
            return QuotedString(escaped, Quote.single).with_quotes()
        if isinstance(part, list | tuple):
            return f"[{','.join(map(write, part))}]"
        if isinstance(part, dict) and all(_KEY.fullmatch(str(name)) for name in part):
            return "{" + ",".join(f"{name}:{write(inner)}" for name, inner in part.items()) + "}"
        fix = "Give text, numbers, lists or mappings; other keys can stand in a YAML file."
        raise ConfigError(key, f"an override cannot express {short_repr(value, key)}", fix)

    return f"{key}={write(value)}"


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
    parsed = [_parse(text) for text in overrides]
    targets = [o.value() for _, o in parsed if o.key_or_group == "model._target_"]
    any_model = not is_hf_train((targets or [get(OmegaConf.to_container(cfg, resolve=False), "model._target_")])[-1])
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


def _parse(text: str) -> tuple[str, Override]:
    """An override as Hydra reads it; `key=<|assistant|>`, which its grammar refuses, with the value quoted."""
    parser = OverridesParser.create()
    try:
        return text, parser.parse_override(text)
    except (HydraException, ValueError) as error:  # a number of 5,000 digits is a ValueError
        match = re.fullmatch(r"(\+{0,2}[\w.]+)=(.*)", text, re.DOTALL)
        if match and (is_text(match[1].lstrip("+")) or match[2][:1] not in "'\"[{"):
            quoted = override(match[1], match[2])
            return quoted, parser.parse_override(quoted)
        shown = re.sub("=.*", "=…", text, flags=re.DOTALL)  # the value may be a secret under a misspelt key
        fix = "Write key=value, close brackets and quotes, and quote text: key='a, b'."
        raise ConfigError("", f"The override {shown!r} cannot be read: it is not in Hydra's grammar", fix) from error


def refuse_secrets(cfg: DictConfig, overrides: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for a secret as it is in a configuration or in overrides.

    Args:
        keeps: a clause that says what would keep it.
    """
    trees = [OmegaConf.to_container(cfg, resolve=False)]
    for text in overrides:
        parsed = _parse(text)[1]
        value = text.partition("=")[2] if parsed.is_sweep_override() else parsed.value()
        trees.append({parsed.key_or_group: value})
    for key in (key for tree in trees for key in plain_secrets(tree)):
        instead = "log in with hf auth login, or write ${oc.env:NAME} as the value and set NAME in the environment."
        raise ConfigError(key, f"{keeps}, and this is a secret", f"Remove it; {instead}")
