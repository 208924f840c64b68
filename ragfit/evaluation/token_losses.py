from ragfit.evaluation.losses import token_losses  # noqa: F401  for the merge: goes with ragfit/views/__init__.py
