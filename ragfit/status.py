"""A door to `ragfit.runs.status`: `python -m ragfit.status OUTPUT_DIR`."""

from ragfit.runs.status import main, run_status  # noqa: F401

if __name__ == "__main__":
    main()
