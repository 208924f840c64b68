"""`python -m ragfit.runs FOLDER…`: a table of runs."""

import sys

from ragfit.__main__ import main

if __name__ == "__main__":
    main(["runs", *sys.argv[1:]])
