"""PEFT adapters: what is checked of a new one before it is trained, and how a trained one is put on a model."""

from collections.abc import Mapping
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


def new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None, **kwargs) -> torch.nn.Module:
    """Put a new adapter on a model: the one place that names its kind. Without keys the model stays as it is."""
    return model if lora is None else get_peft_model(model, LoraConfig(**lora), **kwargs)


def check_lora(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> None:
    """Try LoRA's keys on a model without weights, up to merging, and refuse what no measurement would show later."""
    if lora is None:
        return
    modules = {f".{name}": module for name, module in model.named_modules()}
    for key in ("target_modules", "modules_to_save"):
        # PEFT passes over a name that matches nothing as long as another one does.
        wanted = lora.get(key) if isinstance(lora.get(key), list) else []
        if missing := [repr(name) for name in wanted if not any(place.endswith(f".{name}") for place in modules)]:
            linear = {name.rpartition(".")[2]: 0 for name, part in modules.items() if isinstance(part, torch.nn.Linear)}
            fix = f"Its linear layers are {', '.join(linear)}."
            raise ConfigError(f"{KEY}.{key}", f"{', '.join(missing)} matches no layer of this model", fix)
    if lora.get("init_lora_weights") in ("eva", "lora_ga"):  # which PEFT would train as a plain LoRA
        problem = "it needs a pass over data before training, which is not made here"
        raise ConfigError(f"{KEY}.init_lora_weights", problem, "Take true, gaussian, orthogonal or mica.")
    try:
        # What computes with the weights waits until they are read.
        settings = {key: value for key, value in lora.items() if key not in ("init_lora_weights", "kasa_config")}
        tried = new_adapter(model, settings, low_cpu_mem_usage=True)
        head = tried.get_base_model().get_output_embeddings()
        tried.merge_and_unload()
    except Exception as error:
        error.add_note(f"PEFT says so of the keys of {KEY}, in making such an adapter or in merging it.")
        raise
    if isinstance(head, TrainableTokensWrapper):  # new tokens begin as the old ones, so no logits differ yet
        problem = "they are tokens of the LM head too, whose weight TRL's loss takes without what is trained of it"
        fix = "Leave it out, or set model.lora.modules_to_save=[embed_tokens]."
        raise ConfigError(f"{KEY}.trainable_token_indices", problem, fix)


def put_new_adapter(model: torch.nn.Module, lora: Mapping[str, Any] | None) -> torch.nn.Module:
    """Put a new adapter on a model, and see that the model without it is the base, whatever training does to it."""
    if lora is None or any(weight.is_meta or not weight.numel() for weight in model.parameters()):
        return new_adapter(model, lora)  # parts of the model are elsewhere (FSDP, DeepSpeed, a disk)
    rows = [[number % model.get_input_embeddings().weight.shape[0] for number in range(1, 17)]]  # any ids will do
    before = fingerprint.measure(model, rows)
    model = new_adapter(model, lora)
    kept = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight, _ in kept:  # as if it had been trained
            weight.add_(0.1)
        with model.disable_adapter():
            difference = fingerprint.apart(before, fingerprint.measure(model, rows))
        for weight, value in kept:
            weight.copy_(value)
    if not difference <= fingerprint.TOLERANCE["float32"]:
        problem = f"with its adapter off, the trained model would not be its base ({difference:.3g} nats a token off)"
        fix = "Leave out what trains or changes the base's own weights (bias, init_lora_weights, layer_replication, …)."
        raise ConfigError(KEY, problem, fix)
    return model


def load_adapter(
    model: torch.nn.Module, source: str | Path, key: str = "model.trained_adapter", name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:  # fmt: skip
    """Put a trained adapter (a folder, or a name on the hub, that `key` named) on a model: all of it or none."""

    def refused(reason: str) -> ConfigError:
        problem = f"the adapter in {source} could not be put on this model: {reason}"
        return ConfigError(key, problem, "Name an adapter of this model.")

    config = PeftConfig.from_pretrained(str(source))
    # Two kinds name other models, so that a stranger's adapter would have the user's folders read, or fetched.
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type in ("XLORA", "SHADOW"):
        raise refused(f"it is of the kind {config.peft_type.value}, which cannot be merged")
    if not isinstance(model, PeftModel):
        config.inference_mode, config.base_model_name_or_path = True, None  # PEFT fills in the model's
        model = get_peft_model(model, config, name)
    new = name not in model.peft_config  # one that is there keeps its types, where PEFT would have it in float32
    found = model.load_adapter(str(source), name, is_trainable=is_trainable, autocast_adapter_dtype=new)
    for what, names in (("it lacks", found.missing_keys), ("the model has no", found.unexpected_keys)):
        if names:  # of which PEFT only warns
            raise refused(f"{what} {', '.join(sorted(names)[:2])}" + ", …" * (len(names) > 2))
    return model


def merge_adapter(model: torch.nn.Module, source: str | Path, key: str = "model.trained_adapter") -> torch.nn.Module:
    """Merge a trained adapter into its base model; where its fingerprint is there, both must be what was trained."""
    try:
        fingerprint.check(source, model, "base")
    except ConfigError as error:
        earlier = believed(source)[0].get("model", {}).get("trained_adapter")
        fix = f"It was trained on top of {earlier}: python -m ragfit merge {source} FOLDER, and name FOLDER instead."
        raise ConfigError(key, error.problem, fix if earlier else error.fix) from error
    tuned = load_adapter(model, source, key)
    base = tuned.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    embeddings, head = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if any(isinstance(end, BaseTunerLayer) for end in ends) and head.weight is embeddings.weight:
        # Tied: what PEFT adds to the one's weight, the other would have too.
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    merged = tuned.merge_and_unload(safe_merge=True)
    fingerprint.check(source, merged, "merged")
    return merged
