"""What must not leave the process: values of keys that name a secret, and texts in the form of a known token."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

MASK = "•••"
# A key that holds a secret. `eos_token`, `pad_token` and their like do not.
_NAME = re.compile(
    r"(?i)token|(?:.*[_-])?(?:secret|passw(?:or)?d|passphrase|credentials?|(?:api|access|private|secret|account)[_-]?key"
    r"|(?:hub|hf|api|auth|access|bearer|session|user|write|read|wandb|github|gitlab|openai|secret)[_-]?tokens?)"
)
# Tokens as the services write them, and the user and password of an address: too odd to be a path or a name.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|sk_live_[A-Za-z0-9]{20,}|sk-(?=[A-Za-z]*\d)[A-Za-z0-9]{20,}"
    r"|sk-(?:proj|svcacct|admin|ant|or)-[\w-]{0,40}?(?=[A-Za-z]{0,15}\d)[A-Za-z0-9]{16}[\w-]*"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|AIza[\w-]{35}(?![\w-])|xox[a-z]-\d[\w-]{19,}|wandb_v\d_\w{30,}|eyJ[\w-]{8,1000}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    r"|(?<=://)[^/\s:@]*:[^/\s]+(?=@)"
)


def holds_secret(key: Any, value: Any) -> bool:
    """Whether a key's last part says that its value is a secret; a switch is none."""
    return bool(_NAME.fullmatch(str(key).rpartition(".")[2])) and value is not None and not isinstance(value, bool)


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
        return type(tree)(masked(value) for value in tree)
    return mask(tree) if isinstance(tree, str) else tree


def plain_secrets(tree: dict[str, Any]) -> Iterator[str]:
    """The dotted keys of a tree that give a secret as it is (`train.hub_token: hf_…`), not as `${oc.env:NAME}`."""
    for key, value in tree.items():
        plain = re.sub(r"\$\{[^${}]*\}", "", value) if isinstance(value, str) else value
        if isinstance(value, dict):
            yield from (f"{key}.{name}" for name in plain_secrets(value))
        elif plain and masked({key: plain}) != {key: plain}:
            yield key
