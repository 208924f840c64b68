"""Loading models: real Llama and Phi-3 architectures made tiny, real bitsandbytes on the CPU, real PEFT."""

import json
import shutil
import warnings

import pytest
import torch
from conftest import make_tokenizer
from safetensors.torch import load_file
from tiny_runs import MARKER, adapter_weights, one_thread, question_rows, tiny_config, tiny_trainer, with_code  # noqa: F401

import ragfit
from ragfit.config.load import load_config
from ragfit.config.overrides import override
from ragfit.errors import ConfigError
from ragfit.models.adapter import linear_layers, no_lora
from ragfit.models.hf import HFTrain, bf16_is_fast, choose_dtype, skeleton
from ragfit.models.load import load_model
from ragfit.models.refusal import errors_as

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(8))


class TwoAttributes:
    """What `model._target_` asks of a class: `model` and `tokenizer`."""

    def __init__(self, folder, completion_start="", scale=1.0, nested=None):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.seen = {"completion_start": completion_start, "scale": scale, "nested": nested}


class NoTokenizer:
    def __init__(self, **keys):
        self.model = torch.nn.Linear(2, 2)


# --- _target_ -----------------------------------------------------------------------------------------------------


def target_config(tmp_path, target, **keys):
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"model": {"_target_": target, **keys}}), encoding="utf-8")
    return load_config(path)


def test_another_class_is_made_from_the_keys_of_model(tmp_path, tiny_llama):
    keys = {"folder": str(tiny_llama), "completion_start": "<|assistant|>", "scale": 1e-4, "nested": {"a": [1]}}
    loaded = load_model(target_config(tmp_path, f"{__name__}.TwoAttributes", **keys))
    assert type(loaded) is TwoAttributes
    assert loaded.seen == {"completion_start": "<|assistant|>", "scale": 1e-4, "nested": {"a": [1]}}
    keys["nested"] = {"_target_": "datetime.timedelta", "days": 2}
    with pytest.raises(ConfigError, match="model.nested._target_: 'datetime.timedelta', but values are plain"):
        target_config(tmp_path, f"{__name__}.TwoAttributes", **keys)


def test_another_class_trains(tmp_path, tiny_llama, rows):
    path = tmp_path / "own.yaml"
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "learning_rate": 1e-2, "bf16": False}
    model = {"_target_": f"{__name__}.TwoAttributes", "folder": str(tiny_llama), "completion_start": MARKER}
    data = {"data_file": str(rows), "output_key": "answers", "input_key": "prompt"}
    path.write_text(json.dumps({"model": model, "train": train, **data}), encoding="utf-8")
    cfg = load_config(path)
    trainer = ragfit.build_trainer(cfg, ragfit.prepare(cfg, tokenizer=make_tokenizer("digits", "chatml")))
    before = adapter_weights(trainer.model)
    trainer.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in adapter_weights(trainer.model).items())


@pytest.mark.parametrize(
    ("target", "keys", "message"),
    [
        ("ragfit.models.hf.HFTrian", {}, "HFTrian"),
        (f"{__name__}.TwoAttributes", {"folder": "x", "rank": 3}, "rank"),
        (f"{__name__}.NoTokenizer", {}, "has no attribute 'tokenizer'"),
    ],
)
def test_a_class_that_cannot_be_made(tmp_path, target, keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(target_config(tmp_path, target, **keys))
    assert str(caught.value).startswith("model._target_: ")


def test_the_target_of_earlier_versions_is_this_class(tiny_llama, rows, tmp_path):
    cfg = tiny_config(tiny_llama, rows, tmp_path, "model._target_=ragfoundry.models.hf.HFTrain")
    assert type(load_model(cfg)) is HFTrain


# --- model_name_or_path -------------------------------------------------------------------------------------------


def test_no_such_model(tmp_path):
    for name, message in (
        ("no/such-model", "no model could be loaded from 'no/such-model'"),
        (str(tmp_path), "no model could be loaded from"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            HFTrain(name, lora=LORA)
        assert "model.model_name_or_path" in str(caught.value) and "Give a folder" in str(caught.value)


def test_a_relative_folder(tiny_phi3, monkeypatch):
    monkeypatch.chdir(tiny_phi3.parent)
    loaded = HFTrain(tiny_phi3.name, lora=LORA)
    assert loaded.model.config.model_type == "phi3" and len(loaded.tokenizer) == loaded.model.config.vocab_size


def test_a_pad_token_is_made_where_there_is_none(tmp_path, tiny_llama):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    make_tokenizer("digits", "chatml", pad_token=None).save_pretrained(tmp_path)
    tokenizer = HFTrain(str(tmp_path)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_trust_remote_code_is_off_unless_set(tmp_path, tiny_llama):
    """A model with code of its own: the code leaves a file behind when it runs."""
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    with_code(tmp_path, tmp_path / "ran")
    with pytest.raises(ConfigError, match="model.model_name_or_path"):
        HFTrain(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    loaded = HFTrain(str(tmp_path), trust_remote_code=True)
    assert (tmp_path / "ran").exists() and type(loaded.model).__name__ == "OwnModel"


# --- Types, quantization and places -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (Exception("no JSON. At all"), ConfigError, "^model.lora: PEFT refuses these keys: Exception: no JSON"),
        (RuntimeError("CUDA out of memory."), RuntimeError, "^CUDA out of memory"),  # has advice of its own
        (ConfigError("model.dtype", "it is odd", "Change it."), ConfigError, "^model.dtype: it is odd. Change it."),
    ],
)
def test_what_becomes_of_a_librarys_error(raised, expected, message):
    with pytest.raises(expected, match=message) as caught, errors_as(no_lora):
        raise raised
    assert type(caught.value) is expected


# --- Types, quantization and places -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (None, "auto" if torch.cuda.is_available() or bf16_is_fast() else torch.float32),
        ("auto", "auto" if torch.cuda.is_available() or bf16_is_fast() else torch.float32),
    ],
)
def test_dtype(dtype, expected):
    assert choose_dtype(dtype) == expected


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_weights_have_the_type_asked_for(tiny_phi3, rows, tmp_path, key):
    model = load_model(tiny_config(tiny_phi3, rows, tmp_path, f"model.{key}=bfloat16")).model
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}  # PEFT keeps the adapter exact


QUANTIZED = {
    "load_in_8bit": (["model.load_in_8bit=true"], "Linear8bitLt", "Int8Params"),
    "load_in_4bit": (["model.load_in_4bit=true"], "Linear4bit", "Params4bit"),
    "quantization_config": (
        [
            "model.quantization_config={_target_: transformers.BitsAndBytesConfig, load_in_4bit: true, bnb_4bit_quant_type: fp4}"
        ],
        "Linear4bit",
        "Params4bit",
    ),
    "quantization_config without a class": (
        ["model.quantization_config={load_in_8bit: true}"],
        "Linear8bitLt",
        "Int8Params",
    ),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_layers_train_with_the_paged_optimizer(name, tiny_phi3, rows, tmp_path):
    import bitsandbytes

    keys, layer, weight = QUANTIZED[name]
    extra = ["train.optim=paged_adamw_8bit", "train.max_steps=2", "train.learning_rate=0.01", "train.warmup_ratio=0"]
    trainer = tiny_trainer(tiny_config(tiny_phi3, rows, tmp_path, *keys, *extra))
    model = trainer.model.get_base_model()
    quantized = {
        n.rsplit(".", 1)[-1]: m for n, m in model.named_modules() if type(m) is getattr(bitsandbytes.nn, layer)
    }
    # Every linear layer of the blocks; those with an adapter are called base_layer. The LM head stays whole.
    assert set(quantized) == {"base_layer", "gate_up_proj", "down_proj"}
    assert {type(m.weight).__name__ for m in quantized.values()} == {weight}
    assert type(model.lm_head) is torch.nn.Linear
    if "fp4" in keys[0]:
        assert model.config.quantization_config.bnb_4bit_quant_type == "fp4"
    before = adapter_weights(trainer.model)
    frozen = model.model.layers[0].self_attn.qkv_proj.base_layer.weight.data.clone()
    trainer.train()
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__module__.startswith("bitsandbytes")
    changed = {n for n, tensor in adapter_weights(trainer.model).items() if not torch.equal(tensor, before[n])}
    assert changed == set(before)
    assert torch.equal(model.model.layers[0].self_attn.qkv_proj.base_layer.weight.data, frozen)


def test_quantized_weights_and_no_adapter_exclude_each_other(tiny_phi3):
    for keys in ({"load_in_8bit": True}, {"load_in_4bit": True}, {"quantization_config": {"load_in_4bit": True}}):
        with pytest.raises(ConfigError, match="^model.lora: it is empty, but quantized weights cannot be trained"):
            HFTrain("/nothing/is/loaded", lora=None, **keys)
    with pytest.raises(ConfigError, match="^model.load_in_4bit: load_in_4bit and load_in_8bit are both True"):
        HFTrain(str(tiny_phi3), lora=LORA, load_in_4bit=True, load_in_8bit=True)


def test_device_map_reaches_the_loader(tiny_llama):
    for device_map, device in (("meta", "meta"), ({"": "meta"}, "meta"), ("cpu", "cpu"), (None, "cpu")):
        model = HFTrain(str(tiny_llama), device_map=device_map).model
        assert {p.device.type for p in model.parameters()} == {
            "cuda" if device_map is None and torch.cuda.is_available() else device
        }


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_map_and_training(tiny_llama, rows, tmp_path, device_map):
    trainer = tiny_trainer(
        tiny_config(tiny_llama, rows, tmp_path, f"model.device_map={device_map}", "train.max_steps=1")
    )
    trainer.train()
    assert trainer.state.global_step == 1


def test_attention_implementation(tiny_llama):
    for name in ("eager", "sdpa"):
        assert HFTrain(str(tiny_llama), attn_implementation=name).model.config._attn_implementation == name


# --- LoRA ---------------------------------------------------------------------------------------------------------

# One key, changed from the configuration, and what PEFT's own configuration then says.
LORA_KEYS = [
    ("r", 3, 3),
    ("lora_alpha", 5, 5),
    ("lora_dropout", 0.25, 0.25),
    ("bias", "lora_only", "lora_only"),
    ("target_modules", ["o_proj", "down_proj"], {"o_proj", "down_proj"}),
    ("target_modules", r".*layers\.1\..*qkv_proj", r".*layers\.1\..*qkv_proj"),
    ("use_rslora", False, False),
    ("use_dora", True, True),
    ("layers_to_transform", [1], [1]),
    ("layers_pattern", "layers", "layers"),
    ("fan_in_fan_out", False, False),
    ("modules_to_save", ["lm_head"], ["lm_head"]),
    ("task_type", "CAUSAL_LM", "CAUSAL_LM"),
    ("peft_type", "LORA", "LORA"),
    ("init_lora_weights", "gaussian", "gaussian"),
    ("exclude_modules", ["down_proj"], {"down_proj"}),
    ("rank_pattern", {"o_proj": 2}, {"o_proj": 2}),
]


@pytest.mark.parametrize(("key", "value", "expected"), LORA_KEYS, ids=[f"{k}={v}" for k, v, _ in LORA_KEYS])
def test_every_lora_key_reaches_peft(tiny_phi3, rows, tmp_path, key, value, expected):
    extra = ["model.lora.layers_to_transform=[0]"] if key == "layers_pattern" else []
    model = load_model(tiny_config(tiny_phi3, rows, tmp_path, override(f"model.lora.{key}", value), *extra)).model
    found = getattr(model.peft_config["default"], key)
    assert (set(found) if isinstance(expected, set) else found) == expected


def adapted(model):
    """Names of the layers that have a LoRA adapter."""
    return {
        name.removeprefix("base_model.model.model.layers.") for name, m in model.named_modules() if hasattr(m, "lora_A")
    }


def test_lora_keys_have_their_effect_on_the_model(tiny_phi3):
    def model(**keys):
        return HFTrain(str(tiny_phi3), lora={**LORA, **keys}).model

    both = {"0.self_attn.qkv_proj", "1.self_attn.qkv_proj"}
    assert adapted(model()) == both
    assert adapted(model(layers_to_transform=[1])) == {"1.self_attn.qkv_proj"}
    first = {"0.self_attn.qkv_proj", "0.self_attn.o_proj", "0.mlp.gate_up_proj", "0.mlp.down_proj"}
    assert adapted(model(target_modules=r".*\.0\..*_proj")) == first
    assert adapted(model(target_modules="all-linear")) == first | {name.replace("0.", "1.") for name in first}

    def layer(**keys):
        return model(**keys).get_submodule("base_model.model.model.layers.0.self_attn.qkv_proj")

    assert layer().lora_A["default"].weight.shape == (4, 16) and layer(r=2).lora_A["default"].weight.shape == (2, 16)
    assert layer().scaling["default"] == 8 / 4 and layer(use_rslora=True).scaling["default"] == 8 / 4**0.5
    assert layer(lora_dropout=0.5).lora_dropout["default"].p == 0.5
    saved = model(modules_to_save=["lm_head"])
    assert any("lm_head.modules_to_save" in name for name, p in saved.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("targets", [["q_proj"], ["qkv_proj", "v_proj"], "q_proj", r".*\.q_proj"])
def test_targets_that_match_nothing_list_the_linear_layers(tiny_phi3, rows, tmp_path, targets):
    # The weights are a broken file: had they been read, the error would be another one.
    from shutil import copytree

    folder = copytree(tiny_phi3, tmp_path / "broken-phi3")
    (folder / "model.safetensors").write_bytes(b"no weights")
    cfg = tiny_config(folder, rows, tmp_path, override("model.lora.target_modules", targets))
    with pytest.raises(ConfigError) as caught:
        load_model(cfg)
    missing = targets if isinstance(targets, str) else targets[-1]
    assert str(caught.value) == (
        f"model.lora.target_modules: {missing!r} matches no layer of this model. "
        "Its linear layers are o_proj, qkv_proj, gate_up_proj, down_proj, lm_head."
    )


# Keys that PEFT takes, and that then train nothing, something else, or fail in the first step.
TRAINS_NOTHING = [
    ("inference_mode", True, "^model.lora.inference_mode: .* Change or remove model.lora.inference_mode"),
    (
        "modules_to_save",
        ["lm_head", "nope"],
        "^model.lora.modules_to_save: 'nope' matches no module of this model. Its modules with weights are embed_tokens, ",
    ),
    ("trainable_token_indices", {"lm_head": [-1]}, "^model.lora.trainable_token_indices: .*-1.* Change or remove"),
    ("trainable_token_indices", [], "^model.lora.trainable_token_indices: .* Change or remove"),
    ("lora_alpha", 0, "model.lora.lora_alpha: 0 is not allowed"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"), TRAINS_NOTHING, ids=[f"{key}={value}" for key, value, _ in TRAINS_NOTHING]
)
def test_lora_keys_that_would_train_nothing(tiny_phi3, rows, tmp_path, key, value, message):
    from shutil import copytree

    folder = copytree(tiny_phi3, tmp_path / "broken-phi3")
    (folder / "model.safetensors").write_bytes(b"no weights")  # had they been read, the error would be another one
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(tiny_config(folder, rows, tmp_path, override(f"model.lora.{key}", value)))


def test_without_lora_all_weights_are_trained(tiny_llama, rows, tmp_path):
    trainer = tiny_trainer(
        tiny_config(tiny_llama, rows, tmp_path, "model.lora=null", "train.max_steps=2", "train.learning_rate=0.01")
    )
    assert all(p.requires_grad for p in trainer.model.parameters()) and not hasattr(trainer.model, "peft_config")
    before = adapter_weights(trainer.model)
    trainer.train()
    after = adapter_weights(trainer.model)
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_the_skeleton_has_the_models_layers_and_no_weights(tiny_llama, tiny_phi3):
    model = skeleton(str(tiny_llama))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert linear_layers(model) == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    ]
    assert linear_layers(skeleton(str(tiny_phi3))) == ["o_proj", "qkv_proj", "gate_up_proj", "down_proj", "lm_head"]


# --- A trained adapter --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_phi3, tmp_path):
    """A folder with an adapter whose effect is large."""
    model = HFTrain(str(tiny_phi3), lora=LORA).model
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def test_a_trained_adapter_is_merged_before_the_new_one(tiny_phi3, trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(20, 60)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny_phi3).eval()
    with torch.no_grad():
        untouched = plain(ids).logits
        expected = PeftModel.from_pretrained(plain, trained).eval()(ids).logits
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", ".*peft_config.*"
            )  # PEFT warns where it takes the new adapter for a second one
            loaded = HFTrain(
                str(tiny_phi3), lora={**LORA, "target_modules": ["down_proj"]}, trained_adapter=str(trained)
            )
        found = loaded.model.eval()(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (untouched - expected).abs().max() > 0.01
    assert list(loaded.model.peft_config) == ["default"]
    assert adapted(loaded.model) == {"0.mlp.down_proj", "1.mlp.down_proj"}


# --- The prompt's keys in model -----------------------------------------------------------------------------------


def test_prompt_keys_can_be_read_off_the_object(tiny_llama, rows, tmp_path):
    generation = {"do_sample": True, "stop_strings": "${x}"}  # and no interpolation is made of it
    keys = ["model.instruction_in_prompt=true", "model.max_sequence_len=77", "model.over_length=cut_end"]
    loaded = load_model(tiny_config(tiny_llama, rows, tmp_path, *keys, override("model.generation", generation)))
    names = ("completion_start", "instruction_in_prompt", "max_sequence_len", "over_length", "generation")
    assert [getattr(loaded, name) for name in names] == [MARKER, True, 77, "cut_end", generation]


# --- Tokenizer and embedding --------------------------------------------------------------------------------------


def test_ids_beyond_the_embedding_are_found_before_training(tmp_path, write_rows):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer("digits", "chatml")
    small = LlamaConfig(
        vocab_size=len(tokenizer) - 1, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "small"
    LlamaForCausalLM(small).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    harmless, harmful = {"prompt": "Rome?", "answers": "Yes."}, {"prompt": f"Rome {last}?", "answers": "Yes."}

    def build(*overrides):
        return tiny_trainer(tiny_config(folder, tmp_path / "rows.jsonl", tmp_path / "out", *overrides))

    write_rows([harmless, harmless])
    assert build().train_dataset.num_rows == 2  # a tokenizer may have more tokens than the rows use
    write_rows([harmless], "dev.jsonl")
    write_rows([harmful], "bad.jsonl")
    message = rf"token id {len(tokenizer) - 1}, but the model's embedding has {len(tokenizer) - 1} rows"
    with pytest.raises(ConfigError, match=message):
        build(override("data_file", str(tmp_path / "bad.jsonl")))
    with pytest.raises(ConfigError, match=message):
        build(override("dev_split", str(tmp_path / "bad.jsonl")))


def test_a_saved_full_model_loads_as_a_model(tiny_llama, rows, tmp_path):
    cfg = tiny_config(
        tiny_llama, rows, tmp_path / "out", "model.lora=null", "train.max_steps=1", "train.save_strategy=no"
    )
    folder = ragfit.train(trainer := tiny_trainer(cfg))
    again = HFTrain(str(folder), lora={**LORA, "target_modules": ["q_proj"]})
    found = load_file(folder / "model.safetensors")
    assert found.keys() and torch.equal(again.model.get_base_model().lm_head.weight, trainer.model.lm_head.weight)


def test_a_look_at_the_dev_loss_leaves_4bit_gradients_alone(tmp_path):
    """bitsandbytes packs 4-bit weights at the first evaluation on a CPU, and its backward pass cannot read them then."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer("digits").save_pretrained(tmp_path)
    targets = ["q_proj", "up_proj"]
    model = HFTrain(
        str(tmp_path), load_in_4bit=True, lora=LORA | {"target_modules": targets, "init_lora_weights": False}
    ).model
    ids = torch.arange(40).reshape(1, -1)

    def gradient():
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(gradient(), before)
