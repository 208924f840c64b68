"""PEFT adapters: what is checked of a new one before it is trained, and how a trained one is put on a model."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TrainableTokensWrapper

from ragfit.config.trust import believed
from ragfit.errors import ConfigError
from ragfit.models import fingerprint

KEY = "model.lora"
# Initializations that change the base's weights, or need a pass over data that nobody makes here.
NOT_LORA = ("pissa", "olora", "loftq", "corda", "eva", "lora_ga")


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
    modules = {f".{name}": module for name, module in model.named_modules()}
    for key in ("target_modules", "modules_to_save"):
        wanted = lora.get(key) if isinstance(lora.get(key), list) else []  # PEFT refuses a text that matches nothing
        if missing := [repr(name) for name in wanted if not any(place.endswith(f".{name}") for place in modules)]:
            linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
            fix = f"Its linear layers are {', '.join(dict.fromkeys(name.rpartition('.')[2] for name in linear))}."
            raise ConfigError(f"{KEY}.{key}", f"{', '.join(missing)} matches no layer of this model", fix)
    initial = lora.get("init_lora_weights")
    if str(initial).startswith(NOT_LORA):
        problem = f"{initial!r} changes the base's own weights, or needs a pass over data, which is not made here"
        fix = "Take true, gaussian, orthogonal or mica: with the adapter off, the model is to be its base."
        raise ConfigError(f"{KEY}.init_lora_weights", problem, fix)
    try:
        # What computes with the weights waits until they are read.
        settings = {key: value for key, value in lora.items() if key != "kasa_config" and value != "mica"}
        with torch.random.fork_rng(devices=[]):  # the adapter that is trained draws what it would have drawn
            tried = new_adapter(model, settings, low_cpu_mem_usage=True)
            head = tried.get_base_model().get_output_embeddings()
            tried.merge_and_unload()
    except Exception as error:
        error.add_note(f"PEFT says so of the keys of {KEY}, in making such an adapter or in merging it.")
        raise
    if isinstance(head, TrainableTokensWrapper):  # TRL refuses LoRA there by itself
        problem = "they are tokens of the LM head too, whose weight TRL's loss takes without what is trained of it"
        fix = "Leave it out, or train the embeddings whole: model.lora.modules_to_save=[embed_tokens]."
        raise ConfigError(f"{KEY}.trainable_token_indices", problem, fix)


def put_new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> torch.nn.Module:
    """Put a new adapter on a model, and see that the model without it is the base, whatever training does to it.

    Raises:
        ConfigError: with the adapter off, the model computes something else than before: a key of LoRA's has changed
            the base's weights, or trains some of them (`bias`, say).
    """
    if lora is None or any(weight.is_meta or not weight.numel() for weight in model.parameters()):
        return new_adapter(model, lora)  # parts of the model are elsewhere (FSDP, DeepSpeed, a disk)
    rows = [[number % model.get_input_embeddings().weight.shape[0] for number in range(1, 17)]]  # any ids will do
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


# A trained adapter.


def load_adapter(
    model: torch.nn.Module,
    source: str | Path,
    key: str = "model.trained_adapter",
    name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put a trained adapter on a model, all of it or none: PEFT only warns of weights that find no place in the model.

    Args:
        model: a `transformers` model; or a `peft` model, which gets the adapter beside its others, and in the place of
            one of the same name.
        source: the adapter's folder, or its name on the hub.
        key: the key that named it, for errors.
        name: the adapter's name in the `peft` model.
        is_trainable: whether its weights get gradients.

    Raises:
        ConfigError: an adapter of an unusable kind, or one whose weights are not exactly those expected.
        Exception: PEFT's own, where there is no adapter or a damaged one.
    """

    def refused(reason: str) -> ConfigError:
        fix = "Name an adapter of this model, or take it from another copy."
        return ConfigError(key, f"the adapter in {source} could not be put on this model: {reason}", fix)

    config = PeftConfig.from_pretrained(str(source))
    # Two kinds name other models, so that a stranger's adapter would have the user's folders read, or fetched.
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type in ("XLORA", "SHADOW"):
        raise refused(f"it is of the kind {config.peft_type.value}, which cannot be merged")
    if not isinstance(model, PeftModel):
        config.inference_mode, config.base_model_name_or_path = True, None  # PEFT fills in the model's
        model = get_peft_model(model, config, name)
    there = name in model.peft_config  # and then it keeps its types, where PEFT would have it in float32
    found = model.load_adapter(str(source), name, is_trainable=is_trainable, autocast_adapter_dtype=not there)
    for what, names in (("it lacks", found.missing_keys), ("the model has no", found.unexpected_keys)):
        if names:
            raise refused(f"{what} {', '.join(sorted(names)[:2])}" + ", …" * (len(names) > 2))
    return model


def merge_adapter(model: torch.nn.Module, source: str | Path, key: str = "model.trained_adapter") -> torch.nn.Module:
    """Merge a trained adapter into its base model; where its fingerprint is there, both must be what was trained.

    Args:
        model: a `transformers` model.
        source: the adapter's folder or hub name.
        key: the key that named it, for errors.

    Returns:
        The model with changed weights, and without an adapter.

    Raises:
        ConfigError: as `load_adapter`, or the base or the merged model is another than the checkpoint says.
        Exception: PEFT's own, where the adapter can't be merged (weights that are not finite).
    """
    try:
        fingerprint.check(source, model, "base")
    except ConfigError as error:
        if earlier := believed(source)[0].get("model", {}).get("trained_adapter"):
            fix = f"It was trained on top of {earlier}: python -m ragfit merge {source} FOLDER merges both; name "
            raise ConfigError(key, error.problem, f"{fix}FOLDER as the model, and no trained_adapter.") from error
        raise
    tuned = load_adapter(model, source, key)
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
        if any(id(module) in adapted for module, _ in shared):
            for module, name in shared[1:]:
                weight = getattr(module, name)
                setattr(module, name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))
