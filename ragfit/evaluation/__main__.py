"""`python -m ragfit.evaluation CHECKPOINT`: base against tuned on a checkpoint of an earlier run."""

import sys

from ragfit.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
