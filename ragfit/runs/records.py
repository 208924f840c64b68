"""The small files that a run leaves in its output folder: their names, and how they are read.

Anybody may have written them: a pipe or a huge file is not read, and a value that is not of its kind is left out.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONFIG, STATUS, LOG, EVALUATION = "ragfit.yaml", "status.json", "trainer_state.json", "evaluation.json"
GROUNDING = "grounding.json"
# What an evaluation measures, with its name and what it is: the fields of `ragfit.evaluation.metrics.Scores`.
METRICS = {
    "exact_match": ("exact match", "the answer is an expected one"),
    "f1": ("token F1", "tokens shared with the expected answer that fits best"),
    "recall": ("answer recall", "the share of short answers found in the answer"),
    "citations": ("same citations", "it cites the documents that the expected answer cites"),
}
# The same of one whose expected answers are labels.
OF_LABELS = {
    "accuracy": ("accuracy", "the answer is the expected label, or begins with it"),
    "macro_f1": ("macro F1", "the mean over the labels of each one's F1"),
}
LARGEST = 2**26  # bytes of a file that a run may have written


def now() -> str:
    """The time as it is written into these files."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(path: Path, shape: dict) -> dict[str, Any]:
    """The object in a JSON file as `fitting` leaves it; {} where there is none that can be read."""
    return _parsed(_read(path), shape)


def read_rows(path: Path, shape: dict) -> list[dict[str, Any]]:
    """The objects in a JSONL file as `fitting` leaves them, without lines that can't be read."""
    return [row for line in _read(path).splitlines() if (row := _parsed(line, shape))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST else b""
    except OSError:
        return b""


def _parsed(text: bytes, shape: dict) -> dict[str, Any]:
    try:
        return fitting(json.loads(text), shape) or {}
    except (ValueError, RecursionError):
        return {}


def fitting(value: Any, shape: Any) -> Any:
    """A value that was read, where it has the shape that is expected, else None.

    Args:
        shape: a type (`float` takes whole numbers too, `datetime` a time as ISO text with its zone), a list of one
            shape for lists of such values, or `{key: shape}` for objects; their other keys and values are left out.
    """
    if isinstance(shape, dict):
        parts = {key: fitting(value.get(key), kind) for key, kind in shape.items()} if isinstance(value, dict) else {}
        return {key: part for key, part in parts.items() if part is not None} or None
    if isinstance(shape, list):
        parts = [fitting(part, shape[0]) for part in value] if isinstance(value, list) else []
        return [part for part in parts if part is not None]
    if shape is datetime:
        try:
            return value if datetime.fromisoformat(value).tzinfo else None
        except (TypeError, ValueError):
            return None
    if shape is bool:
        return value if isinstance(value, bool) else None
    if shape is str:
        return printable(value) if isinstance(value, str) else None
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value if whole or isinstance(value, float) and shape is float else None


def printable(text: str) -> str:
    """A text that can be printed and kept, whatever bytes a file or a folder's name had."""
    return text.encode("utf-8", "backslashreplace").decode()
