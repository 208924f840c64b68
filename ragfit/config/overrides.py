"""Overrides in Hydra's grammar: written from Python values, split, and put in order for Hydra."""

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ragfit.config.keys import RENAMED, is_text, short_repr
from ragfit.errors import ConfigError
from ragfit.secrets import plain_secrets


def override(key: str, value: Any) -> str:
    """A Hydra override, `key=value`, that parses back to this Python value; `${oc.env:NAME}` in it is followed."""

    def write(part: Any) -> str:
        if part is None or isinstance(part, bool | int | float):
            return "null" if part is None else repr(part).lower()
        if isinstance(part, str | os.PathLike):
            escaped = re.sub(r"(\\*)\$\{(?!oc\.env:)", r"\1\1\\${", os.fspath(part))  # OmegaConf would follow it
            return QuotedString(escaped, Quote.single).with_quotes()
        if isinstance(part, list | tuple):
            return f"[{','.join(map(write, part))}]"
        word = r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z_][\w./-]*"  # which Hydra reads as text without quotes
        if isinstance(part, dict) and all(re.fullmatch(word, str(name)) for name in part):
            return "{" + ",".join(f"{name}:{write(inner)}" for name, inner in part.items()) + "}"
        raise ConfigError(key, f"an override cannot express {short_repr(value, key)}", "Write it into a YAML file.")

    return f"{key}={write(value)}"


def split_overrides(text: str | Iterable[str] | None) -> list[str]:
    """Overrides as a list, of a list, or of text in which each begins after a space outside quotes."""
    begin, quoted = r"(?:~|\+{0,2}[A-Za-z_][\w./@-]*=)", r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[[^\]]*\]|\{[^}]*\}"
    if isinstance(text, str):
        text = re.findall(rf"{begin}(?:{quoted}|(?!\s+{begin}).)*|\S+", text, re.DOTALL)
    return [part.strip() for part in text or () if part.strip()]


def normalize_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides as Hydra takes them: with today's keys, and `++`, since it adds no key that the file does not have."""
    normal = []
    for one in map(_read, overrides):
        key, value = one.key_or_group, "null" if one.is_delete() else one.input_line.partition("=")[2]
        of_hydra = one.package is not None or "/" in key or key.split(".")[0] == "hydra"
        normal.append(one.input_line if of_hydra else f"++{RENAMED.get(key, key)}={value}")
    return normal


def given_keys(overrides: Iterable[str]) -> set[str]:
    """The dotted keys that overrides set, by today's names."""
    return {RENAMED.get(name, name) for name in (text.lstrip("+~").partition("=")[0] for text in overrides)}


def _read(text: str) -> Override:
    """An override as Hydra reads it; a key that takes text gets text, also where Hydra reads a list or nothing."""
    parser, (name, _, raw) = OverridesParser.create(), text.partition("=")
    with contextlib.suppress(HydraException, ValueError):
        read = parser.parse_override(text)
        if not is_text(name.lstrip("+")) or isinstance(read.value(), str | None) or read.is_sweep_override():
            return read
    if is_text(name.lstrip("+")):
        return parser.parse_override(override(name, raw))
    problem = f"the override '{name}=…' is not in Hydra's grammar"  # without its value, which may be a secret
    raise ConfigError(name, problem, "Write key=value, close brackets and quotes, and quote text: key='a, b'.")


def refuse_secrets(cfg: DictConfig, overrides: Iterable[str], keeps: str) -> None:
    """Raise a ConfigError for a secret in a configuration or in overrides; `keeps` says what would keep it."""
    parsed = [_read(text) for text in overrides]
    values = {one.key_or_group: one.input_line if one.is_sweep_override() else one.value() for one in parsed}
    for key in (*plain_secrets(OmegaConf.to_container(cfg, resolve=False)), *plain_secrets(values)):
        fix = "Remove it; log in with hf auth login, or write ${oc.env:NAME} and set NAME in the environment."
        raise ConfigError(key, f"{keeps}, and this is a secret", fix)
