"""Memory: the preflight's estimates against measured runs, and what is said where it gives out."""

import functools
import gc
import json
import resource
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from conftest import make_tokenizer
from killed_runs import process
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig

import ragfit
from ragfit import before_torch
from ragfit.config.explain import explained
from ragfit.errors import RagfitError
from ragfit.evaluation.generate import generate
from ragfit.training import memory
from ragfit.training.memory import cached_values, evaluation_estimate, memory_estimate

# --- The estimates against what a process holds -----------------------------------------------------------------------


def figures(tmp_path, cfg):
    """`{"training": (estimated, held), "evaluation": …}` in bytes, above what a process held before the model."""
    measuring = process(measure, cfg, tmp_path / "measured.json")
    measuring.join(300)
    return json.loads((tmp_path / "measured.json").read_text())


def measure(cfg, path):
    torch.set_num_threads(1)
    prepared, before = ragfit.prepare(cfg), psutil.Process().memory_info().rss
    trainer = ragfit.build_trainer(cfg, prepared)

    def held(work):
        before_torch.give_back_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the process's peak begins anew
        work()
        _, _, peak = Path("/proc/self/status").read_text().partition("VmHWM:")  # in kB
        return int(peak.split()[0]) * 1024 - before

    def evaluate():
        ragfit.dev_loss(trainer)
        prompts = [prepared.rendered(row, "dev").prompt for row in range(len(prepared.dev))]
        generate(trainer.model, prepared, prompts, 4, batch_size=trainer.args.per_device_eval_batch_size)

    found = {"evaluation": (evaluation_estimate(trainer)[0], held(evaluate))}
    found["training"] = memory_estimate(trainer)[0], held(trainer.train)
    path.write_text(json.dumps(found))


def to_a_factor_of_two(found):
    return all(held > 2**27 and 0.5 < estimated / held < 2 for estimated, held in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [[], ["train.gradient_checkpointing=true"], ["model.lora=null"]],
    ids=["adapter", "checkpointing", "all weights"],
)
def test_the_estimate_of_memory_is_that_of_a_run_to_a_factor_of_two(write_rows, tmp_path, keys):
    tokenizer = make_tokenizer("digits", "chatml")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    cfg = tiny_config(tmp_path / "model", write_rows(question_rows(10, words=40)), tmp_path / "out", "dev_split=2",
                      "train.save_strategy=no", "train.max_steps=2", "train.bf16=false", "train.per_device_train_batch_size=2", *keys)  # fmt: skip
    found = figures(tmp_path, cfg)
    assert to_a_factor_of_two(found), found


@pytest.mark.slow
def test_the_estimate_knows_what_8_bits_keep_beside_checkpointing(write_rows, tmp_path):
    """bitsandbytes keeps what went into each product in Python, where checkpointing cannot drop it."""
    tokenizer, hidden, inner, layers = make_tokenizer("digits", "chatml"), 16, 32, 16
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    keys = "model.load_in_8bit=true", "train.gradient_checkpointing=true", "model.torch_dtype=float32"
    trainer = tiny_trainer(tiny_config(tmp_path / "model", write_rows(question_rows(1)), tmp_path / "out", *keys))
    trainer.model.activation_checkpointing_enable()
    trainer.model.train()
    tokens = len(trainer.prepared.train[0]["input_ids"])
    output = trainer.model(input_ids=torch.ones((1, tokens), dtype=torch.int64), use_cache=False)
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.shape[-2:-1] == (tokens,)]
    kept = sum({one.data_ptr(): one.nbytes for one in tensors if one.shape[-1] in (hidden, inner)}.values())
    of_layers = layers * tokens * hidden * 4  # what goes into each, which checkpointing keeps itself
    assert kept == pytest.approx(of_layers + layers * tokens * (3 * hidden + inner) * 4, rel=0.02)
    assert output.logits.requires_grad and memory_estimate(trainer)[0] > kept


DEMO = {
    "float32": ["train.bf16=false"],
    "float32, checkpointing": ["train.bf16=false", "train.gradient_checkpointing=true"],
    "bfloat16": ["+model.dtype=bfloat16", "train.bf16=true"],
    "8 bits": ["model.load_in_8bit=true"],
    "4 bits": ["model.load_in_4bit=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", DEMO.values(), ids=DEMO)
def test_the_estimate_is_that_of_the_demo_to_a_factor_of_two(tmp_path, keys):
    small = ["limit=12", "dev_split=8", "train.max_steps=1", "train.gradient_accumulation_steps=1"]
    found = figures(tmp_path, ragfit.load_config("demo", [*small, f"train.output_dir={tmp_path / 'out'}", *keys]))
    assert to_a_factor_of_two(found), found


# --- What the preflight says --------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(tiny_phi3, write_rows, tmp_path):
    """A tiny trainer whose dev rows, eight to a batch, take more memory than its training rows."""
    keys = "dev_split=9", "train.save_strategy=no", "model.generation={max_new_tokens:2000}"
    return tiny_trainer(tiny_config(tiny_phi3, write_rows(question_rows(12)), tmp_path / "out", *keys))


def test_evaluations_that_take_more_than_is_free_are_warned_of(trainer, monkeypatch):
    need, _ = evaluation_estimate(trainer)
    for free in (need, need - 1):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        warned = [text for text in ragfit.preflight(trainer).warnings if "per_device_eval_batch_size" in text]
        assert bool(warned) == (free < need)
    said = {label: (value, note) for label, value, note in ragfit.preflight(trainer).items}["evaluation"]
    assert "keys and values" in said[1] and "answer 2,000 tokens" in said[1]


def test_phi_3_mini_keeps_13_gb_for_eight_prompts():
    """32 layers of 32 heads, each of 96 numbers of 16 bits."""
    phi = LlamaConfig(hidden_size=3072, num_hidden_layers=32, num_attention_heads=32)
    assert 2 * 8 * 4000 * cached_values(phi) == pytest.approx(12.6e9, rel=0.01)
    grouped = LlamaConfig(hidden_size=3072, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    assert 4 * cached_values(grouped) == cached_values(phi)
    assert cached_values(MambaConfig()) == 0


# --- Where memory gives out ---------------------------------------------------------------------------------------------

LONG = question_rows(1, words=300)[0]["prompt"] + "no idea. " * 150


def limited(spare, work, path):
    """Do something in a process that may take so many bytes more than it has, and write what it raised."""
    torch.set_num_threads(1)
    _, _, size = Path("/proc/self/status").read_text().partition("VmSize:")  # in kB
    resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[0]) * 1024 + spare, resource.RLIM_INFINITY))
    try:
        work()
    except RagfitError as error:
        path.write_text(str(error))


def run_it(cfg):
    ragfit.run(cfg)


def answer_at_length(cfg):
    trainer = ragfit.load_checkpoint(Path(cfg.train.output_dir, "checkpoint"))
    prompts = [trainer.prepared.rendered(0, "dev").prompt] * 400
    generate(trainer.model, trainer.prepared, prompts, 1, batch_size=len(prompts))


MANY = "per_device_{}_batch_size=400"
EVALUATED = "Lower train.per_device_eval_batch_size or model.max_sequence_len"
GIVES_OUT = {  # what is done, with which keys, what is said to have failed, and what to do about it
    "training": ([MANY.format("train")], "The run failed", "Lower train.per_device_train_batch_size"),
    "dev loss": ([MANY.format("eval")], "The dev loss failed", EVALUATED),
    "in between": ([MANY.format("eval"), "eval_strategy=steps", "eval_steps=1"], "The evaluation failed", EVALUATED),
}  # fmt: skip


@pytest.fixture
def run_of(tmp_path, write_rows):
    """`run_of(*keys)`: the configuration of a run over short rows and long ones, of which 400 are 1.3 GB to a layer."""
    tokenizer = make_tokenizer("digits", "chatml")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = write_rows([{"prompt": LONG, "answers": [str(n)]} for n in range(800)])
    keys = ["dev_split=400", "train.max_steps=1", "train.gradient_accumulation_steps=1", "train.bf16=false", "train.save_strategy=no"]  # fmt: skip
    return lambda *more: tiny_config(
        tmp_path / "model", rows, tmp_path / "out", *keys, *(f"++train.{key}" for key in more)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVES_OUT)
def test_out_of_memory_says_what_to_lower(name, run_of, tmp_path):
    """The allocator is really refused: the process may take 1 GiB more."""
    keys, failed, advice = GIVES_OUT[name]
    process(limited, 2**30, functools.partial(run_it, run_of(*keys)), tmp_path / "said").join(300)
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"{failed}: ") and advice in said and "allocate" in said
    status = ragfit.run_status(tmp_path / "out").state
    assert status == ("finished" if name == "dev loss" else "failed")
    # The adapter of a run that has ended is saved before anything is evaluated.
    assert (tmp_path / "out" / "checkpoint" / "adapter_model.safetensors").is_file() == (name == "dev loss")


@pytest.mark.slow
def test_out_of_memory_while_answering_says_what_to_lower(run_of, tmp_path):
    cfg = run_of()
    ragfit.train(tiny_trainer(cfg))
    process(limited, 2**30, functools.partial(answer_at_length, cfg), tmp_path / "said").join(300)
    said = (tmp_path / "said").read_text()
    assert said.startswith("Generating answers failed: ") and EVALUATED in said


def test_an_error_of_memory_holds_no_tensors():
    """A notebook keeps the last error; with its frames' tensors there would be no room to try again."""

    def step():
        tensor = torch.ones(3)
        refs.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    refs = []
    with pytest.raises(RagfitError) as kept, explained("Training"):
        step()
    assert refs[0]() is None and kept.value.__cause__
