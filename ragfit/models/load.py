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


def weights_digest(model: "PreTrainedModel | PeftModel") -> str:
    """A digest of a model's weights and of its active adapter's: the same for the same weights in another process.

    Of each tensor at most 4,096 values are taken, spread evenly, so that it takes no time whatever the model's size: a
    step of training changes nearly all values.
    """
    import torch
    import xxhash
    from peft import PeftModel, get_peft_model_state_dict

    weights = dict(base_of(model).named_parameters())
    if isinstance(model, PeftModel):
        weights = {name: one for name, one in weights.items() if not model.peft_config.keys() & set(name.split("."))}
        weights |= get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    digest = xxhash.xxh3_128()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        if not weight.is_meta:  # offloaded to a disk
            some = weight.detach().flatten()[:: -(-weight.numel() // 4096) or 1]
            digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
