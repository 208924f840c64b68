"""The model is the one it is said to be: base, tuned, reloaded and merged agree, or training is refused beforehand."""

import copy
import dataclasses
import functools
import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file, save_file
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import ragfit
from ragfit.errors import ConfigError, RagfitError
from ragfit.models import fingerprint
from ragfit.models.adapter import check_lora, load_adapter, merge_adapter, put_new_adapter
from ragfit.models.hf import HFTrain, skeleton
from ragfit.runs.merge import merge_checkpoint

ROWS = [[5, 9, 12, 33, 7, 8, 21, 40, 2, 63, 17, 3]]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
EMBEDDINGS = ["q_proj", "embed_tokens"]

# Of each of PEFT's fields values that matter, and how it is refused (None: base, tuned, reloaded and merged agree).
FIELDS = {
    "r": [(2, None)],
    "lora_alpha": [(3, None)],
    "lora_dropout": [(0.3, None)],
    "target_modules": [("all-linear", None), (EMBEDDINGS, None), (["lm_head"], None), (["embed_tokens", "lm_head"], None)],
    "exclude_modules": [(["v_proj"], None)],
    "bias": [("all", "would not be its base"), ("lora_only", "would not be its base")],
    "use_rslora": [(True, None)],
    "use_dora": [(True, None)],
    "modules_to_save": [(["lm_head"], None), (["embed_tokens"], None), (["norm"], None)],
    "init_lora_weights": [
        *((kind, None) for kind in (False, "gaussian", "orthogonal", "mica")),
        *((kind, "would not be its base") for kind in ("pissa", "pissa_niter_4", "olora")),
        ("loftq", "must be specified"), ("corda", "please run"),
        *((kind, "needs a pass over data") for kind in ("eva", "lora_ga")),
    ],
    "layers_to_transform": [([1], None)],
    "layers_pattern": [("layers", "layers_to_transform")],
    "rank_pattern": [({"q_proj": 2}, None)],
    "alpha_pattern": [({"q_proj": 2}, None)],
    "trainable_token_indices": [],  # by whether the embeddings are tied, below
    "target_parameters": [(["mlp.gate_proj.weight"], None)],
    "ensure_weight_tying": [(True, None)],
    "lora_bias": [(True, None)],
    "use_bdlora": [({"target_modules_bd_a": ["q_proj", "v_proj"], "nblocks": 2}, None)],
    "velora_config": [({}, None)],
    "monteclora_config": [({}, None)],
    "kasa_config": [({}, "would not be its base")],
    "arrow_config": [({}, "NoneType")],
    "layer_replication": [([[0, 1], [0, 1]], "would not be its base")],
    "alora_invocation_tokens": [([33, 7], "does not support merging")],
    "megatron_config": [({"a": 1}, "megatron")],
    "runtime_config": [({"ephemeral_gpu_offload": True}, "ephemeral_gpu_offload")],
    # Of GPTQ alone; where they are given without the initialization they belong to, PEFT leaves them out.
    "use_qalora": [(True, None)],
    "qalora_group_size": [(4, None)],
    "loftq_config": [({"loftq_bits": 4}, None)],
    **{key: [({}, None)] for key in ("eva_config", "corda_config", "lora_ga_config")},
    # What only says something of the adapter.
    "task_type": [("SEQ_CLS", None), (None, None)],
    "peft_type": [("IA3", None)],
    "auto_mapping": [({"base_model_class": "x", "parent_library": "y"}, None)],
    "peft_version": [("0.1", None)],
    "base_model_name_or_path": [("nowhere", None)],
    "revision": [("x", None)],
    "inference_mode": [(True, None)],
    "fan_in_fan_out": [(True, None)],
    "megatron_core": [("x", None)],
}  # fmt: skip
MORE = [  # two that belong together
    ({"ensure_weight_tying": True, "target_modules": EMBEDDINGS}, None),
    ({"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}, None),
    ({"use_dora": True, "target_modules": ["embed_tokens"]}, None),
    ({"lora_bias": True, "target_modules": ["o_proj"]}, "base layer has no bias"),
]
CASES = [({key: value}, refused) for key, cases in FIELDS.items() for value, refused in cases] + MORE
# On a model with tied embeddings; where they matter, on one without as well.
OF_EMBEDDINGS = {"target_modules", "bias", "modules_to_save", "ensure_weight_tying"}
TOKENS, OF_HEAD = [{"trainable_token_indices": one} for one in ([5, 9], {"lm_head": [5]})], "tokens of the LM head too"
CASES = [(True, *case) for case in CASES] + [(False, *case) for case in CASES if OF_EMBEDDINGS & case[0].keys()]
CASES += [(True, keys, OF_HEAD) for keys in TOKENS] + [(False, TOKENS[0], None), (False, TOKENS[1], OF_HEAD)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models[tied]`: the folder of a tiny model with biases, whose weights are large enough to matter."""
    return {tied: make_model(tied, tmp_path_factory.mktemp("model")) for tied in (True, False)}


def make_model(tied, folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=tied, **sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 or name.endswith("bias"):
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


read = functools.cache(AutoModelForCausalLM.from_pretrained)


def load(folder):
    return copy.deepcopy(read(folder))


def changed(model, by=0.3):
    """The model as if it had been trained."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw) * by)
    return model


def test_the_table_has_every_field_of_peft():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(LoraConfig)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tied", "keys", "refused"), CASES, ids=str)
def test_base_tuned_reloaded_and_merged_agree_or_it_is_refused(tied, keys, refused, models, tmp_path):
    base, lora = models[tied], LORA | keys
    before = fingerprint.measure(load(base), ROWS)
    if refused:
        with pytest.raises(Exception, match=refused):
            check_lora(skeleton(str(base)), lora)
            put_new_adapter(load(base), lora)
        return
    check_lora(skeleton(str(base)), lora)
    tuned = changed(put_new_adapter(load(base), lora))
    tuned.save_pretrained(tmp_path)
    fingerprint.write(tmp_path, tuned, ROWS, [])
    kept = json.loads((tmp_path / fingerprint.FILE).read_text())
    assert kept["base"] == before and fingerprint.apart(kept["base"], kept["tuned"]) > 0.1
    reloaded = load_adapter(load(base), tmp_path)
    fingerprint.check(tmp_path, reloaded, "base")
    fingerprint.check(tmp_path, reloaded, "tuned")
    merge_adapter(load(base), tmp_path).save_pretrained(tmp_path / "merged")
    fingerprint.check(tmp_path, load(tmp_path / "merged"), "merged")


def test_another_kind_of_adapter_needs_no_branch(models, tmp_path):
    base = models[True]
    settings = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    tuned = changed(get_peft_model(load(base), settings))
    tuned.save_pretrained(tmp_path)
    fingerprint.write(tmp_path, tuned, ROWS, [])
    merge_adapter(load(base), tmp_path)  # compares


# --- What a fingerprint finds ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tiny_llama, tmp_path_factory):
    """A folder with an adapter and its fingerprint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tuned = changed(HFTrain(str(tiny_llama), lora=LORA).model)
    tuned.save_pretrained(folder)
    fingerprint.write(folder, tuned, [list(range(3, 40)), list(range(40, 90))], [2])
    return folder


def scaled(weights, by=2.0):
    return {name: weight * by for name, weight in weights.items()}


def test_another_base_and_another_adapter_are_told_apart(checkpoint, tiny_llama, tmp_path):
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    save_file(scaled(load_file(other / "model.safetensors")), other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"^model.trained_adapter: the base model is not .* by \d.* explains 0.00"):
        merge_adapter(load(other), checkpoint)
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = damaged / "adapter_model.safetensors"
    save_file(scaled(load_file(weights)), weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="^checkpoint: the merged model is not the one that was trained"):
        merge_adapter(load(tiny_llama), damaged)
    model = load_adapter(load(tiny_llama), damaged)
    fingerprint.check(damaged, model, "base")
    with pytest.raises(ConfigError, match="^checkpoint: the base model with this adapter is not the model that was"):
        fingerprint.check(damaged, model, "tuned")
    (damaged / fingerprint.FILE).unlink()  # as the message says
    merge_adapter(load(tiny_llama), damaged)


@pytest.mark.parametrize("loading", [
    {"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"attn_implementation": "eager"},
    {"load_in_8bit": True}, {"load_in_4bit": True},
], ids=str)  # fmt: skip
def test_rounding_is_no_difference(loading, checkpoint, tiny_llama):
    model = load_adapter(HFTrain(str(tiny_llama), lora=LORA, **loading).model, checkpoint, "checkpoint", "tuned")
    model.set_adapter("tuned")
    fingerprint.check(checkpoint, model, "base")
    fingerprint.check(checkpoint, model, "tuned")
    HFTrain(str(tiny_llama), lora=LORA, trained_adapter=str(checkpoint), **loading)  # merges, and compares


def test_a_smaller_model_and_a_damaged_file(checkpoint, tiny_llama, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    kept = json.loads((folder / fingerprint.FILE).read_text())
    (folder / fingerprint.FILE).write_text(json.dumps(kept | {"rows": [[9999999, 1]]}))
    with pytest.raises(ConfigError, match="^checkpoint: the base model with this adapter is not .* off by inf"):
        fingerprint.check(folder, load(tiny_llama), "tuned")
    for damaged, kind in (("{", json.JSONDecodeError), ("{}", KeyError)):
        (folder / fingerprint.FILE).write_text(damaged)
        for what in fingerprint.WRONG:
            with pytest.raises(kind) as caught:
                fingerprint.check(folder, load(tiny_llama), what)
            [note] = caught.value.__notes__
            assert "cannot be compared with this model" in note and "or delete" in note


def test_a_measurement_that_fails_leaves_the_model_as_it_was(tiny_llama):
    """Out of memory, say: a training that goes on is in training mode, with the casts that it had."""
    model = put_new_adapter(load(tiny_llama), LORA).train()
    layers = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    with disable_input_dtype_casting(model):
        with pytest.raises(IndexError):
            fingerprint.measure(model, [[10**6]])
        assert layers and not any(module.cast_input_dtype_enabled for module in layers)
    assert all(module.training for module in model.modules())


# --- A run ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_one_and_where_it_is_loaded_again_it_holds(finished_run, tiny_llama, tmp_path):
    folder = finished_run / "checkpoint"
    kept = json.loads((folder / fingerprint.FILE).read_text())
    assert len(kept["rows"]) == 2 and max(map(len, kept["rows"])) <= fingerprint.LENGTH
    assert fingerprint.apart(kept["base"], kept["tuned"]) > fingerprint.TOLERANCE["float32"]
    again = ragfit.load_checkpoint(folder)
    fingerprint.check(folder, again.model, "base")
    fingerprint.check(folder, again.model, "tuned")
    fingerprint.check(folder, load(merge_checkpoint(folder, tmp_path / "merged")), "merged")
    assert HFTrain(str(tiny_llama), lora=LORA, trained_adapter=str(folder)).model is not None


def test_weights_that_are_no_numbers_are_not_saved(tiny_llama, write_rows, tmp_path):
    trainer = tiny_trainer(tiny_config(tiny_llama, write_rows(question_rows(4)), tmp_path / "out"))
    with torch.no_grad():
        next(weight for weight in trainer.model.parameters() if weight.requires_grad)[0, 0] = float("nan")
    from ragfit.runs.save import save_checkpoint

    with pytest.raises(RagfitError, match=r"lora_A.* holds NaN or infinity.*nothing is saved as .*checkpoint"):
        save_checkpoint(trainer)
    assert not (tmp_path / "out" / "checkpoint").exists()
