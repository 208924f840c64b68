"""Memory on a GPU: the preflight's estimates against what torch has taken, and what is left behind."""

import gc
import json

import pytest
import torch
from tiny_runs import question_rows, tiny_trainer

import ragfit
from gpu.on_device import BF16, FLOAT32, FOUR_BITS, documented, make_phi3, only_cuda
from ragfit.errors import RagfitError

pytestmark = only_cuda("torch.cuda says what was taken at most")

WITHOUT = "train.gradient_checkpointing=false"
KINDS = {"as documented": [], "4 bits": FOUR_BITS, "bf16": BF16}
KINDS |= {f"{name}, no checkpointing": [*keys, WITHOUT] for name, keys in (KINDS | {"float32": FLOAT32}).items()}
KINDS["bf16, all weights"] = [*BF16, "model.lora=null"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Phi-3 of 110 million weights, beside which cuBLAS's own 50 MB are little, and eight rows of about 1,000 tokens."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    make_phi3(folder / "model", num_attention_heads=16, num_key_value_heads=16, **sizes)
    rows = [row | {"prompt": row["prompt"] + "no idea. " * 250} for row in question_rows(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def free():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_the_estimate_holds_to_a_factor_of_two(large, tmp_path, keys):
    from ragfit.training.preflight import memory_estimate

    before = free()
    more = ["train.max_steps=2", "train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=1"]
    cfg = documented(large / "model", large / "rows.jsonl", tmp_path, *more, "train.save_strategy=no", *keys)
    trainer = tiny_trainer(cfg)
    free()
    trainer.train()
    estimated, held = memory_estimate(trainer)[0], torch.cuda.max_memory_allocated() - before
    print(f"estimated {estimated / 2**20:.0f} MiB, taken {held / 2**20:.0f} MiB")
    assert held > 2**26 and 0.5 < estimated / held < 2


@pytest.mark.parametrize("keys", [FLOAT32, BF16], ids=["float32", "bfloat16"])
def test_the_logits_are_never_there_as_a_whole(tmp_path, keys):
    """Rows that are nearly all labels, and 131,072 ids: one copy of their logits would be 500 MiB in float32."""
    ids, rows = 131072, tmp_path / "rows.jsonl"
    answer = " ".join(f"The answer is {n}." for n in range(200))
    rows.write_text((json.dumps({"prompt": "Count.", "answers": [answer]}) + "\n") * 2)
    model = make_phi3(tmp_path / "model", vocabulary=ids, hidden_size=64)
    more = ["train.max_steps=1", "dev_split=1", "train.gradient_accumulation_steps=1"]
    trainer = tiny_trainer(documented(model, rows, tmp_path / "out", *keys, *more))
    labels = trainer.prepared.report.train.loss_tokens
    whole = labels * ids * trainer.model.dtype.itemsize
    assert labels > 800
    for work in (trainer.train, lambda: ragfit.dev_loss(trainer)):
        before = free()
        work()
        taken = torch.cuda.max_memory_allocated() - before
        assert taken < whole, f"{taken / 2**20:.0f} MiB, and the logits are {whole / 2**20:.0f} MiB"


def test_where_memory_gives_out_the_key_is_named_and_the_memory_is_free_again(large, tmp_path):
    before = free()
    more = [*FLOAT32, WITHOUT, "train.max_steps=1", "train.per_device_train_batch_size=8"]
    trainer = tiny_trainer(documented(large / "model", large / "rows.jsonl", tmp_path, *more))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(RagfitError, match="out of memory.*Lower train.per_device_train_batch_size"):
            ragfit.train(trainer)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    held = sum(weight.nbytes for weight in trainer.model.parameters())
    assert free() - before < 1.5 * held
