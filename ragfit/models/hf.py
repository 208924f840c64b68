"""Load a causal language model for training, quantized where asked, with a PEFT adapter."""

import logging
import pickle
import re
from pathlib import Path

import ragfit.before_torch  # noqa: F401  (before torch)
from ragfit.config.paths import check_reachable, find_model, is_demo
from ragfit.draw.progress import weights_bar
from ragfit.errors import ConfigError, first_line, whole_text
from ragfit.models.demo import model_folder
from ragfit.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)
# Initializations that compute with the weights.
COMPUTED = ("pissa", "olora", "corda", "eva", "loftq", "orthogonal", "lora_ga")


class HFTrain:
    """A model and its tokenizer, ready to be trained.

    Another class can take its place through `model._target_`: it is given the keys of `model` and must have the
    attributes `model` (a `transformers` or `peft` model) and `tokenizer`.

    Args:
        model_name_or_path: a folder, a name on the Hugging Face hub, or `demo:…`.
        dtype: the weights' type ("bfloat16", …); None takes the checkpoint's own. (`torch_dtype` is its old name.)
        device_map: where the layers go (`auto` spreads them over several GPUs); None puts all on one device.
        lora: keyword arguments of `peft.LoraConfig`; None trains all weights.
        load_in_8bit, load_in_4bit: quantize the weights through bitsandbytes (LLM.int8, https://arxiv.org/abs/2208.07339;
            NF4 with double quantization, https://arxiv.org/abs/2305.14314).
        quantization_config: a configuration of one's own instead.
        trust_remote_code: run code that comes with the model. Off unless set.
        trained_adapter: a trained adapter to merge into the model before the new one is put on.
        attn_implementation, revision: as in `from_pretrained`.
        generation, completion_start, instruction_in_prompt, max_sequence_len, over_length: not used for loading;
            kept as attributes for those who read them off the object.

    Attributes:
        model: the model, with its adapter.
        tokenizer: its tokenizer, with a pad token.

    Raises:
        ConfigError: no such model, target modules that match nothing, or settings that exclude each other.
    """

    def __init__(
        self,
        model_name_or_path,
        torch_dtype=None,
        device_map=None,
        lora=None,
        trained_adapter=None,
        generation=None,
        completion_start="",
        instruction_in_prompt=None,
        max_sequence_len=None,
        *,
        dtype=None,
        load_in_4bit=False,
        load_in_8bit=False,
        quantization_config=None,
        trust_remote_code=False,
        attn_implementation=None,
        revision=None,
        over_length="drop",
    ):
        self.model_name = model_name_or_path
        self.generation = generation
        self.completion_start = completion_start
        self.instruction_in_prompt = instruction_in_prompt
        self.max_sequence_len = max_sequence_len
        self.over_length = over_length
        if lora is None and (quantization_config or load_in_4bit or load_in_8bit):
            raise ConfigError(
                "model.lora is empty, but quantized weights cannot be trained. "
                "Set model.lora, or load_in_8bit=false and load_in_4bit=false."
            )
        # Whatever can be known to be wrong is found before the weights are read.
        source = resolve(model_name_or_path)
        remote = {"trust_remote_code": bool(trust_remote_code), "revision": revision}
        dtype = choose_dtype(dtype or torch_dtype)
        adapter = find_adapter(trained_adapter) if trained_adapter else None
        bare = skeleton(source, **remote, attn_implementation=attn_implementation)
        check_targets(bare, lora)
        check_lora(bare, lora)

        self.tokenizer = load_tokenizer(model_name_or_path, revision, bool(trust_remote_code))
        if self.tokenizer.pad_token is None:
            # Padding is told apart by position, so sharing EOS costs nothing.
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if quantization_config is None:
            quantization_config = quantization(load_in_4bit, load_in_8bit)
        elif isinstance(quantization_config, dict):
            quantization_config = own_quantization(quantization_config)
        import torch
        from transformers import AutoModelForCausalLM

        logger.info("Loading %s", model_name_or_path)
        try:
            with weights_bar():
                self.model, loading = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=dtype,
                    device_map=device_map,
                    quantization_config=quantization_config,
                    attn_implementation=attn_implementation,
                    output_loading_info=True,
                    **remote,
                )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"model.model_name_or_path: {model_name_or_path} does not fit into the GPU's memory ({first_line(error)}). "
                "Set model.load_in_4bit=true, model.device_map=auto where there are several GPUs, or take a smaller model."
            ) from error
        except Exception as error:  # of transformers, safetensors, pickle and the hub, which have no common class
            raise ConfigError(_not_loaded(model_name_or_path, error)) from error
        if missing := sorted(loading["missing_keys"]):
            raise ConfigError(
                f"model.model_name_or_path: the weights in {model_name_or_path} lack {len(missing)} of the model's tensors "
                f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}), which would be random numbers. "
                "Give a folder whose config.json belongs to its weights, or fetch the model again."
            )
        keep_4bit_layout(self.model)
        self.model.config.use_cache = False
        if device_map is None and quantization_config is None and torch.cuda.is_available():
            self.model.to(torch.cuda.current_device())
        if adapter:
            self.model = merge_adapter(self.model, adapter)
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            try:
                self.model = get_peft_model(self.model, LoraConfig(**lora))
            except torch.OutOfMemoryError:
                raise  # has advice of its own
            except (
                Exception
            ) as error:  # some initializations meet the weights only here, and quantized ones refuse some keys
                raise ConfigError(_no_lora(error)) from error


def resolve(name):
    """The folder or hub name to load a model from."""
    if is_demo(name):
        return str(model_folder(name))
    return str(find_model(name) or name)


def quantization(load_in_4bit=False, load_in_8bit=False):
    """A `BitsAndBytesConfig` for the documented keys, or None."""
    if not (load_in_4bit or load_in_8bit):
        return None
    if load_in_4bit and load_in_8bit:
        raise ConfigError("model.load_in_4bit and model.load_in_8bit are both set. Set one of them.")
    import torch
    from transformers import BitsAndBytesConfig

    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16_is_fast() else torch.float32,
    )


def own_quantization(keys):
    """A `BitsAndBytesConfig` of one's own keys; those it does not know are errors, which it would only log."""
    import dataclasses
    import inspect

    from transformers import BitsAndBytesConfig

    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"} | {"quant_method"}
    known |= {field.name for field in dataclasses.fields(BitsAndBytesConfig)}
    if unknown := sorted(set(keys) - known):
        raise ConfigError(
            f"model.quantization_config: BitsAndBytesConfig has no {', '.join(map(repr, unknown))}. "
            f"It has {', '.join(sorted(known - {'quant_method'}))}."
        )
    try:
        made = BitsAndBytesConfig(**keys)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"model.quantization_config: {first_line(error)}. Change the key it names.") from error
    if not (made.load_in_8bit or made.load_in_4bit):
        raise ConfigError(
            "model.quantization_config sets neither load_in_8bit nor load_in_4bit. Set one of them there."
        )
    return made


def keep_4bit_layout(model):
    """Keep bitsandbytes from packing 4-bit weights for a CPU's inference.

    It packs them for good at the first forward pass in evaluation mode, and the backward pass of a later training
    step reads the packed bytes as if they were not: a dev loss before training would spoil the training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def bf16_is_fast():
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.backends.cpu.get_cpu_capability()
    return bool(torch.cpu._is_avx512_bf16_supported()) if capability.startswith("AVX512") else False


def choose_dtype(dtype):
    """The type to load weights in: what was asked for, else the checkpoint's own where this machine is quick with it."""
    import torch

    if dtype in (None, "auto"):
        if torch.cuda.is_available() or bf16_is_fast():
            return "auto"
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"model.dtype: {dtype!r} is no floating-point type of torch. Use float32, bfloat16 or float16, or leave it empty."
        )
    return found


def skeleton(source, trust_remote_code=False, revision=None, attn_implementation=None):
    """The model without its weights (on the meta device): made in moments, for names and counts.

    Raises:
        ConfigError: there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, attn_implementation=attn_implementation
            )
    except Exception as error:  # of transformers, the hub, JSON and a model's own code, which have no common class
        raise ConfigError(_not_loaded(source, error)) from error


def linear_layers(model):
    """The last parts of the names of the model's linear layers, in order of appearance."""
    import torch

    names = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return list(dict.fromkeys(names))


def check_targets(model, lora):
    """Raise a ConfigError where a LoRA target module matches no layer of the model."""
    targets = (lora or {}).get("target_modules")
    if not targets or targets == "all-linear":
        return  # PEFT chooses
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):  # a pattern
        try:
            missing = [targets] if not any(re.fullmatch(targets, name) for name in names) else []
        except re.error as error:
            raise ConfigError(
                f"model.lora.target_modules: {targets!r} is no regular expression ({error}). Write a list of names: [{targets}]."
            ) from error
    else:
        missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        raise ConfigError(
            f"model.lora.target_modules: {', '.join(map(repr, missing))} matches no layer of this model. "
            f"Its linear layers are {', '.join(linear_layers(model))}."
        )


def check_lora(model, lora):
    """Raise a ConfigError for what PEFT refuses, or takes and trains nothing by, before the weights are read.

    It is tried on the model without them.
    """
    if lora is None:
        return
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    names = [name for name, _ in model.named_modules()]
    wanted = lora.get("modules_to_save") or ()
    if missing := [name for name in wanted if not any(known.endswith(str(name)) for known in names)]:
        own = (name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False)))
        known = dict.fromkeys(name.rsplit(".", 1)[-1] for name in own)
        raise ConfigError(
            f"model.lora.modules_to_save: {', '.join(map(repr, missing))} matches no module of this model. "
            f"Its modules with weights are {', '.join(known)}."
        )
    # Some initializations compute with the weights, which are not there; their names are checked even so.
    try:
        config = LoraConfig(**lora)
        if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith(COMPUTED):
            config.init_lora_weights = True
        with torch.random.fork_rng(devices=[]):  # the adapter that is trained draws what it would have drawn
            made = get_peft_model(model, config, low_cpu_mem_usage=True)
    except Exception as error:  # PEFT's kinds, and what odd values make it run into
        raise ConfigError(_no_lora(error)) from error
    if not any(weight.requires_grad for weight in made.parameters()):
        raise ConfigError("model.lora.inference_mode is set, so nothing would be trained. Remove it.")
    for layer in made.modules():
        if isinstance(layer, TrainableTokensLayer):
            rows, tokens = layer.get_base_layer().weight.shape[0], layer.token_indices[layer.active_adapters[0]]
            wrong = [token for token in tokens if not isinstance(token, int) or not 0 <= token < rows]
            if wrong or not tokens:
                raise ConfigError(
                    f"model.lora.trainable_token_indices: {wrong} are no tokens of this model. "
                    f"Give ids between 0 and {rows - 1}, or leave it empty."
                )


def find_adapter(adapter):
    """The folder or hub name of a trained adapter, with its `adapter_config.json` seen."""
    from peft import PeftConfig

    source = str(find_model(adapter, "model.trained_adapter") or adapter)
    if not Path(source).is_dir():
        check_reachable(source, "model.trained_adapter")
    try:
        PeftConfig.from_pretrained(source)
    except Exception as error:  # PEFT's, the hub's, JSON's
        raise ConfigError(_no_adapter(adapter, first_line(error))) from error
    return source


def merge_adapter(model, adapter):
    """Merge a trained adapter, of `find_adapter`, into its base model."""
    model = load_adapter(model, adapter, lambda reason: _no_adapter(adapter, reason))
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:  # of a kind that cannot be merged, or weights that are no numbers
        raise ConfigError(_no_adapter(adapter, first_line(error))) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # else PEFT takes the new adapter for a second one
    return merged


def load_adapter(model, source, sentence, name="default", is_trainable=False):
    """Put a trained adapter on a model, all of it or none: PEFT only warns of weights that find no place in it.

    Args:
        model: a `transformers` model; or a `peft` model, which gets it beside its adapters, or in place of its namesake.
        source: the adapter's folder, or its name on the hub.
        sentence: makes the error's message from the reason.

    Returns:
        The `peft.PeftModel`.

    Raises:
        ConfigError: no adapter, a damaged one or another model's, or one whose weights are not exactly those expected.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    try:
        config = PeftConfig.from_pretrained(str(source))
    except Exception as error:  # of PEFT, the hub, JSON
        raise ConfigError(sentence(first_line(error))) from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ConfigError(sentence(f"it is of the kind {config.peft_type.value}, which changes no weights"))
    if config.peft_type in ("XLORA", "SHADOW"):  # a stranger's adapter would have other folders read, or fetched
        raise ConfigError(sentence(f"it is of the kind {config.peft_type.value}, whose settings name other models"))
    try:
        if not isinstance(model, PeftModel):
            config.inference_mode, config.base_model_name_or_path = True, None  # PEFT fills in the model's
            model = get_peft_model(model, config, name)
        found = model.load_adapter(str(source), name, is_trainable=is_trainable)
    except KeyError as error:  # where PEFT looks for the weights of modules_to_save and the like
        raise ConfigError(sentence(f"it lacks {_in_file(error.args[0], name)}")) from error
    except Exception as error:  # of PEFT, the hub, safetensors and pickle, which have no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(sentence(reason.rstrip(". "))) from error
    # VB-LoRA has one bank of vectors for all layers, which PEFT counts as missing in each.
    missing = [key for key in found.missing_keys if "vblora_vector_bank" not in key]
    if missing or found.unexpected_keys:
        wrong = {"it lacks": missing, "the model has no": found.unexpected_keys}
        raise ConfigError(sentence(" and ".join(f"{what} {_some(keys, name)}" for what, keys in wrong.items() if keys)))
    return model


def _some(keys, adapter):
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return ", ".join(_in_file(key, adapter) for key in sorted(keys)[:2]) + more


def _in_file(key, adapter):
    """A weight's name in the model as it stands in an adapter's file, without what all of them begin with."""
    return ".".join(part for part in str(key).removeprefix("base_model.model.").split(".") if part != adapter)


def _no_adapter(adapter, reason):
    return (
        f"model.trained_adapter: no adapter could be loaded from {str(adapter)!r}: {reason}. "
        "Give the folder that holds adapter_config.json and belongs to this model."
    )


def _no_lora(error):
    return f"model.lora: PEFT refuses these keys: {whole_text(error)}. Change the key it names."


def _not_loaded(name, error):
    reason = first_line(error)
    if re.search("attn_implementation|flash_attn|FlashAttention", reason):
        return f"model.attn_implementation: {reason.partition('. ')[0]}. Set another, or leave it empty."
    if "device_map" in reason:
        return f"model.device_map: {reason}. Set it to auto or cuda:0, or leave it empty."
    advice = "Give a folder with a model, or a name on the hub and a network (a gated model needs `hf auth login`)"
    if isinstance(error, pickle.UnpicklingError):
        reason = "its weights are a pickle that holds more than tensors, which could run code and is not read"
        advice = "Take the model's safetensors files"
    elif "custom code" in reason:
        reason = "it needs custom code that comes with it, which is not run"
        advice = "Set model.trust_remote_code=true if you trust it"
    elif "ignore_mismatched_sizes" in reason:
        reason, advice = "its weights have other shapes than its config.json says", "Fetch the model again"
    return f"model.model_name_or_path: no model could be loaded from {str(name)!r}: {reason}. {advice}."
