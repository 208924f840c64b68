"""The model class that a configuration names."""

import importlib

from ragfit.errors import ConfigError, RagfitError, first_line


def load_model(cfg):
    """Make the object that `model._target_` names from the other keys of `model`.

    Returns:
        an object with the attributes `model` and `tokenizer`, such as `ragfit.models.hf.HFTrain`.
    """
    from omegaconf import OmegaConf

    # The keys go in as plain values, and no object is made of any of them.
    keys = OmegaConf.to_container(cfg.model, resolve=True)
    target = keys.pop("_target_")
    make = _class(target)
    try:
        loaded = make(**keys)
    except RagfitError:
        raise
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model._target_: {target} could not be made from the keys of model: {first_line(error)}. "
            "Check the class's name and the keys it takes."
        ) from error
    for attribute in ("model", "tokenizer"):
        if not hasattr(loaded, attribute):
            raise ConfigError(
                f"model._target_: {cfg.model._target_} has no attribute {attribute!r}. A model class needs model and tokenizer."
            )
    return loaded


def _class(target):
    """The class of a dotted name. (Hydra's `get_class` logs its own error, in several lines.)"""
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises while it is imported
        raise ConfigError(
            f"model._target_: {target} cannot be imported: {first_line(error)}. Name a class as package.module.Class; "
            "its package must be installed, or lie where Python looks (PYTHONPATH)."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(
            f"model._target_: {target} is no class. Name a class with the attributes model and tokenizer."
        )
    return found
