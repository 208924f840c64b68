"""What must not leave the process: a value whose key says that it is secret, and a text in a known token's form."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

MASK = "•••"
# A key that holds a secret. `eos_token` and its like do not.
_NAME = re.compile(
    r"(?:.*[_-])?(?:secret|passw(?:or)?d|passphrase|credentials?|authorization|(?:api|access|private|secret|account)[_-]?key|"
    r"(?:hub|hf|api|auth|access|bearer|session|refresh|login|user|id|write|read|wandb|github|gitlab|slack|openai|oauth|service|security|secret|private|client)[_-]?tokens?)|token",
    re.IGNORECASE,
)
# Tokens as the services write them, and the user and password of an address. Each is too odd to be a path or a name.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{30,}"
    r"|sk-(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}|sk-(?:proj|svcacct|admin|ant|or)-[\w-]{0,40}?(?=[A-Za-z]{0,15}\d)[A-Za-z0-9]{16}[\w-]*|sk_live_[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])|AIza[\w-]{35}(?![\w-])"
    r"|xox[a-z]-\d[\w-]{19,}|wandb_v\d_\w{30,}|eyJ[\w-]{8,1000}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    r"|(?<=://)[^/\s:@]*:[^/\s]+(?=@)"
)
# `${oc.env:NAME}`, with no default or an empty one, and `${another.key}`; what another resolver is given is a value.
_REFERENCE = re.compile(r"""\$\{\s*(?:oc\.env:[^{},:]*(?:,\s*(?:null|''|"")?\s*)?|[\w.]+)\s*\}""")


def is_secret_name(key: Any) -> bool:
    """Whether a key's last part says that its value is a secret."""
    return bool(_NAME.fullmatch(str(key).rpartition(".")[2]))


def holds_secret(key: Any, value: Any) -> bool:
    """Whether a key and its value are a secret: a name like `train.hub_token`, and neither a switch nor a count."""
    count = isinstance(value, bool) or isinstance(value, int | float) and str(key).lower().endswith(("token", "tokens"))
    return is_secret_name(key) and value is not None and not count


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """A text without `secrets` and without what has the form of a known token."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _TOKEN.sub(MASK, text)


def masked(tree: Any) -> Any:
    """A tree of dicts and lists without secrets: keys that hold one are left out, and texts are as of `mask`."""
    if isinstance(tree, dict):
        return {key: masked(value) for key, value in tree.items() if not holds_secret(key, value)}
    if isinstance(tree, list | tuple):
        return [masked(value) for value in tree]
    return mask(tree) if isinstance(tree, str) else tree


def plain_secrets(tree: Any, key: str = "", secret: bool = False) -> Iterator[str]:
    """The dotted keys of a tree that give a secret as it is (`train.hub_token: hf_…`), not as `${oc.env:NAME}`."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            hidden = secret or any(holds_secret(part, value) for part in str(name).split("."))
            yield from plain_secrets(value, f"{key}.{name}".lstrip("."), hidden)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from plain_secrets(value, key, secret)
    elif isinstance(tree, str) and not secret and isinstance(inner := _inner(tree), dict | list):
        yield from plain_secrets(inner, key)
    elif _TOKEN.search(str(tree)) or secret and tree not in (None, "", "???") and not _REFERENCE.fullmatch(str(tree)):
        yield key


def _inner(text: str) -> Any:
    """What a text says that is read as keys and values, or as a list, where one is expected: `'{api_key: …}'`."""
    if text.strip()[:1] not in ("{", "["):
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
