"""The run: from prepared rows and a model to a trained adapter."""

import ragfit.before_torch  # noqa: F401  (whichever module of this room is imported first)
