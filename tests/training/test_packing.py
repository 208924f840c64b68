"""Packed rows: none is lost, cut or given a label, none sees another, and a run learns what it would unpacked."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny_runs import adapter_weights, losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

import ragfit
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.errors import ConfigError
from ragfit.training.cpu import BY_ROW, RowMasks
from ragfit.training.packing import COARSE, ROUNDING, difference, is_packed, token_counts, tolerance
from ragfit.training.trainer import RagfitTrainer

PACKED = "train.packing=true"
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {"head_dim": 8, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "llama": ("llama", {}), "phi3": ("phi3", {"sliding_window": 9}), "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma3": ("gemma3_text", GEMMA),
}  # fmt: skip


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows(17)))
    return path


@pytest.fixture
def config(tiny_llama, rows_file, tmp_path):
    def make(*overrides, model=tiny_llama):
        return tiny_config(model, rows_file, tmp_path / "out", "instruction=null", "train.save_strategy=no", *overrides)

    return make


@pytest.fixture
def trainer_of(config):
    """A packed trainer of a tiny model of some architecture, without reading weights from anywhere."""

    def make(kind, shape, *overrides, dtype=torch.float32, std=0.1, lora=True):
        from ragfit.training.arguments import training_arguments

        cfg = config(PACKED, "model.max_sequence_len=200", *overrides)
        prepared = ragfit.prepare(cfg)
        torch.manual_seed(0)
        shape = transformers.AutoConfig.for_model(kind, vocab_size=len(prepared.tokenizer), **shape)
        model = transformers.AutoModelForCausalLM.from_config(shape)
        for name, weight in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(weight, std=std)
        if lora:
            model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        args = training_arguments(cfg, prepared)
        return RagfitTrainer(cfg, prepared, SimpleNamespace(model=model.to(dtype)), args)

    return make


def rows_of(packs):
    """The rows in some packs: (ids, labels)."""
    for pack in packs:
        start = 0
        for length in pack["seq_lengths"]:
            yield pack["input_ids"][start : start + length], pack["labels"][start : start + length]
            start += length


# --- The rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 200, 1500, None])
def test_every_row_is_in_one_pack_whole_and_with_its_labels(config, length):
    keys = [] if length is None else [f"train.max_length={length}"]
    trainer = tiny_trainer(config(PACKED, "model.max_sequence_len=null", *keys))
    prepared, packs = trainer.prepared.train, trainer.train_dataset
    longest = max(map(len, prepared["input_ids"]))
    assert max(map(len, packs["input_ids"])) <= (length or longest) and len(packs) < len(prepared)
    expected = sorted(zip(prepared["input_ids"], prepared["labels"], strict=True))
    assert sorted(rows_of(packs)) == expected
    assert list(token_counts(packs)) == [
        (row["labels"].count(-100), len(row["labels"]) - row["labels"].count(-100)) for row in packs
    ]
    seen = list(trainer.get_train_dataloader())
    assert sum(int((batch["labels"] != -100).sum()) for batch in seen) == trainer.prepared.report.train.loss_tokens
    assert not any("attention_mask" in batch for batch in seen)


def test_the_length_of_a_pack(config):
    both = config(PACKED, "model.max_sequence_len=100", "train.max_length=300")
    assert both.model.max_sequence_len == 100 and both.train.max_length == 300
    other = config(PACKED, "train.max_length=300", "model.max_sequence_len=100")
    assert other.model.max_sequence_len == 100 and other.train.max_length == 300
    unpacked = config("model.max_sequence_len=100", "train.max_length=300")
    assert unpacked.model.max_sequence_len == 300 and "max_length" not in unpacked.train
    longest = max(map(len, tiny_trainer(both).train_dataset["input_ids"]))
    assert 100 < longest <= 300


def test_a_row_longer_than_a_pack_is_refused_before_the_model_is_loaded(config):
    cfg = config(PACKED, "train.max_length=40", "model.model_name_or_path=no/such-model")
    cfg.model.model_name_or_path = config().model.model_name_or_path
    prepared = ragfit.prepare(cfg)
    longest = max(map(len, prepared.train["input_ids"]))
    cfg.model.model_name_or_path = "no/such-model"
    with pytest.raises(ConfigError, match=f"^train.max_length: .* 40 tokens .* longest train row has {longest}, .*Set"):
        ragfit.build_trainer(cfg, prepared)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([PACKED, "train.group_by_length=true"], "train.train_sampling_strategy: group_by_length .* packs"),
        ([PACKED, "train.train_sampling_strategy=batch_rebalance"], "train.train_sampling_strategy: batch_rebalance"),
        ([PACKED, "train.packing_strategy=wrapped"], "train.packing_strategy: wrapped splits rows"),
        ([PACKED, "train.packing_strategy=bfd_split"], "train.packing_strategy: bfd_split splits rows"),
    ],
)
def test_what_goes_against_packing_is_refused(config, keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(config(*keys))


@pytest.mark.slow
def test_evaluation_is_unpacked_unless_asked_for(config):
    plain = tiny_trainer(config(PACKED, "dev_split=5"))
    assert is_packed(plain.train_dataset) and plain.eval_dataset is plain.prepared.dev
    assert next(iter(plain.get_eval_dataloader()))["attention_mask"].shape[0] == 5
    both = tiny_trainer(config(PACKED, "dev_split=5", "train.eval_packing=true", "train.per_device_eval_batch_size=8"))
    assert is_packed(both.eval_dataset) and len(both.eval_dataset) < 5
    # One batch, so that the mean over batches is one over tokens.
    assert both.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)


def test_padding_free_lays_a_batch_end_to_end(config):
    keys = ("train.per_device_train_batch_size=4", "train.train_sampling_strategy=sequential")
    trainer, padded = tiny_trainer(config("train.padding_free=true", *keys)), tiny_trainer(config(*keys))
    assert len(trainer.train_dataset) == len(trainer.prepared.train)
    for flat, batch in zip(trainer.get_train_dataloader(), padded.get_train_dataloader(), strict=True):
        kept = batch["attention_mask"].bool()
        assert flat["input_ids"].tolist() == [batch["input_ids"][kept].tolist()]
        assert flat["labels"].tolist() == [batch["labels"][kept].tolist()]
        assert flat["position_ids"].tolist() == [[p for row in kept for p in range(int(row.sum()))]]


def test_the_first_token_of_a_row_has_no_label():
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]}]
    batch = DataCollatorForCompletionOnlyLM(pad_token_id=0, ignore_index=-9)(rows * 2)
    assert batch["labels"].tolist() == [[-9, 6, -9, 8, 9] * 2]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2] * 2]
    rounded = DataCollatorForCompletionOnlyLM(pad_token_id=0, pad_to_multiple_of=8)(rows)
    assert rounded["labels"].tolist() == [[-100, 6, -100, 8, 9, -100, -100, -100]]
    with pytest.raises(KeyError, match="labels"):  # a pack cannot be labelled afterwards
        DataCollatorForCompletionOnlyLM(pad_token_id=0)([{"input_ids": [5, 6], "seq_lengths": [2]}])


# --- What is learned --------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: w.grad.float().clone() for n, w in model.named_parameters() if w.grad is not None})


def epoch(trainer):
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    return losses(trainer), seen.steps, adapter_weights(trainer.model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_epoch_is_that_of_the_same_rows_padded(trainer_of, kind, dtype):
    """Two packs a batch, two batches a step; the second trainer is given each batch's rows unpacked, and SDPA."""
    name, shape = ARCHITECTURES[kind]
    keys = ("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2", "train.learning_rate=1e-2",
            "train.num_train_epochs=2", "train.optim=sgd", "train.max_grad_norm=100", "train.max_length=150")  # fmt: skip
    packed, padded = (trainer_of(name, SHAPE | shape, *keys, dtype=dtype) for _ in range(2))
    assert packed.model.config._attn_implementation == BY_ROW
    padded.model.get_base_model().set_attn_implementation("sdpa")
    collate, masks = padded.data_collator, []

    def unpacked(packs):
        batch = collate([{"input_ids": ids, "labels": labels} for ids, labels in rows_of(packs)])
        masks.append(batch["attention_mask"])
        return batch

    padded.data_collator = unpacked
    (packed_losses, packed_steps, packed_adapter), (padded_losses, padded_steps, padded_adapter) = map(
        epoch, (packed, padded)
    )
    assert len(packed_steps) == len(padded_steps) > 2 and any(not mask.all() for mask in masks)
    close = 1e-4 if dtype == torch.float32 else 0.03
    assert packed_losses == pytest.approx(padded_losses, rel=close)
    for one, other in zip(packed_steps, padded_steps, strict=True):
        assert one.keys() == other.keys() and len(one) > 4
        for name in one:
            assert (one[name] - other[name]).norm() <= close * other[name].norm(), name
    for name, weight in packed_adapter.items():
        assert torch.allclose(weight, padded_adapter[name], rtol=close, atol=close / 10), name


@pytest.mark.slow
def test_labels_are_counted_over_a_whole_step(trainer_of):
    """The loss of a step is the sum over its labels divided by their number, however packs fall into batches."""
    found = []
    for batches in (("1", "4"), ("2", "2"), ("4", "1")):
        keys = (f"train.per_device_train_batch_size={batches[0]}", f"train.gradient_accumulation_steps={batches[1]}",
                "train.train_sampling_strategy=sequential", "train.max_steps=1", "train.max_length=120")  # fmt: skip
        _, steps, _ = epoch(trainer_of("llama", SHAPE, *keys))
        found.append(torch.cat([gradient.flatten() for gradient in steps[0].values()]))
    for other in found[1:]:
        assert (other - found[0]).norm() <= 1e-5 * found[0].norm()


# --- Rows apart -------------------------------------------------------------------------------------------------------

LEAKS = {
    "state space": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "attention and state space": ("jamba", SHAPE | {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
                                                    "mamba_d_state": 4, "mamba_dt_rank": 4}),
    "refuses by itself": ("bamba", SHAPE | {
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}),
    "positions from the mask": ("opt", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                                        "num_attention_heads": 4, "word_embed_proj_dim": 16}),
    "alibi": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}  # fmt: skip


@pytest.mark.parametrize("std", [0.2, 0.02])
@pytest.mark.parametrize("kind", LEAKS)
def test_models_whose_rows_see_each_other_are_refused(trainer_of, kind, std):
    with pytest.raises(
        ConfigError, match="^train.packing: .*does not keep the rows of a pack apart: .* Remove train.p"
    ):
        trainer_of(*LEAKS[kind], std=std, lora=False)


def test_a_leak_is_found_on_the_trials_copy(config, tmp_path, tiny_tokenizer):
    shape = transformers.AutoConfig.for_model(
        "opt", vocab_size=len(tiny_tokenizer), **LEAKS["positions from the mask"][1]
    )
    transformers.OPTForCausalLM(shape).save_pretrained(tmp_path / "opt")
    tiny_tokenizer.save_pretrained(tmp_path / "opt")
    cfg = config(PACKED, model=tmp_path / "opt")
    prepared = ragfit.prepare(cfg)
    (tmp_path / "opt" / "model.safetensors").unlink()  # its weights are never read
    with pytest.raises(ConfigError, match="^train.packing: OPTForCausalLM with attn_implementation=sdpa does not keep"):
        ragfit.build_trainer(cfg, prepared)


def joined(module, query, key, value, attention_mask, **kwargs):
    """Attention in which the rows of a pack see each other."""
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


transformers.AttentionInterface.register("joined", joined)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["8", "4", "16"])
def test_rounding_in_thirty_layers_is_not_taken_for_rows_that_see_each_other(tmp_path, bits):
    """With SDPA over a mask, as on a GPU, in the demo's model."""
    keys = ["limit=8", "dev_split=null", PACKED, "+model.dtype=bfloat16", f"train.output_dir={tmp_path}"]
    cfg = ragfit.load_config("demo", keys + ([f"model.load_in_{bits}bit=true"] if bits != "16" else []))
    trainer = ragfit.build_trainer(cfg, ragfit.prepare(cfg))
    base = trainer.model.get_base_model()
    base.set_attn_implementation("sdpa")
    assert tolerance(trainer) == COARSE and 0 < difference(trainer) < COARSE / 2
    base.set_attn_implementation("joined")
    assert difference(trainer) > 2 * COARSE


def test_what_is_multiplied_in_a_shorter_type_may_differ_more(trainer_of):
    """As transformers sets `train.tf32`: torch's older question for it raises then."""
    trainer = trainer_of("llama", SHAPE)
    assert tolerance(trainer) == ROUNDING
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        assert tolerance(trainer) == COARSE
    finally:
        torch.backends.fp32_precision = before
    assert tolerance(trainer) == ROUNDING and tolerance(trainer_of("llama", SHAPE, dtype=torch.bfloat16)) == COARSE


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "learned positions"])
def test_looking_changes_nothing(trainer_of, kind):
    old = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    name, shape = ARCHITECTURES.get(kind, ("gpt2", old))
    trainer = trainer_of(name, shape if name == "gpt2" else SHAPE | shape)
    trainer.model.train()
    before, weights = torch.random.get_rng_state(), adapter_weights(trainer.model)
    assert difference(trainer) < 1e-6
    assert torch.equal(before, torch.random.get_rng_state()) and trainer.model.training
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert all(torch.equal(weight, weights[n]) for n, weight in trainer.model.named_parameters() if n in weights)


# --- Seen -------------------------------------------------------------------------------------------------------------


def test_the_preflight_says_what_packing_does(config):
    keys = (PACKED, "train.max_length=200", "train.per_device_train_batch_size=2")
    trainer = tiny_trainer(config(*keys))
    facts = {label: (value, note) for label, value, note in ragfit.preflight(trainer).items}
    rows, packs, tokens = 17, len(trainer.train_dataset), trainer.prepared.report.train.tokens
    assert facts["packing"] == (
        f"{rows} rows in {packs} packs",
        f"{rows / packs:.1f} a pack of 200 tokens, {tokens / packs / 200:.0%} full",
    )
    assert facts["padding"] == ("0.0%", "rows lie end to end")
    assert facts["steps"] == (
        f"{-(-packs // 4)}",
        f"2 packs × 2 accumulated a step, about {round(rows / packs * 4)} rows",
    )
    assert f"longest row {max(map(len, trainer.train_dataset['input_ids'])):,}" in facts["memory"][1]
    flat = tiny_trainer(config("train.padding_free=true", "train.pad_to_multiple_of=64"))
    facts = {label: (value, note) for label, value, note in ragfit.preflight(flat).items}
    seen = [batch["input_ids"].numel() for batch in flat.get_train_dataloader()]
    assert all(size % 64 == 0 for size in seen) and facts["padding"][0] == f"{1 - tokens / sum(seen):.1%}"
    assert facts["packing"] == ("each batch end to end", "train.padding_free")


def test_a_pack_is_seen_with_its_rows_boundaries_and_positions(config):
    trainer = tiny_trainer(config(PACKED, "train.max_length=200"))
    prepared, packs = trainer.prepared, trainer.train_dataset
    batch = trainer.data_collator([packs[0], packs[1]])
    view = ragfit.views.BatchView(prepared, batch)
    lengths = packs[0]["seq_lengths"] + packs[1]["seq_lengths"]
    assert [len(row.ids) for row in view.rows] == lengths and len(lengths) > 3
    assert [prepared.train[index]["input_ids"] for index in view.indices] == [row.ids for row in view.rows]
    assert all(row.positions == list(range(len(row.ids))) for row in view.rows)
    end = lengths[0] + lengths[1] - 1
    for text in (view.text(), view.html()):
        assert f"{lengths[0]}–{end}" in text and f"0–{lengths[1] - 1}" in text
    index = view.indices[1]
    tokens = ragfit.views.TokenView(prepared, index, batch=batch)
    assert tokens.ids == prepared.train[index]["input_ids"] and tokens.labels == prepared.train[index]["labels"]
    assert tokens.title == f"Tokens of train row {index}, at {lengths[0]}–{end} of its pack"
    padded = trainer.data_collator([prepared.train[index] for index in (0, 3, 1)])
    view = ragfit.views.BatchView(prepared, padded)
    assert view.indices == [0, 3, 1] and view.positions == padded["input_ids"].numel()
    assert view.shortest == min((0, 3, 1), key=lambda index: len(prepared.train[index]["input_ids"]))
    assert f"{int((padded['attention_mask'] == 0).sum())} of them padding" in view.text()


@pytest.mark.slow
def test_a_packed_run_is_told_apart(config):
    cfg = config(PACKED, "train.max_length=200", "train.max_steps=2", "train.save_strategy=steps", "train.save_steps=1")
    folder = ragfit.train(tiny_trainer(cfg))
    assert "rows in" in (folder / "README.md").read_text().partition("| packing |")[2].partition("\n")[0]
    assert list(ragfit.table_of_runs(folder.parent)["train.packing"]) == [True]
    again = f"resume_checkpoint={folder.parent / 'checkpoint-2'}"
    for changed in ((), (PACKED, "train.max_length=150")):
        with pytest.raises(ConfigError, match=r"resume_checkpoint: .* was made from other rows \(.*packing"):
            tiny_trainer(config(*changed, "train.max_steps=2", again))
    loaded = ragfit.load_checkpoint(folder)  # to evaluate it, as if it had not been packed
    assert not is_packed(loaded.train_dataset) and loaded.train_dataset is loaded.prepared.train


# --- Attention by row on a CPU ----------------------------------------------------------------------------------------


class Kernels(TorchDispatchMode):
    """The lengths that SDPA's kernel is called with, and the shapes of all bool tensors."""

    def __init__(self):
        super().__init__()
        self.lengths, self.shapes = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.lengths.append(args[0].shape[2])
        if isinstance(result, torch.Tensor) and result.dtype == torch.bool:
            self.shapes.append(result.shape)
        return result


def test_each_row_goes_through_the_kernel_by_itself(trainer_of):
    trainer = trainer_of("llama", SHAPE)
    pack = trainer.train_dataset[0]
    batch = trainer.data_collator([pack])
    with Kernels() as seen:
        trainer.model(**batch, use_cache=False, fused_lm_head=True)
    assert seen.lengths == pack["seq_lengths"] * 2 and len(pack["seq_lengths"]) > 2  # of two layers
    size = len(pack["input_ids"])
    assert seen.shapes and not any(shape[-2:] == (size, size) for shape in seen.shapes)  # no mask of pairs of positions


@pytest.mark.parametrize("make", [create_causal_mask, create_sliding_window_causal_mask])
@pytest.mark.parametrize("lengths", [[9], [3, 1, 5], [12, 4, 4], [1, 1, 1]])
def test_row_masks_say_what_the_whole_mask_says(make, lengths):
    config = transformers.LlamaConfig(**SHAPE)
    config.sliding_window = 4
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    inputs = {"config": config, "inputs_embeds": torch.zeros(1, sum(lengths), 32), "attention_mask": None,
              "cache": None, "position_ids": positions}  # fmt: skip
    config._attn_implementation = "eager"
    whole = make(**inputs)[0, 0] == 0
    config._attn_implementation = BY_ROW
    found = make(**inputs)
    if len(lengths) == 1:
        assert found is None or torch.equal(found[0, 0], whole)
        return
    assert isinstance(found, RowMasks) and [stop - start for start, stop, _ in found] == lengths
    rebuilt = torch.zeros_like(whole)
    for start, stop, mask in found:
        causal = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        rebuilt[start:stop, start:stop] = causal if mask is None else mask[0, 0]
    assert torch.equal(rebuilt, whole)


def test_padding_and_generation_take_the_usual_way(trainer_of):
    """With the attention of packs, a padded batch and answers are those of SDPA."""
    trainer = trainer_of("gemma3_text", SHAPE | GEMMA)
    base = trainer.model.get_base_model().eval()
    rows = trainer.data_collator([trainer.prepared.train[index] for index in range(4)])
    left = {name: rows[name].flip(1) for name in ("input_ids", "attention_mask")}

    def answers():
        logits = base(**left, use_cache=False).logits[left["attention_mask"].bool()]
        return logits, base.generate(**left, max_new_tokens=12, do_sample=False, use_cache=True)

    logits, ids = answers()
    base.set_attn_implementation("sdpa")
    expected, expected_ids = answers()
    assert torch.equal(ids, expected_ids) and torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
def test_checkpointing_keeps_the_gradients(trainer_of):
    keys = ("train.max_steps=2", "train.max_length=150")
    plain = epoch(trainer_of("llama", SHAPE, *keys))
    again = epoch(trainer_of("llama", SHAPE, *keys, "train.gradient_checkpointing=true"))
    assert plain[0] == pytest.approx(again[0], rel=1e-6)
    for one, other in zip(plain[1], again[1], strict=True):
        assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-7) for name in one)


def test_the_models_configuration_names_no_attention_of_this_kit(trainer_of, tmp_path):
    trainer = trainer_of("llama", SHAPE, lora=False)
    trainer.model.save_pretrained(tmp_path / "saved")
    assert BY_ROW not in (tmp_path / "saved" / "config.json").read_text()
