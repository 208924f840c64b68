"""The model class that a configuration names, and what is asked of any model. Imports no torch by itself."""

import importlib
import inspect
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ragfit.config.load import resolved
from ragfit.errors import ConfigError, first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TARGET_KEY = "model._target_"


def load_model(cfg: DictConfig) -> Any:
    """Make the object that `model._target_` names from the other keys of `model`.

    Returns:
        An object with the attributes `model` and `tokenizer`, such as `ragfit.models.hf.HFTrain`.

    Raises:
        ConfigError: there is no such class, or it takes other keys.
        Exception: what the class itself raises.
    """
    # The keys go in as plain values, and no object is made of any of them.
    keys = resolved(cfg, "model")
    target = keys.pop("_target_")
    module, _, name = str(target).rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
        inspect.signature(make).bind(**keys)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        fix = "Name a class as package.module.Class that takes these keys; Python must find it (PYTHONPATH)."
        problem = f"{target} cannot be made from the keys of model: {first_line(error)}"
        raise ConfigError(TARGET_KEY, problem, fix) from error
    loaded = make(**keys)
    if not (hasattr(loaded, "model") and hasattr(loaded, "tokenizer")):
        fix = "A model class needs these two."
        raise ConfigError(TARGET_KEY, f"{target} has no attributes 'model' and 'tokenizer'", fix)
    return loaded


def base_of(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """A model without PEFT's wrapper."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_arguments(model: "PreTrainedModel | PeftModel") -> Container[str]:
    """The names of the arguments that a model's forward pass takes."""
    return inspect.signature(base_of(model).forward).parameters
