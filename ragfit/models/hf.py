"""Load a causal language model for training, quantized where asked, with a PEFT adapter."""

import os
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ragfit.config.paths import find_model
from ragfit.draw.progress import weights_bar
from ragfit.errors import ConfigError
from ragfit.models.adapter import check_lora, merge_adapter, put_new_adapter
from ragfit.models.demo import MODEL_KEY
from ragfit.models.tokenizer import load_tokenizer, not_found, resolve


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
        quantization_config: keys of `transformers.BitsAndBytesConfig`, or another configuration's object, instead.
        trust_remote_code: run code that comes with the model. Off unless set.
        trained_adapter: a trained adapter to merge into the model before the new one is put on.
        attn_implementation, revision: as in `from_pretrained`.
        generation, completion_start, instruction_in_prompt, max_sequence_len, over_length, chat_template_kwargs: not
            used for loading; kept as attributes for those who read them off the object.

    Attributes:
        model, tokenizer: the model with its adapter, and its tokenizer with a pad token.

    Raises:
        ConfigError: target modules that match nothing, quantized weights without LoRA, a changed base.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        model_name_or_path: str,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | dict | None = None,
        lora: dict[str, Any] | None = None,
        trained_adapter: str | None = None,
        generation: dict[str, Any] | None = None,
        completion_start: str = "",
        instruction_in_prompt: bool | None = None,
        max_sequence_len: int | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        revision: str | None = None,
        over_length: str = "drop",
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.model_name, self.generation, self.over_length = model_name_or_path, generation, over_length
        self.completion_start, self.instruction_in_prompt = completion_start, instruction_in_prompt
        self.max_sequence_len, self.chat_template_kwargs = max_sequence_len, chat_template_kwargs
        if lora is None and (quantization_config or load_in_4bit or load_in_8bit):
            fix = "Set model.lora, or load_in_8bit=false and load_in_4bit=false."
            raise ConfigError("model.lora", "it is empty, but quantized weights cannot be trained", fix)
        source, weights_type = resolve(model_name_or_path), choose_dtype(dtype or torch_dtype)
        remote = {"trust_remote_code": bool(trust_remote_code), "revision": revision}
        adapter = trained_adapter and (find_model(trained_adapter, "model.trained_adapter") or trained_adapter)
        check_lora(skeleton(source, **remote, attn_implementation=attn_implementation), lora)
        self.tokenizer = load_tokenizer(model_name_or_path, revision, bool(trust_remote_code))
        if self.tokenizer.pad_token is None:  # padding is told apart by position, so sharing EOS costs nothing
            self.tokenizer.pad_token = self.tokenizer.eos_token
        quantized = quantization(load_in_4bit, load_in_8bit, quantization_config)
        settings = {"dtype": weights_type, "device_map": device_map, "attn_implementation": attn_implementation}
        with weights_bar():
            self.model, loading = AutoModelForCausalLM.from_pretrained(
                source, quantization_config=quantized, output_loading_info=True, **settings, **remote
            )
        if missing := sorted(loading["missing_keys"]):
            problem = f"its weights lack {', '.join(missing[:3])} ({len(missing)} in all), which would be random"
            raise ConfigError(MODEL_KEY, problem, "Give a folder whose config.json belongs to its weights.")
        keep_4bit_layout(self.model)
        self.model.config.use_cache = False
        # Of several processes the trainer places it, or FSDP and DeepSpeed a part of it.
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if alone and device_map is None and quantized is None and torch.cuda.is_available():
            self.model.to(torch.cuda.current_device())
        if adapter:
            self.model = merge_adapter(self.model, adapter)
        self.model = put_new_adapter(self.model, lora)


def quantization(load_in_4bit: bool, load_in_8bit: bool, own: Any) -> BitsAndBytesConfig | None:
    if own is None and (load_in_4bit or load_in_8bit):
        own = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        if load_in_4bit:
            own |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
            own |= {"bnb_4bit_compute_dtype": torch.bfloat16 if bf16_is_fast() else torch.float32}
    if not isinstance(own, dict):
        return own
    made = BitsAndBytesConfig(**own)  # which only logs keys that it does not know
    if unknown := own.keys() - made.to_dict().keys():
        fix = f"The keys are {', '.join(name for name in made.to_dict() if not name.startswith('_'))}."
        raise ConfigError("model.quantization_config", f"it has no {', '.join(unknown)}", fix)
    return made


def keep_4bit_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights at a CPU's first evaluation: training would misread the bytes."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def bf16_is_fast() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def choose_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """The type to load weights in: the one asked for, else the checkpoint's own where this machine is quick with it."""
    if dtype in (None, "auto"):
        return "auto" if torch.cuda.is_available() or bf16_is_fast() else torch.float32
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        fix = "Use float32, bfloat16 or float16, or leave it empty."
        raise ConfigError("model.dtype", f"{dtype!r} is not a floating-point type of torch", fix)
    return found


def skeleton(source: str, attn_implementation: str | None = None, **remote) -> PreTrainedModel:
    """The model without its weights (on the meta device): made in moments, for names and counts."""
    try:
        config = AutoConfig.from_pretrained(source, **remote)
    except OSError as error:
        raise not_found(source, error) from error
    with torch.device("meta"):
        remote = {"trust_remote_code": remote.get("trust_remote_code", False)}
        return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, **remote)
