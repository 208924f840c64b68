"""PEFT adapters: what is checked of a new one before the weights are read, and how a trained one is put on a model."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from ragfit.config.paths import check_reachable, find_model
from ragfit.errors import ConfigError, first_line, whole_text
from ragfit.models.refusal import errors_as

# Initializations of LoRA's weights that compute with the model's own.
COMPUTED = ("pissa", "olora", "corda", "eva", "loftq", "orthogonal", "lora_ga")


# A new adapter.


def check_lora(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> None:
    """Try LoRA's keys on a model without weights (`ragfit.models.hf.skeleton`).

    Args:
        lora: keyword arguments of `peft.LoraConfig`; None where all weights are trained.

    Raises:
        ConfigError: PEFT refuses a key, or a name matches no module, which PEFT ignores as long as another one does.
    """
    if lora is None:
        return
    names = [name for name, _ in model.named_modules()]
    with errors_as(no_lora):
        if missing := _unmatched(lora.get("target_modules"), names):
            raise ConfigError(
                "model.lora.target_modules",
                f"{missing} matches no layer of this model",
                f"Its linear layers are {', '.join(linear_layers(model))}.",
            )
        if missing := _unmatched(lora.get("modules_to_save"), names):
            own = (name for name, module in model.named_modules() if list(module.parameters(recurse=False)))
            raise ConfigError(
                "model.lora.modules_to_save",
                f"{missing} matches no module of this model",
                f"Its modules with weights are {', '.join(_last_parts(own))}.",
            )
        if str(lora.get("init_lora_weights")).lower().startswith(COMPUTED):
            lora = {**lora, "init_lora_weights": True}  # there are no weights to compute with
        with torch.random.fork_rng(devices=[]):  # the adapter that is trained draws what it would have drawn
            new_adapter(model, lora, low_cpu_mem_usage=True)


def new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None, **kwargs) -> torch.nn.Module:
    """Put a new adapter on a model: the one place that names its kind.

    Args:
        lora: keyword arguments of `peft.LoraConfig`; None leaves the model as it is.
        kwargs: of `peft.get_peft_model`.
    """
    return model if lora is None else get_peft_model(model, LoraConfig(**lora), **kwargs)


def no_lora(error: Exception) -> ConfigError:
    return ConfigError("model.lora", f"PEFT refuses these keys: {whole_text(error)}", "Change the key it names.")


def linear_layers(model: torch.nn.Module) -> list[str]:
    """The last parts of the names of the model's linear layers, in order of appearance."""
    return _last_parts(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))


def _unmatched(wanted: str | list | None, names: list[str]) -> str:
    """Those of `wanted` that match no module's name: a regular expression, or names in full or from a dot on."""
    if not wanted or wanted == "all-linear":
        return ""
    if isinstance(wanted, str):
        return "" if any(re.fullmatch(wanted, name) for name in names) else repr(wanted)
    ends = tuple(f".{name}" for name in names)
    return ", ".join(repr(part) for part in wanted if not any(end.endswith(f".{part}") for end in ends))


def _last_parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


# A trained adapter.


def find_adapter(adapter: str) -> str:
    """The folder or hub name of `model.trained_adapter`, once its `adapter_config.json` was read.

    Raises:
        ConfigError: there is none, or PEFT does not know it.
    """
    source = str(find_model(adapter, "model.trained_adapter") or adapter)
    if not Path(source).is_dir():
        check_reachable(source, "model.trained_adapter")
    _config(source, lambda reason: _not_usable(adapter, reason))
    return source


def _config(source: str | Path, refusal: Callable[[str], ConfigError]) -> PeftConfig:
    """What an adapter says of itself, where it is of a kind and has files that can be put on a model."""
    with errors_as(lambda error: refusal(whole_text(error)[:300])):
        config = PeftConfig.from_pretrained(str(source))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise refusal(f"it is of the kind {config.peft_type.value}, which changes no weights")
    if config.peft_type in ("XLORA", "SHADOW"):  # a stranger's adapter would have other folders read, or fetched
        raise refusal(f"it is of the kind {config.peft_type.value}, whose settings name other models")
    if Path(source).is_dir() and not any(Path(source).glob("adapter_model.*")):  # PEFT would ask the hub
        raise refusal("it has no adapter_model.safetensors")
    return config


def merge_adapter(
    model: torch.nn.Module, source: str | Path, refusal: Callable[[str], ConfigError] | None = None
) -> torch.nn.Module:
    """Merge a trained adapter into its base model.

    Args:
        model: a `transformers` model.
        source: the adapter's folder or hub name.
        refusal: as in `load_adapter`; by default it names `model.trained_adapter`.

    Returns:
        The model with changed weights, and without an adapter.

    Raises:
        ConfigError: as `load_adapter`, or the adapter's kind can't be merged, or its weights are not finite.
    """
    refusal = refusal or (lambda reason: _not_usable(source, reason))
    tuned = load_adapter(model, source, refusal)
    try:
        merged = tuned.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise refusal(first_line(error)) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # PEFT would take the next adapter for a second one
    return merged


def load_adapter(
    model: torch.nn.Module,
    source: str | Path,
    refusal: Callable[[str], ConfigError],
    name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put a trained adapter on a model, all of it or none: PEFT only warns of weights that find no place in the model.

    Args:
        model: a `transformers` model; or a `peft` model, which gets the adapter beside its others, and in the place of
            one of the same name.
        source: the adapter's folder, or its name on the hub.
        refusal: makes the error from the reason, a clause such as "it lacks lm_head.weight".
        name: the adapter's name in the `peft` model.
        is_trainable: whether its weights get gradients.

    Returns:
        The `peft.PeftModel`.

    Raises:
        ConfigError: no adapter, a damaged one or another model's, or one whose weights are not exactly those expected.
    """
    config = _config(source, refusal)
    with errors_as(lambda error: refusal(whole_text(error)[:300])):
        if not isinstance(model, PeftModel):
            config.inference_mode, config.base_model_name_or_path = True, None  # PEFT fills in the model's
            model = get_peft_model(model, config, name)
        there = name in model.peft_config  # and then it keeps its types, where PEFT would have it in float32
        found = model.load_adapter(str(source), name, is_trainable=is_trainable, autocast_adapter_dtype=not there)
    for what, keys in (("it lacks", found.missing_keys), ("the model has no", found.unexpected_keys)):
        if keys:
            raise refusal(f"{what} {', '.join(sorted(keys)[:2])}" + ", …" * (len(keys) > 2))
    return model


def _not_usable(adapter: str | Path, reason: str) -> ConfigError:
    return ConfigError(
        "model.trained_adapter",
        f"no adapter could be loaded from {str(adapter)!r}: {reason}",
        "Give the folder that holds adapter_config.json and belongs to this model.",
    )
