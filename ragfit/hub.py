"""A door to `ragfit.runs.hub`: `python -m ragfit.hub CHECKPOINT ORG/NAME`."""

import sys

from ragfit.__main__ import main
from ragfit.runs.hub import push  # noqa: F401

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
