"""A door to `ragfit.runs.status`: `python -m ragfit.status OUTPUT_DIR`."""

import sys

from ragfit.__main__ import main
from ragfit.runs.status import run_status  # noqa: F401

if __name__ == "__main__":
    main(["status", *sys.argv[1:]])
