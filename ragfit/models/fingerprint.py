"""For the merge: h-models' module takes this one's place."""

from pathlib import Path
from typing import Any


def check(folder: Path, model: Any, what: str) -> None:
    """Nothing is compared on this branch."""
