"""Values in the types of their keys, checked by pydantic."""

import contextlib
import difflib
import functools
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ragfit.config.schema import type_of
from ragfit.errors import ConfigError
from ragfit.secrets import MASK, is_secret_name


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def _fits(kind: Any, value: Any) -> bool:
    try:
        _adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def accepts(key: str, value: Any) -> bool:
    """Whether a value is of a key's type as it is."""
    return _fits(type_of(key, True) or Any, value)


def _numbers(value: float) -> Iterator[Any]:
    yield value
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    if value in (0, 1):
        yield bool(value)


def _readings(value: Any) -> Iterator[Any]:
    """What a value may mean, likeliest first: "1e-4" a number, "[a, b]" a list and "" nothing, where such are taken."""
    if isinstance(value, str):
        text = value.strip()
        if not value:
            yield None
        with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
            if text.lower() in ("true", "false") or text[:1] + text[-1:] in ("[]", "{}"):
                yield yaml.safe_load(text)
            else:
                yield from _numbers(int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text))
        yield value
        if text.lower() in ("", "null", "none"):
            yield None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _numbers(value)
        yield str(value)
    else:
        yield value


def coerce(key: str, value: Any, kind: Any = None) -> Any:
    """A value in the type of its key: the first of its readings that is of that type.

    Raises:
        ConfigError: there is none.
    """
    kind = kind or type_of(key, True) or Any
    for reading in _readings(value):
        if _fits(kind, reading):
            return reading
    choices, wanted = _takes(_adapter(kind).json_schema())
    near = difflib.get_close_matches(str(value)[:100], choices, 1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(key, f"{short_repr(value, key)} is not allowed", f"{meant}It takes {wanted}.")


def _takes(schema: dict[str, Any]) -> tuple[list[str], str]:
    """The choices that a JSON schema names, and all that it takes, in words."""
    if "anyOf" in schema:
        parts = [_takes(part) for part in schema["anyOf"]]
        return [choice for choices, _ in parts for choice in choices], " or ".join(words for _, words in parts)
    if choices := sorted(map(str, schema.get("enum", [schema["const"]] if "const" in schema else []))):
        return choices, f"one of {', '.join(choices)}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
             "array": "a list", "object": "keys and values", "null": "empty"}  # fmt: skip
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = "" if low is None else f" of at least {low}" if high is None else f" between {low} and {high}"
    inner = schema.get("items", {}).get("type")
    of = {"integer": " of whole numbers", "string": " of texts", "array": " of lists"}.get(inner, "")
    return [], f"{names[schema['type']]}{bounds}{of}"


def short_repr(value: Any, key: str = "") -> str:
    """A value in a message: one line of it, not all of a long one, and nothing of a secret."""
    text = MASK if is_secret_name(key) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text):,} characters)"
