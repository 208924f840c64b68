"""`python -m ragfit.runs FOLDER…`: a table of runs."""

from ragfit.runs.table import main

if __name__ == "__main__":
    main()
