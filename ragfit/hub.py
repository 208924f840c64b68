"""A door to `ragfit.runs.hub`: `python -m ragfit.hub CHECKPOINT ORG/NAME`."""

from ragfit.runs.hub import main, push  # noqa: F401

if __name__ == "__main__":
    main()
