"""Model classes that `model._target_` can name."""

import importlib


def __getattr__(name):
    if name == "hf":
        return importlib.import_module("ragfit.models.hf")
    raise AttributeError(f"module 'ragfit.models' has no attribute {name!r}")
