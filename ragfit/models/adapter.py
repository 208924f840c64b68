"""PEFT adapters: what is checked of a new one before it is trained, and how a trained one is put on a model."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from ragfit.config.paths import find_model
from ragfit.errors import ConfigError
from ragfit.models import fingerprint

KEY = "model.lora"
# Initializations that change the base's weights, or need a pass over data that nobody makes here.
NOT_LORA = ("pissa", "olora", "loftq", "corda", "eva", "lora_ga")
PROBE = [list(range(1, 17))]  # token ids for a look at what a model computes; any will do


# A new adapter.


def new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None, **kwargs) -> torch.nn.Module:
    """Put a new adapter on a model: the one place that names its kind.

    Args:
        lora: keyword arguments of `peft.LoraConfig`; None leaves the model as it is.
    """
    return model if lora is None else get_peft_model(model, LoraConfig(**lora), **kwargs)


def check_lora(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> None:
    """Try LoRA's keys on a model without weights (`ragfit.models.hf.skeleton`), up to merging.

    Raises:
        ConfigError: a name matches no module, which PEFT ignores as long as another one does; or the initialization
            is one that leaves another base.
        Exception: PEFT's own, with a note, where it refuses a key or could not merge such an adapter later.
    """
    if lora is None:
        return
    names = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "modules_to_save"):
        if missing := _unmatched(lora.get(key), names):
            fix = f"Its linear layers are {', '.join(linear_layers(model))}."
            raise ConfigError(f"{KEY}.{key}", f"{missing} matches no layer of this model", fix)
    initial = lora.get("init_lora_weights")
    if str(initial).startswith(NOT_LORA):
        problem = f"{initial!r} changes the base's own weights, or needs a pass over data, which is not made here"
        fix = "Take true, gaussian, orthogonal or mica: with the adapter off, the model is to be its base."
        raise ConfigError(f"{KEY}.init_lora_weights", problem, fix)
    try:
        # What computes with the weights waits until they are read.
        settings = {key: value for key, value in lora.items() if key != "kasa_config" and value != "mica"}
        with torch.random.fork_rng(devices=[]):  # the adapter that is trained draws what it would have drawn
            new_adapter(model, settings, low_cpu_mem_usage=True).merge_and_unload()
    except Exception as error:
        error.add_note(f"PEFT says so of the keys of {KEY}, in making such an adapter or in merging it.")
        raise


def put_new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> torch.nn.Module:
    """Put a new adapter on a model, and see that the model without it is the base, whatever training does to it.

    Raises:
        ConfigError: with the adapter off, the model computes something else than before: a key of LoRA's has changed
            the base's weights, or trains some of them (`bias`, say).
    """
    if lora is None or any(weight.is_meta or not weight.numel() for weight in model.parameters()):
        return new_adapter(model, lora)  # parts of the model are elsewhere (FSDP, DeepSpeed, a disk)
    rows = [[number % model.get_input_embeddings().weight.shape[0] for number in row] for row in PROBE]
    before = fingerprint.measure(model, rows)
    model = new_adapter(model, lora)
    with _as_if_trained(model), model.disable_adapter():
        difference = fingerprint.apart(before, fingerprint.measure(model, rows))
    if not difference <= fingerprint.TOLERANCE["float32"]:
        raise ConfigError(
            KEY,
            "with such an adapter switched off, the trained model would not be its base: log-probabilities of some "
            f"tokens are off by {difference:.3g} (the keys are {', '.join(lora)})",
            "Leave out what trains or changes the base's own weights (bias, layer_replication, kasa_config, …).",
        )
    return model


@contextlib.contextmanager
def _as_if_trained(model: torch.nn.Module) -> Iterator[None]:
    """All weights that training would change are others for a moment."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    kept = [weight.detach().clone() for weight in trained]
    with torch.no_grad():
        for weight in trained:
            weight.add_(0.1)
        yield
        for weight, value in zip(trained, kept, strict=True):
            weight.copy_(value)


def linear_layers(model: torch.nn.Module) -> list[str]:
    """The last parts of the names of the model's linear layers, in order of appearance."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _unmatched(wanted: str | list | None, names: list[str]) -> str:
    """Those of `wanted` that match no module's name: a regular expression, or names in full or from a dot on."""
    if not wanted or wanted == "all-linear":
        return ""
    if isinstance(wanted, str):
        return "" if any(re.fullmatch(wanted, name) for name in names) else repr(wanted)
    ends = tuple(f".{name}" for name in names)
    return ", ".join(repr(part) for part in wanted if not any(end.endswith(f".{part}") for end in ends))


# A trained adapter.


def find_adapter(adapter: str) -> str:
    """The folder or hub name of `model.trained_adapter`, once its `adapter_config.json` was read.

    Raises:
        ConfigError: there is none, or it is of a kind that cannot be used.
    """
    source = str(find_model(adapter, "model.trained_adapter") or adapter)
    _config(source, lambda reason: _not_usable(adapter, reason))
    return source


def _config(source: str | Path, refusal: Callable[[str], ConfigError]) -> PeftConfig:
    """What an adapter says of itself, where it is of a kind and has files that can be put on a model."""
    config = PeftConfig.from_pretrained(str(source))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise refusal(f"it is of the kind {config.peft_type.value}, which changes no weights")
    if config.peft_type in ("XLORA", "SHADOW"):  # a stranger's adapter would have other folders read, or fetched
        raise refusal(f"it is of the kind {config.peft_type.value}, whose settings name other models")
    if Path(source).is_dir() and not any(Path(source).glob("adapter_model.*")):  # PEFT would ask the hub
        raise refusal("it has no adapter_model.safetensors")
    return config


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
        ConfigError: no adapter, one of an unusable kind, or one whose weights are not exactly those expected.
    """
    config = _config(source, refusal)
    if not isinstance(model, PeftModel):
        config.inference_mode, config.base_model_name_or_path = True, None  # PEFT fills in the model's
        model = get_peft_model(model, config, name)
    there = name in model.peft_config  # and then it keeps its types, where PEFT would have it in float32
    found = model.load_adapter(str(source), name, is_trainable=is_trainable, autocast_adapter_dtype=not there)
    for what, keys in (("it lacks", found.missing_keys), ("the model has no", found.unexpected_keys)):
        if keys:
            raise refusal(f"{what} {', '.join(sorted(keys)[:2])}" + ", …" * (len(keys) > 2))
    return model


def merge_adapter(
    model: torch.nn.Module, source: str | Path, refusal: Callable[[str], ConfigError] | None = None
) -> torch.nn.Module:
    """Merge a trained adapter into its base model; where its fingerprint is there, both must be what was trained.

    Args:
        model: a `transformers` model.
        source: the adapter's folder or hub name.
        refusal: as in `load_adapter`; by default it names `model.trained_adapter`.

    Returns:
        The model with changed weights, and without an adapter.

    Raises:
        ConfigError: as `load_adapter`, or the base or the merged model is another than the checkpoint says.
        Exception: PEFT's own, where the adapter can't be merged (weights that are not finite).
    """
    fingerprint.check(source, model, "base")
    tuned = load_adapter(model, source, refusal or (lambda reason: _not_usable(source, reason)))
    _untie(tuned)
    merged = tuned.merge_and_unload(safe_merge=True)
    fingerprint.check(source, merged, "merged")
    return merged


def _untie(model: PeftModel) -> None:
    """Give modules that share a weight (tied embeddings) one each where an adapter stands on one of them.

    PEFT adds what the adapter does to the shared weight, where the other module would have it too.
    """
    base = model.get_base_model()
    adapted = {id(part.get_base_layer()) for part in base.modules() if isinstance(part, BaseTunerLayer)}
    owners: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in base.modules():
        for name, weight in module.named_parameters(recurse=False):
            owners.setdefault(id(weight), []).append((module, name))
    for shared in owners.values():
        if len(shared) > 1 and any(id(module) in adapted for module, _ in shared):
            for module, name in shared[1:]:
                weight = getattr(module, name)
                setattr(module, name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))


def _not_usable(adapter: str | Path, reason: str) -> ConfigError:
    return ConfigError(
        "model.trained_adapter",
        f"no adapter could be loaded from {str(adapter)!r}: {reason}",
        "Give the folder that holds adapter_config.json and belongs to this model.",
    )
