"""The run: what the trainer is told, what it feeds the model, what it leaves behind. Real TRL over tiny real models."""

import math

import pytest
import torch
from tiny_runs import adapter_weights, losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_pt_utils import LengthGroupedSampler

import ragfit
import ragfit.training.trainer
from ragfit.config.load import load_config
from ragfit.config.overrides import override
from ragfit.models.hf import bf16_is_fast
from ragfit.training.arguments import training_arguments

# The random LM head of a tiny model says next to nothing whatever comes before it, so it is trained too.
HEAD = ["model.lora.modules_to_save=[lm_head]"]
FAST = ["train.learning_rate=0.02", "train.warmup_ratio=0", "train.lr_scheduler_type=constant"]


@pytest.fixture
def rows(write_rows):
    return write_rows(question_rows(12))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def config(tiny_phi3, rows, out):
    """`config(*overrides)`: the tiny Phi-3 over twelve rows."""
    return lambda *overrides: tiny_config(tiny_phi3, rows, out, *overrides)


# --- train: the keys -----------------------------------------------------------------------------------------------

# Overrides, and attributes that the arguments of the trainer then have.
TRAIN_KEYS = [
    ([], {"learning_rate": 1e-4, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}),
    ([], {"save_steps": 20000, "save_total_limit": 1, "weight_decay": 0.001, "per_device_train_batch_size": 1, "max_steps": -1}),
    ([], {"num_train_epochs": 1, "remove_unused_columns": True, "bf16": False, "fp16": False, "report_to": []}),
    (["train.warmup_ratio=null", "+train.warmup_steps=7"], {"warmup_steps": 7}),
    (["train.report_to=null", "use_wandb=true"], {"report_to": ["wandb"]}),
    (["train.report_to=tensorboard", "use_wandb=true"], {"report_to": ["tensorboard", "wandb"]}),
    (["train.bf16=null"], {"bf16": bf16_is_fast(), "fp16": False}),
    (["train.gradient_checkpointing=true"], {"activation_checkpointing": True, "gradient_checkpointing": True}),
    (["train.activation_checkpointing=true"], {"activation_checkpointing": True, "gradient_checkpointing": True}),
    ([], {"activation_checkpointing": torch.cuda.is_available(), "gradient_checkpointing": torch.cuda.is_available()}),
    (["dev_split=2", "train.evaluation_strategy=steps", "train.eval_steps=2"], {"eval_strategy": "steps", "eval_steps": 2}),
    # What the rows need, whatever is asked for.
    ([], {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}),
    (["model.max_sequence_len=null", "train.max_seq_length=512"], {"max_length": None}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "expected"), TRAIN_KEYS, ids=[" ".join(o) or "as shipped" for o, _ in TRAIN_KEYS]
)
def test_train_keys_reach_the_arguments(config, overrides, expected):
    cfg = config(*overrides)
    args = training_arguments(cfg, ragfit.prepare(cfg))
    assert {name: getattr(args, name) for name in expected} == expected


REFUSED = {
    "train.assistant_only_loss=true": "train.assistant_only_loss: it is set, but nothing reads it",
    "train.eos_token='<|im_end|>'": "train.eos_token: it is set, but nothing reads it",
    "train.eval_strategy=steps": "train.eval_strategy: steps needs a dev set. Set dev_split",
    # In the libraries' own words, and before the weights are read.
    "train.optim=adamm": "adamm",
    "train.lr_scheduler_type=cosinus": "cosinus",
    "train.load_best_model_at_end=true": "strategy to match|eval_strategy|evaluation strategy",
    "train.report_to=made_up": "made_up",
    "hfhub_tag='no such name'": "hfhub_tag: 'no such name' is not a repository name",
}


@pytest.mark.parametrize(("key", "said"), REFUSED.items(), ids=REFUSED)
def test_what_is_refused_before_the_weights_are_read(config, monkeypatch, key, said):
    prepared = ragfit.prepare(config())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the weights were read"))
    with pytest.raises(Exception, match=said):
        ragfit.build_trainer(config(key), prepared)


# --- train: the effects ---------------------------------------------------------------------------------------------


def test_group_by_length(config):
    grouped = tiny_trainer(config("train.group_by_length=true", "train.per_device_train_batch_size=4"))
    sampler = grouped._get_train_sampler()
    assert isinstance(sampler, LengthGroupedSampler)
    lengths = [len(ids) for ids in grouped.train_dataset["input_ids"]]
    order = [lengths[i] for i in sampler]
    assert sorted(order) == sorted(lengths) and order[0] == max(lengths)  # the longest first: memory runs out at once
    for i in (1, 5, 9):  # the rest of each batch goes from long to short
        assert order[i : i + 3] == sorted(order[i : i + 3], reverse=True)
    assert type(tiny_trainer(config())._get_train_sampler()).__name__ == "RandomSampler"


def test_the_seed_makes_an_adapter_repeatable(config):
    """And its training: the resumed runs of test_survival.py are the same to the bit."""

    def start(seed, stray):
        torch.manual_seed(stray)  # whatever was drawn before in this process
        return adapter_weights(tiny_trainer(config(f"train.seed={seed}")).model)

    first, again, other = start(3, 0), start(3, 1), start(4, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("keys", [["train.bf16=true"], ["train.gradient_checkpointing=true"]])
def test_bf16_and_checkpointing_train(config, keys):
    trainer = tiny_trainer(config("train.max_steps=2", *FAST, *keys))
    before = adapter_weights(trainer.model)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in adapter_weights(trainer.model).items())


# --- What the model is fed ------------------------------------------------------------------------------------------


def batch_rows(batch):
    """The rows of a batch without their padding, which has no labels."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length) and set(labels[length:].tolist()) <= {-100}
        yield tuple(ids[:length].tolist()), tuple(labels[:length].tolist())


def test_the_model_is_fed_what_prepare_made(tiny_phi3, write_rows, out):
    """One row is longer than 1024 tokens, where TRL's default would cut it."""
    rows = [*question_rows(10), {"prompt": "no idea. " * 700, "answers": ["A long way."]}]
    keys = ("train.per_device_train_batch_size=4", "dev_split=3", "shuffle=1")
    cfg = tiny_config(tiny_phi3, write_rows(rows), out, *keys)
    prepared = ragfit.prepare(cfg)
    trainer = ragfit.build_trainer(cfg, prepared)
    loaders = {"train": trainer.get_train_dataloader(), "dev": trainer.get_eval_dataloader()}
    for part, loader in loaders.items():
        expected = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in prepared.part(part)]
        fed = []
        for batch in loader:
            assert set(batch) == {"input_ids", "attention_mask", "labels"}
            fed += batch_rows(batch)
        assert sorted(fed) == sorted(expected)
    longest = max(len(ids) for p in (prepared.train, prepared.dev) for ids in p["input_ids"])
    assert longest > 1400
    assert trainer.train_dataset is prepared.train and trainer.eval_dataset is prepared.dev
    labels = [label for row in prepared.train for label in row["labels"] if label != -100]
    assert len(labels) == prepared.report.train.loss_tokens < prepared.report.train.tokens / 5


def cross_entropy(model, batch):
    """The mean loss over labelled positions, from all logits."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    labels = batch["labels"][:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100).item()


def test_only_positions_before_labelled_tokens_get_a_gradient(config):
    trainer = tiny_trainer(config("model.lora=null", "train.per_device_train_batch_size=4"))
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    trainer.model.model.norm.register_forward_hook(keep)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    touched = seen[0].grad.abs().sum(-1) > 0
    predicts = torch.zeros_like(touched)
    predicts[:, :-1] = batch["labels"][:, 1:] != -100
    assert torch.equal(touched, predicts) and predicts.sum() > 20

    trainer.model.zero_grad()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_training_lowers_the_loss(tiny_model, rows, out, arch):
    trainer = tiny_trainer(tiny_config(tiny_model(arch), rows, out, "train.max_steps=30", *HEAD, *FAST))
    trainer.train()
    assert losses(trainer)[0] > 6 and losses(trainer)[-1] < 2


def test_the_logged_loss_is_the_mean_over_the_step_s_labelled_tokens(config):
    """Two padded batches accumulated: each token counts the same, not each row."""
    trainer = tiny_trainer(
        config("train.max_steps=1", "model.lora.lora_dropout=0", "train.per_device_train_batch_size=2")
    )
    batches = list(trainer.get_train_dataloader())[:2]
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    total = sum(n * cross_entropy(trainer.model, batch) for n, batch in zip(counts, batches, strict=True))
    trainer.train()
    assert losses(trainer) == [pytest.approx(total / sum(counts), abs=1e-4)]


# --- What is left behind --------------------------------------------------------------------------------------------


def test_the_checkpoint_loads_with_peft_and_transformers_alone(config, tiny_phi3, out, tmp_path):
    from peft import PeftModel

    texts = {"instruction": "Be brief: 東京.", "template": "{instruction}\nQ: {query}\nA: {output}"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    own = [override(name, str(tmp_path / f"{name}.txt")) for name in texts]
    own += ["model.completion_start='A:'", "train.hub_token=hf_secret123"]
    cfg = config(*own, "train.max_steps=3", "train.warmup_ratio=0.1", *FAST[:1])
    trainer = tiny_trainer(cfg)
    folder = ragfit.train(trainer)
    assert folder == out / "checkpoint"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "ragfit.yaml", "instruction.txt", "template.txt",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "fingerprint.json",
    }  # fmt: skip
    assert {name: (folder / f"{name}.txt").read_text(encoding="utf-8") for name in texts} == texts
    assert not [path for path in out.rglob("*") if path.is_file() and b"hf_secret123" in path.read_bytes()]
    again = load_config(folder / "ragfit.yaml")
    assert cfg.train.pop("hub_token") == "hf_secret123" and again == cfg
    assert folder.stat().st_mode & 0o777 == 0o755

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(trainer.prepared.rendered(1).text, return_tensors="pt").input_ids
    assert ids[0].tolist() == trainer.prepared.train[1]["input_ids"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_phi3), folder).eval()
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trainer.model(ids).logits)
        with model.disable_adapter():
            assert (model(ids).logits - trainer.model(ids).logits).abs().max() > 1e-3
