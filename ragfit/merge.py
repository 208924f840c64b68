"""A door to `ragfit.runs.merge`: `python -m ragfit.merge CHECKPOINT OUT`."""

import sys

from ragfit.__main__ import main
from ragfit.runs.merge import merge_checkpoint  # noqa: F401

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
