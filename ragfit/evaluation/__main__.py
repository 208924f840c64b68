"""`python -m ragfit.evaluation CHECKPOINT`: base against tuned on a checkpoint of an earlier run."""

from ragfit.training.reload import main

if __name__ == "__main__":
    main()
