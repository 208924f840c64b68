"""Files written whole or not at all."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ragfit.draw.progress import say


def write_whole(path: str | os.PathLike, text: str | bytes) -> None:
    """Write a file, and its folder: whoever reads it finds the old text or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace"))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def part_of(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to write into and then to rename to it; what was not renamed is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.part-", dir=target.parent) as place:
        part = Path(place, target.name)  # with the rights of any new folder; `place` is the owner's alone
        part.mkdir()
        yield part


def next_free(folder: Path, name: str) -> Path:
    """`folder/name.1`, or the first of `name.2`, `name.3`, … that is not there."""
    return next(path for number in itertools.count(1) if not (path := folder / f"{name}.{number}").exists())


def sync(folder: str | os.PathLike, deep: bool = True) -> None:
    """Have the system write a folder, with all in it or its names alone: a rename must not outlive what it names."""
    for path in [*(Path(folder).rglob("*") if deep else ()), Path(folder)]:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError if path.is_dir() else ()):  # some network file systems sync no folders
            os.fsync(descriptor)
        os.close(descriptor)


def move_aside(folders: Sequence[Path], output: Path) -> None:
    """Move what an earlier run left into a new folder `earlier.N` of the output folder."""
    aside = next_free(output, "earlier")
    aside.mkdir()
    for path in folders:
        path.rename(aside / path.name)
    say(f"Kept {', '.join(sorted(path.name for path in folders))} of an earlier run in {aside}.")
