"""Files written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ragfit.draw.progress import say


def write_whole(path: str | os.PathLike, text: str | bytes) -> None:
    """Write a file, and its folder: whoever reads it finds the old text or the new one, never half of it.

    Text is written as UTF-8, half characters as escapes. Where it cannot be written (OSError), what was there stays.
    """
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
    """A new folder beside `target`, to write into and then to rename to it; what was not renamed is removed.

    What a killed process leaves of it is `TARGET.part-…`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.part-", dir=target.parent) as place:
        part = Path(place, target.name)  # with the rights of any new folder; `place` is the owner's alone
        part.mkdir()
        yield part


def next_free(folder: Path, name: str) -> Path:
    """`folder/name.1`, or the first of `name.2`, `name.3`, … that is not there."""
    number = 1
    while (folder / f"{name}.{number}").exists():
        number += 1
    return folder / f"{name}.{number}"


def sync(folder: str | os.PathLike, deep: bool = True) -> None:
    """Have the system write a folder to the disk: a rename must not outlive the files it names.

    Args:
        deep: with all that is in it; else the folder's list of names alone.
    """
    for path in [*(p for p in Path(folder).rglob("*") if deep), Path(folder)]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:  # some network file systems sync no folders
            if path.is_file():
                raise
        finally:
            os.close(descriptor)


def move_aside(folders: Sequence[Path], output: Path) -> Path:
    """Move what an earlier run left into a new folder `earlier.N` of the output folder, which is returned."""
    aside = next_free(output, "earlier")
    aside.mkdir()
    for path in folders:
        path.rename(aside / path.name)
    say(f"Kept {', '.join(sorted(path.name for path in folders))} of an earlier run in {aside}.")
    return aside
