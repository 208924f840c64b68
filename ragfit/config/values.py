"""For the merge: goes with data/rows.py."""

from ragfit.config.keys import short_repr  # noqa: F401
