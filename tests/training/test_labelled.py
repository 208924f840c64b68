"""The loss of labelled positions alone equals the loss of all logits: values, gradients, steps."""

import pytest
import torch
import transformers
from tiny_runs import adapter_weights, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from trl.trainer.utils import add_fused_lm_head

from ragfit.errors import ConfigError
from ragfit.training.cpu import check_head, project_labelled_only, right_padded

VOCABULARY = 199
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OLD_SHAPE = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Each for something of its own between hidden states and logits, or between mask and attention.
ARCHITECTURES = {
    "untied head": ("llama", SHAPE),
    "tied head": ("llama", SHAPE | {"tie_word_embeddings": True}),
    "sliding window": ("mistral", SHAPE | {"sliding_window": 5}),
    "fused qkv": ("phi3", SHAPE),
    "bias on the head": ("phi", SHAPE),
    "query and key norms": ("qwen3", SHAPE | {"head_dim": 8}),
    "softcapped logits, two masks": ("gemma2", SHAPE | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 5}),
    "divided logits": ("granite", SHAPE | {"logits_scaling": 8.0}),
    "multiplied logits": ("cohere", SHAPE | {"logit_scale": 0.25}),
    "learned positions": ("gpt2", OLD_SHAPE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "positions from the mask": ("opt", OLD_SHAPE | {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16,
    }),
    "alibi": ("bloom", OLD_SHAPE | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "experts, balance loss": ("mixtral", SHAPE | {"num_local_experts": 3, "output_router_logits": True}),
    "state space": ("mamba", OLD_SHAPE | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}  # fmt: skip

# A batch of one, of several with padding on either side, labels in two runs, a row without padding among others.
BATCHES = {
    "one row": [(5, 20)],
    "padding": [(5, 20), (7, 15), (1, 9)],
    "same length": [(3, 12), (10, 12)],
}


def make_model(kind, shape):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # else heads and norms barely move the logits
    return model.eval()  # no dropout


def make_batch(rows, left=False):
    """Rows as (first labelled position, length)."""
    width = max(length for _, length in rows)
    generator = torch.Generator().manual_seed(3)
    batch = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(rows), width), -100)
    for number, (start, length) in enumerate(rows):
        shift = width - length if left else 0
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        batch["input_ids"][number, shift : shift + length] = ids
        batch["attention_mask"][number, shift : shift + length] = 1
        batch["labels"][number, shift + start : shift + length] = ids[start:]
    return batch


def loss_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    loss = model(**batch, use_cache=False, **kwargs).loss
    loss.backward()
    # A bias of the keys moves all scores alike: its gradient is nothing but rounding.
    left_out = ("k_proj.bias", "key_value.bias")
    kept = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and not name.endswith(left_out)}
    return loss.item(), {name: gradient.clone() for name, gradient in kept.items()}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradients_equal_those_of_all_logits(kind, batch, left):
    model = make_model(*ARCHITECTURES[kind])
    batch = make_batch(BATCHES[batch], left)
    loss, gradients = loss_and_gradients(model, batch)  # the model's own forward pass, with all logits
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    project_labelled_only(model)
    check_head(model)
    found, found_gradients = loss_and_gradients(model, batch, fused_lm_head=True)
    assert found == pytest.approx(loss, rel=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert torch.allclose(found_gradients[name], gradient, rtol=1e-4, atol=1e-4 * float(scale) + 1e-9), name


def test_only_labelled_positions_reach_the_head():
    """No tensor has a number of elements of the size positions × vocabulary."""
    model = make_model(*ARCHITECTURES["untied head"])
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    batch = make_batch([(17, 20), (17, 20), (18, 20)])  # 8 labels of 60 positions

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                # The head's weight and its gradient are (vocabulary, hidden); everything else of that width is logits.
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                    self.rows = max(self.rows, tensor.numel() // VOCABULARY)
            return result

    most = []
    for change in (lambda model: None, project_labelled_only):
        change(model)
        with Largest() as largest:
            loss_and_gradients(model, batch, fused_lm_head=True)
        most.append(largest.rows)
    # As TRL does it on a CPU; then 8 rows of logits, fewer than the transposed head's (hidden, vocabulary).
    assert most == [3 * 19, SHAPE["hidden_size"]]


def test_the_forward_pass_without_labels_is_the_model_s_own():
    model, other = make_model(*ARCHITECTURES["tied head"]), make_model(*ARCHITECTURES["tied head"])
    add_fused_lm_head(model)
    project_labelled_only(model)
    batch = make_batch([(2, 9)])
    own = other(**batch)
    found = model(**batch)
    assert torch.equal(found.logits, own.logits) and found.loss == own.loss
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": batch["attention_mask"]}
    assert torch.equal(model.generate(batch["input_ids"], **settings), other.generate(batch["input_ids"], **settings))


def test_right_padded():
    assert all(right_padded(torch.tensor(mask)) for mask in ([[1, 1, 1]], [[1, 1, 0], [1, 0, 0]]))
    assert not any(right_padded(torch.tensor(mask)) for mask in ([[0, 1, 1]], [[1, 0, 1]], [[1, 1, 1], [0, 0, 0]]))


def test_a_head_that_does_something_else_is_refused():
    """A scale that does not stand in the configuration, where TRL looks for it."""
    model = make_model("cohere", SHAPE | {"logit_scale": 0.25})
    model.logit_scale = 3.0
    add_fused_lm_head(model)
    with pytest.raises(ConfigError, match="CohereForCausalLM does not compute its logits as TRL's loss does"):
        check_head(model)
    assert not model.training
    # `train.router_aux_loss_coef` is put into the configuration, where TRL looks for it; the model keeps its own.
    model = make_model("olmoe", SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True})
    model.config.router_aux_loss_coef = 0.5
    add_fused_lm_head(model)
    check_head(model)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["+train.loss_type=dft"], ["+train.label_smoothing_factor=0.1"]], ids=str)
@pytest.mark.parametrize("shape", ["train.per_device_train_batch_size=1", "train.per_device_train_batch_size=3"])
def test_a_run_equals_trl_s_own(tiny_llama, write_rows, tmp_path, monkeypatch, keys, shape):
    """Two accumulated batches a step, three steps: the same logged figures and the same adapter."""
    import ragfit.training.trainer

    data = write_rows(question_rows(18))

    def run(name):
        cfg = tiny_config(tiny_llama, data, tmp_path / name, "limit=18", "train.max_steps=3", shape, *keys)
        trainer = tiny_trainer(cfg)
        trainer.train()
        figures = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
        logged = [[entry[f] for f in figures] for entry in trainer.state.log_history if "loss" in entry]
        return logged, adapter_weights(trainer.model)

    ours, our_weights = run("ours")
    monkeypatch.setattr(ragfit.training.trainer, "project_labelled_only", lambda model: None)
    theirs, their_weights = run("theirs")
    assert len(ours) == 3
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    for name, weight in their_weights.items():
        assert torch.allclose(our_weights[name], weight, atol=1e-5), name
