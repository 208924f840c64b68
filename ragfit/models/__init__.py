"""Model classes that `model._target_` can name."""

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name == "hf":  # imported when it is first used, since it brings torch's settings and later torch with it
        return importlib.import_module("ragfit.models.hf")
    raise AttributeError(f"module 'ragfit.models' has no attribute {name!r}")
