"""Loading models: real Llama and Phi-3 architectures made tiny, real bitsandbytes on the CPU, real PEFT."""

import json
import shutil
import warnings

import bitsandbytes
import pytest
import torch
from conftest import make_tokenizer
from peft import PeftModel
from tiny_runs import MARKER, adapter_weights, one_thread, question_rows, tiny_config, tiny_trainer, with_code  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import ragfit
from ragfit.config.load import load_config
from ragfit.errors import ConfigError
from ragfit.models.hf import HFTrain, bf16_is_fast, choose_dtype
from ragfit.models.load import load_model

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj"], "task_type": "CAUSAL_LM"}
AUTO = "auto" if torch.cuda.is_available() or bf16_is_fast() else torch.float32


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(8))


@pytest.fixture
def broken_phi3(tiny_phi3, tmp_path):
    """A model whose weights cannot be read: had they been, the error would be another one."""
    folder = shutil.copytree(tiny_phi3, tmp_path / "broken-phi3")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


class TwoAttributes:
    """What `model._target_` asks of a class: `model` and `tokenizer`."""

    def __init__(self, folder, completion_start="", scale=1.0, nested=None):
        from transformers import AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.seen = {"completion_start": completion_start, "scale": scale, "nested": nested}


# --- _target_ -----------------------------------------------------------------------------------------------------


def test_another_class_is_made_from_the_keys_of_model_and_trains(tmp_path, tiny_llama, rows):
    model = {"_target_": f"{__name__}.TwoAttributes", "folder": str(tiny_llama), "completion_start": MARKER}
    model |= {"scale": 1e-4, "nested": {"a": [1]}}
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "learning_rate": 1e-2, "bf16": False}
    data = {"data_file": str(rows), "input_key": "prompt", "output_key": "answers"}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"model": model, "train": train, **data}))
    cfg = load_config(path)
    loaded = load_model(cfg)
    assert loaded.seen == {"completion_start": MARKER, "scale": 1e-4, "nested": {"a": [1]}}
    trainer = ragfit.build_trainer(cfg, ragfit.prepare(cfg, tokenizer=make_tokenizer("digits", "chatml")))
    before = adapter_weights(trainer.model)
    trainer.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in adapter_weights(trainer.model).items())


@pytest.mark.parametrize("target", ["ragfit.models.hf.HFTrian", "no.such.module.Model", "Model"])
def test_there_is_no_such_class(tmp_path, target):
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"model": {"_target_": target}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^model._target_: there is no {target}: "):
        load_model(load_config(path))


# --- What is loaded -----------------------------------------------------------------------------------------------


def test_no_such_model_is_told_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match="^model.model_name_or_path: no model could be loaded from 'no/such-model'"):
        HFTrain("no/such-model", lora=LORA)
    with pytest.raises(ValueError, match=f"Unrecognized model in {tmp_path}"):
        HFTrain(str(tmp_path), lora=LORA)


def test_a_relative_folder_and_the_keys_of_the_prompt(tiny_phi3, monkeypatch):
    monkeypatch.chdir(tiny_phi3.parent)
    keys = {"generation": {"do_sample": True}, "completion_start": "x", "instruction_in_prompt": True}
    keys |= {"max_sequence_len": 77, "over_length": "cut_end", "chat_template_kwargs": {"a": 1}}
    loaded = HFTrain(tiny_phi3.name, lora=LORA, **keys)
    assert loaded.model.config.model_type == "phi3" and len(loaded.tokenizer) == loaded.model.config.vocab_size
    assert {name: getattr(loaded, name) for name in keys} == keys
    assert loaded.model.config.use_cache is False


def test_a_pad_token_is_made_where_there_is_none(tmp_path, tiny_llama):
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    make_tokenizer("digits", "chatml", pad_token=None).save_pretrained(tmp_path)
    tokenizer = HFTrain(str(tmp_path)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_weights_that_lack_a_tensor(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "more")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match="^model.model_name_or_path: its weights lack model.layers.2.*random"):
        HFTrain(str(folder))


def test_trust_remote_code_is_off_unless_set(tmp_path, tiny_llama):
    """A model with code of its own: the code leaves a file behind when it runs."""
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    with_code(tmp_path, tmp_path / "ran")
    with pytest.raises(ValueError, match="custom code"):
        HFTrain(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    loaded = HFTrain(str(tmp_path), trust_remote_code=True)
    assert (tmp_path / "ran").exists() and type(loaded.model).__name__ == "OwnModel"


def test_weights_have_the_type_asked_for(tiny_phi3):
    assert choose_dtype(None) == choose_dtype("auto") == AUTO and choose_dtype("torch.float16") == torch.float16
    for key in ("dtype", "torch_dtype"):
        model = HFTrain(str(tiny_phi3), lora=LORA, **{key: "bfloat16"}).model
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}  # the adapter stays exact
    with pytest.raises(ConfigError, match="^model.dtype: 'int8' is not a floating-point type"):
        HFTrain(str(tiny_phi3), dtype="int8")


# --- Quantization -------------------------------------------------------------------------------------------------

QUANTIZED = {
    "8-bit": (["model.load_in_8bit=true"], "Linear8bitLt"),
    "4-bit": (["model.load_in_4bit=true"], "Linear4bit"),
    "fp4": (["model.quantization_config={load_in_4bit: true, bnb_4bit_quant_type: fp4}"], "Linear4bit"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_layers_train_with_the_paged_optimizer(name, tiny_phi3, rows, tmp_path):
    keys, layer = QUANTIZED[name]
    extra = ["train.optim=paged_adamw_8bit", "train.max_steps=2", "train.learning_rate=0.01", "train.warmup_ratio=0"]
    trainer = tiny_trainer(tiny_config(tiny_phi3, rows, tmp_path, *keys, *extra))
    model, kind = trainer.model.get_base_model(), getattr(bitsandbytes.nn, layer)
    quantized = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module) is kind}
    # Every linear layer of the blocks; those with an adapter are called base_layer. The LM head stays whole.
    assert quantized == {"base_layer", "gate_up_proj", "down_proj"} and type(model.lm_head) is torch.nn.Linear
    if name == "fp4":
        assert model.config.quantization_config.bnb_4bit_quant_type == "fp4"
    before = adapter_weights(trainer.model)
    frozen = model.model.layers[0].self_attn.qkv_proj.base_layer.weight.data.clone()
    trainer.train()
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__module__.startswith("bitsandbytes")
    after = adapter_weights(trainer.model)
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(model.model.layers[0].self_attn.qkv_proj.base_layer.weight.data, frozen)


def test_quantization_that_cannot_be(tiny_phi3):
    for keys in ({"load_in_8bit": True}, {"quantization_config": {"load_in_4bit": True}}):
        with pytest.raises(ConfigError, match="^model.lora: it is empty, but quantized weights cannot be trained"):
            HFTrain("/nothing/is/loaded", lora=None, **keys)
    with pytest.raises(ValueError, match="load_in_4bit and load_in_8bit are both True"):
        HFTrain(str(tiny_phi3), lora=LORA, load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ConfigError, match="^model.quantization_config: it has no load_in_4bits. The keys are .*load"):
        HFTrain(str(tiny_phi3), lora=LORA, quantization_config={"load_in_4bits": True})


def test_a_look_at_the_dev_loss_leaves_4bit_gradients_alone(tmp_path):
    """bitsandbytes packs 4-bit weights at the first evaluation on a CPU, and its backward pass cannot read them then."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).save_pretrained(tmp_path)
    make_tokenizer("digits").save_pretrained(tmp_path)
    lora = LORA | {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    model = HFTrain(str(tmp_path), load_in_4bit=True, lora=lora).model
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


# --- Adapters -----------------------------------------------------------------------------------------------------


def test_lora_keys_reach_peft_and_the_model(tiny_phi3):
    keys = {"r": 2, "use_rslora": True, "lora_dropout": 0.5, "layers_to_transform": [1]}
    model = HFTrain(str(tiny_phi3), lora={**LORA, **keys, "target_modules": ["qkv_proj", "down_proj"]}).model
    adapted = {name: part for name, part in model.named_modules() if hasattr(part, "lora_A")}
    assert {name.partition("layers.")[2] for name in adapted} == {"1.self_attn.qkv_proj", "1.mlp.down_proj"}
    layer = adapted["base_model.model.model.layers.1.self_attn.qkv_proj"]
    assert layer.lora_A["default"].weight.shape == (2, 16) and layer.scaling["default"] == 8 / 2**0.5
    assert layer.lora_dropout["default"].p == 0.5


@pytest.mark.parametrize(("key", "there"), [("target_modules", "qkv_proj"), ("modules_to_save", "lm_head")])
def test_names_that_match_nothing_list_the_linear_layers(broken_phi3, key, there):
    said = (
        f"^model.lora.{key}: 'nope' matches no layer of this model. Its linear layers are o_proj, qkv_proj, gate_up_p"
    )
    with pytest.raises(ConfigError, match=said):
        HFTrain(str(broken_phi3), lora={**LORA, key: [there, "nope"]})


@pytest.mark.parametrize(("keys", "kind"), [({"rank": 3}, TypeError), ({"target_modules": "q_proj"}, ValueError)])
def test_what_peft_refuses_is_said_before_the_weights_are_read(broken_phi3, keys, kind):
    with pytest.raises(kind, match="rank|q_proj") as caught:
        HFTrain(str(broken_phi3), lora={**LORA, **keys})
    assert "model.lora" in caught.value.__notes__[0]


def test_without_lora_all_weights_are_trained_and_saved_as_a_model(tiny_llama, rows, tmp_path):
    keys = ["model.lora=null", "train.max_steps=2", "train.learning_rate=0.01", "train.save_strategy=no"]
    trainer = tiny_trainer(tiny_config(tiny_llama, rows, tmp_path / "out", *keys))
    assert all(p.requires_grad for p in trainer.model.parameters()) and not hasattr(trainer.model, "peft_config")
    before = adapter_weights(trainer.model)
    folder = ragfit.train(trainer)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in adapter_weights(trainer.model).items())
    again = HFTrain(str(folder), lora={**LORA, "target_modules": ["q_proj"]}).model.get_base_model()
    assert torch.equal(again.lm_head.weight, trainer.model.lm_head.weight)
    assert set(json.loads((folder / "fingerprint.json").read_text())) == {"rows", "tuned", "ends"}


def test_a_trained_adapter_is_merged_before_the_new_one(tiny_phi3, tmp_path):
    model = HFTrain(str(tiny_phi3), lora=LORA).model
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "trained")
    ids = torch.arange(20, 60)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny_phi3).eval()
    with torch.no_grad():
        untouched = plain(ids).logits
        expected = PeftModel.from_pretrained(plain, tmp_path / "trained").eval()(ids).logits
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*peft_config.*")  # PEFT's, of a second adapter
            lora = {**LORA, "target_modules": ["down_proj"]}
            loaded = HFTrain(str(tiny_phi3), lora=lora, trained_adapter=str(tmp_path / "trained"))
        found = loaded.model.eval()(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (untouched - expected).abs().max() > 0.01
    assert list(loaded.model.peft_config) == ["default"]
