"""Packed rows on a GPU: the loss and gradients of the rows alone, with each implementation of attention that is there."""

import pytest
import transformers
from tiny_runs import tiny_trainer

from gpu.on_device import (
    BF16,
    EXACT,
    FLOAT32,
    FOUR_BITS,
    IN_8_BITS,
    ON_CPU,
    ONE_STEP,
    PLAIN,
    ROUNDED,
    check_step,
    make_phi3,
)  # fmt: skip
from ragfit.errors import ConfigError
from ragfit.training.packing import TOLERANCE, difference

PACKED = ["train.packing=true", "train.max_length=300"]
WAYS = {  # attention, overrides, and how far loss and gradients may be
    "sdpa": ("sdpa", FLOAT32, EXACT),
    "sdpa, bf16 weights": ("sdpa", BF16, ROUNDED),
    "sdpa, 8 bits": ("sdpa", [], IN_8_BITS),
    "sdpa, 4 bits": ("sdpa", FOUR_BITS, ROUNDED),
    "flex": ("flex_attention", FLOAT32, EXACT),
    "flex, 8 bits": ("flex_attention", [], IN_8_BITS),
    "flash": ("flash_attention_2", BF16, ROUNDED),
    "flash, 8 bits": ("flash_attention_2", [], IN_8_BITS),
}


@pytest.mark.parametrize(("attention", "keys", "far"), WAYS.values(), ids=WAYS)
def test_packs_give_the_loss_and_gradients_of_their_rows(config, attention, keys, far):
    if attention == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
        pytest.skip("flash attention (flash_attn) is not installed, or there is no GPU for it")
    if attention == "flex_attention" and ON_CPU:
        pytest.skip("needs CUDA: on a CPU, torch's flex attention has no backward pass")
    trainer = tiny_trainer(config(*ONE_STEP, *PACKED, *keys, f"model.attn_implementation={attention}"))
    assert trainer.model.config._attn_implementation == attention
    assert 1 < len(trainer.train_dataset) < len(trainer.prepared.train)
    check_step(trainer, *far)


@pytest.mark.parametrize("keys", [[], FOUR_BITS, BF16], ids=["8 bits", "4 bits", "bf16"])
def test_rounding_in_many_layers_is_not_taken_for_rows_that_see_each_other(config, tmp_path, keys):
    """32 layers, as Phi-3-mini has: what is rounded in the first ones grows on its way."""
    deep = make_phi3(tmp_path / "deep", num_hidden_layers=32)
    far = difference(tiny_trainer(config(*PACKED, *keys, model=deep)))
    print(f"packed and side by side differ by {far:.2g}")
    assert far < TOLERANCE / 2


def test_rows_that_see_each_other_are_refused(config, tmp_path):
    """OPT takes its positions from the attention mask, which packs have not."""
    make_phi3(tmp_path)  # for its tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    shape = {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    cfg = config(*PLAIN, *PACKED, "model.lora.target_modules=[q_proj]", model=tmp_path)
    with pytest.raises(ConfigError, match="^train.packing: OPTForCausalLM with attn_implementation=sdpa does not keep"):
        tiny_trainer(cfg)
