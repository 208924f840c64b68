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


def load_model(cfg: DictConfig) -> Any:
    """The object that `model._target_` names, made from the other keys of `model` as plain values."""
    keys = resolved(cfg, "model")
    target = str(keys.pop("_target_"))
    module, _, name = target.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError, ValueError) as error:
        fix = "Name a class as package.module.Class; Python must find it (PYTHONPATH)."
        raise ConfigError("model._target_", f"there is no {target}: {first_line(error)}", fix) from error
    return make(**keys)


def base_of(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """A model without PEFT's wrapper."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_arguments(model: "PreTrainedModel | PeftModel") -> Container[str]:
    """The names of the arguments that a model's forward pass takes."""
    return inspect.signature(base_of(model).forward).parameters
