"""Files written whole or not at all."""

import os
from pathlib import Path

from ragfit.draw.progress import say


def sync(folder, deep=True):
    """Have the system write a folder to the disk: a rename must not outlive the files it names."""
    for path in [*(p for p in Path(folder).rglob("*") if deep), Path(folder)]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:  # some network file systems sync no folders
            if path.is_file():
                raise
        finally:
            os.close(descriptor)


def move_aside(folders, output):
    number = 1
    while (output / f"earlier.{number}").exists():
        number += 1
    aside = output / f"earlier.{number}"
    aside.mkdir()
    for path in folders:
        path.rename(aside / path.name)
    say(f"Kept {', '.join(sorted(path.name for path in folders))} of an earlier run in {aside}.")
    return aside
