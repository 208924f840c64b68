"""What must not leave the process with a configuration: tokens, passwords, and what the environment holds."""

import os
import re

from omegaconf import OmegaConf

from ragfit.keys import at
from ragfit.overrides import literal

MASK = "•••"
FROM_ENVIRONMENT = " -> what the environment holds"
# A key that holds a secret. `eos_token` and its like do not.
_NAME = re.compile(
    r"(?:.*[_.-])?(?:secret|password|passwd|passphrase|credentials?|authorization|(?:api|access|private|secret|account)_?key|"
    r"(?:hub|hf|api|auth|access|bearer|session|refresh|login|user|id|write|read|wandb|github|gitlab|service|security)_?tokens?)|tokens?",
    re.IGNORECASE,
)
_ENVIRONMENT_NAME = re.compile(r"(?i)token|secret|passw|credential|api_?key|access_?key|private_?key")
# Tokens as the services write them, and the user and password of an address.
_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}|"
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)


def is_secret_name(name):
    """Whether a key's last part says that its value is a secret."""
    return bool(_NAME.fullmatch(str(name)))


def holds_secret(key, value):
    """Whether a key and its value are a secret: a name such as `train.hub_token`, and a value that is no switch."""
    return is_secret_name(key) and value is not None and not isinstance(value, bool | int | float)


def plain_secrets(overrides):
    """The keys of Hydra overrides that give a secret as it is (`train.hub_token=hf_…`), not as `${oc.env:…}`."""
    given = (text.lstrip("+~").partition("=") for text in overrides)
    return [key for key, _, value in given if is_secret_name(key) and value not in ("", "null") and "${" not in value]


def mask(text, secrets=()):
    """A text without `secrets`, the environment's tokens and passwords, and what looks like a token of a known service."""
    known = (value for name, value in os.environ.items() if _ENVIRONMENT_NAME.search(name) and len(value) >= 8)
    for secret in sorted({*secrets, *known}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _TEXT.sub(MASK, text)


def masked(tree, secrets=()):
    """A tree of dicts and lists without secrets: keys that hold one are left out, and texts are as of `mask`."""
    if isinstance(tree, dict):
        return {key: masked(value, secrets) for key, value in tree.items() if not holds_secret(key, value)}
    if isinstance(tree, list | tuple):
        return [masked(value, secrets) for value in tree]
    return mask(tree, secrets) if isinstance(tree, str) else tree


def without_secrets(cfg):
    """A copy of the configuration that may leave the process, for tracker, checkpoint and hub.

    Keys that hold a secret (`train.hub_token`) are left out, and their values are masked wherever else they stand.
    What came from the environment stands there as `${oc.env:…}` again.
    """
    tree = OmegaConf.to_container(cfg, resolve=True)
    for key, text in from_environment(cfg).items():
        mapping, name = at(tree, key)
        if name in mapping and not is_secret_name(name):
            mapping[name] = text
    return OmegaConf.create(literal(masked(tree, _secrets(tree))))


def from_environment(cfg):
    """`{key: interpolation}` of the values that a finished configuration took from the environment."""
    notes = (cfg.get("translated") or {}).items()
    return {key: note.removesuffix(FROM_ENVIRONMENT) for key, note in notes if str(note).endswith(FROM_ENVIRONMENT)}


def environment_keys(leaves):
    """The keys whose values come from the environment, directly or through another key.

    Args:
        leaves: `{dotted key: value}` of a configuration that is not resolved.
    """
    texts = {key: re.sub(r"\\\$\{", "", str(value)) for key, value in leaves.items()}  # `\${` interpolates nothing
    texts = {key: text for key, text in texts.items() if "${" in text}
    found = {key for key, text in texts.items() if "oc.env" in text}
    before = 0
    while len(found) > before:
        before = len(found)
        found |= {key for key, text in texts.items() if _refers_to(text, found)}
    return {key: str(leaves[key]) for key in leaves if key in found}


def _refers_to(text, keys):
    """Whether a text interpolates one of the keys. Resolvers, relative and nested names are not followed: they may."""
    names = re.findall(r"\$\{\s*([A-Za-z_][\w.]*)\s*\}", text)
    if not keys or len(names) < text.count("${"):
        return bool(keys)
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for key in keys for name in names)


def _secrets(tree):
    """The values of the keys that hold secrets."""
    found = set()
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(tree, dict) and holds_secret(key, value):
            found |= {text for text in _texts(value) if len(text) >= 4}
        elif isinstance(value, dict | list):
            found |= _secrets(value)
    return found


def _texts(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
