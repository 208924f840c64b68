"""A door to `ragfit.runs.merge`: `python -m ragfit.merge CHECKPOINT OUT`."""

from ragfit.runs.merge import main, merge_checkpoint  # noqa: F401

if __name__ == "__main__":
    main()
