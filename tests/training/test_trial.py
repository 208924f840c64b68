"""A run tried on a small copy before its weights are read, and the one place where a library's error becomes a sentence."""

import gc
import json
import logging
import shutil

import pytest
import torch
from conftest import make_tokenizer
from tiny_runs import adapter_weights, losses, one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
import ragfit.config.explain
import ragfit.training.trial
from ragfit.config.explain import explained
from ragfit.errors import ConfigError, RagfitError, for_terminal
from ragfit.training.trial import narrowed, small_copy, try_run


@pytest.fixture
def config(tiny_llama, write_rows, tmp_path):
    """`config(*overrides)`: the tiny Llama, without its weights, over twelve rows."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    rows = write_rows(question_rows(12))
    return lambda *overrides: tiny_config(tmp_path / "model", rows, tmp_path / "out", *overrides)


def refusal(cfg):
    """What is said of a run; one that got past the trial would miss the weights."""
    with pytest.raises(RagfitError) as caught:
        tiny_trainer(cfg)
    return str(caught.value)


# --- What only a model finds out ----------------------------------------------------------------------------------------

EVALUATED = "dev_split=3 train.eval_strategy=steps train.eval_steps=2"
# Overrides, the key that is named, and words of the library.
REFUSED = [
    ("train.use_liger_kernel=true", "train.use_liger_kernel", "liger-kernel"),
    ("train.activation_offloading=true", "train.activation_offloading", ""),
    ("+train.parallelism_config={tp_size:2}", "train.parallelism_config", ""),
    ("train.loss_type=made_up", "train.loss_type", "Invalid `loss_type` made_up"),
    ("train.adam_beta2=0", "train.adam_beta2", "betas must be"),
    ("train.optim=apollo_adamw", "train.optim", "apollo"),
    ("train.optim_args=foo", "train.optim_args", ""),
    ("train.optim=sgd train.optim_args='momentum=x'", "train.optim_args", "could not convert"),
    (f"{EVALUATED} train.eval_accumulation_steps=0", "train.eval_accumulation_steps", "by zero"),
    ("train.lr_scheduler_type=polynomial train.lr_scheduler_kwargs={lr_end:9}", "train.lr_scheduler_kwargs", "lr_end"),
    ("train.lr_scheduler_kwargs={made_up:1}", "train.lr_scheduler_kwargs", "made_up"),
    ("train.gradient_checkpointing=true train.gradient_checkpointing_kwargs={made_up:1}", "train.gradient_checkpointing_kwargs", "made_up"),
    ("train.accelerator_config=nowhere", "train.accelerator_config", "nowhere"),
    ("train.accelerator_config={made_up:1}", "train.accelerator_config", "made_up"),
    ("train.dataloader_multiprocessing_context=made_up train.dataloader_num_workers=1", "train.dataloader_multiprocessing_context", "made_up"),
    ("train.report_to=made_up", "train.report_to", "made_up is not supported"),
    (f"{EVALUATED} train.metric_for_best_model=made_up", "train.metric_for_best_model", "eval_made_up"),
    ("dev_split=3 train.load_best_model_at_end=true", "train.load_best_model_at_end", "strategy to match"),
    ("model.lora.target_modules=[lm_head]", "model.lora.target_modules", "lm_head"),
    ("model.generation={max_new_tokens:0}", "model.generation.max_new_tokens", "must be greater than 0"),
    ("model.generation={max_new_tokens:x}", "model.generation.max_new_tokens", ""),
    ("model.generation={made_up:1}", "model.generation.made_up", "not used by the model"),
    ("model.generation={temperature:x,do_sample:true}", "model.generation.temperature", "strictly positive float"),
    ("model.generation={temperature:0.0,do_sample:true}", "model.generation.temperature", "strictly positive float"),
    ("model.generation={num_beams:2,early_stopping:x}", "model.generation.early_stopping", "must be a boolean"),
    ("model.generation={assistant_model:x}", "model.generation.assistant_model", ""),
    ("model.generation={cache_implementation:made_up}", "model.generation.cache_implementation", "made_up"),
    ("model.generation={forced_eos_token_id:99999}", "model.generation.forced_eos_token_id", "99999"),
    ("model.generation={prompt_lookup_num_tokens:2} train.per_device_eval_batch_size=8", "model.generation.prompt_lookup_num_tokens", "batch_size"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("words", "key", "text"), REFUSED, ids=[words for words, _, _ in REFUSED])
def test_a_key_that_fails_only_with_a_model(words, key, text, config):
    message = refusal(config(*words.split()))
    assert message.startswith(f"{key}: ") and text in message and "\n" not in message
    assert f"Change or remove {key}; RAGFIT_TRACEBACK=1 shows where it was raised." in message


DROPS = [
    ("train.per_device_train_batch_size=64", "there are 12 rows to train on, and a batch takes 64"),
    ("dev_split=3 train.per_device_eval_batch_size=4", "there are 3 rows to eval on, and a batch takes 4"),
]


@pytest.mark.parametrize(("words", "text"), DROPS, ids=[words for words, _ in DROPS])
def test_a_batch_larger_than_the_rows_that_is_dropped(words, text, config):
    message = refusal(config("train.dataloader_drop_last=true", *words.split()))
    assert message.startswith("train.dataloader_drop_last: it drops the only batch") and text in message


# Keys that are odd and do no harm; the weights that are missing are all that is said of such a run.
TAKEN = [
    "",
    EVALUATED,
    f"{EVALUATED} train.metric_for_best_model=eval_loss train.load_best_model_at_end=true train.save_steps=2",
    "train.per_device_train_batch_size=64 train.gradient_accumulation_steps=64",
    "train.lr_scheduler_type=warmup_stable_decay train.lr_scheduler_kwargs={num_decay_steps:1}",
    "train.neftune_noise_alpha=5",
    "train.group_by_length=true",
    "train.loss_type=dft",
    "train.gradient_checkpointing=true",
    "train.dataloader_num_workers=1 train.dataloader_prefetch_factor=2",
    "model.lora=null",
    "model.lora.layers_to_transform=[1]",
    "model.lora.target_modules='.*1.*q_proj'",
    "model.lora.init_lora_weights=pissa",
    "model.load_in_8bit=true train.optim=paged_adamw_8bit",
    "model.generation={num_beams:2,do_sample:true}",
    "model.generation={stop_strings:['.']}",
    "model.generation={bad_words_ids:[[7]]}",
    "model.generation={max_new_tokens:null}",
]


@pytest.mark.parametrize("words", TAKEN)
def test_a_run_that_is_tried_and_taken(words, config, monkeypatch):
    failures = []
    for module in (ragfit.training.trial, ragfit.config.explain):
        monkeypatch.setattr(module.logger, "debug", lambda *said: failures.append(said))
    assert "no file named model.safetensors" in refusal(config(*words.split()))
    assert failures == []  # it was tried, and not given up


@pytest.mark.slow
def test_rows_longer_than_learned_positions(write_rows, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer("digits", "chatml")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=2, n_head=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cfg = tiny_config(
        tmp_path, write_rows(question_rows(12, words=9)), tmp_path / "out", "model.lora.target_modules=[c_attn]"
    )
    message = refusal(cfg)
    assert (
        message.startswith("model.max_sequence_len: the longest row has ")
        and "no more than 256 positions. Set model.max_sequence_len=256" in message
    )
    cfg.model.max_sequence_len = 256
    tiny_trainer(cfg).train()


# What config.json says of positions, and how many that makes.
POSITIONS = [
    ({}, 4096),
    ({"max_position_embeddings": 64}, 64),
    ({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 256),
    (
        {
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
        128,
    ),
]


@pytest.mark.parametrize(("changes", "made_for"), POSITIONS)
def test_rows_longer_than_rotary_positions_are_warned_of(changes, made_for, tiny_llama, write_rows, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    trainer = tiny_trainer(tiny_config(folder, write_rows(question_rows(12, words=9)), tmp_path / "out"))
    longest = max(map(len, trainer.train_dataset["input_ids"]))
    warned = [
        warning for warning in ragfit.preflight(trainer).warnings if f"made for {made_for:,} positions" in warning
    ]
    assert bool(warned) == (longest > made_for), longest


# --- What a trial leaves as it was --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_changes_nothing_of_what_is_trained(tiny_llama, write_rows, tmp_path, monkeypatch):
    cfg = tiny_config(
        tiny_llama, write_rows(question_rows(12)), tmp_path / "out", "train.max_steps=3", "train.save_strategy=no"
    )

    def run():
        trainer = tiny_trainer(cfg)
        start = adapter_weights(trainer.model)
        trainer.train()
        return start, losses(trainer)

    tried = run()
    monkeypatch.setattr(ragfit.training.run, "try_run", lambda *run: None)
    start, untried = run()
    assert untried == tried[1] and all(torch.equal(start[name], tried[0][name]) for name in start)


def test_a_trial_leaves_nothing_behind(config, tmp_path, caplog, capfd):
    from ragfit.training.arguments import training_arguments

    cfg = config(*EVALUATED.split())
    prepared = ragfit.prepare(cfg)
    args = training_arguments(cfg, prepared)
    before = vars(args).copy()
    try_run(cfg, prepared, args, (prepared.train, prepared.dev))
    assert vars(args) == before and not (tmp_path / "out").exists()
    assert caplog.text == "" and capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0 and gc.get_freeze_count() == 0


# --- The copy -----------------------------------------------------------------------------------------------------------


def test_the_copy_of_a_large_model_is_small():
    """Two layers of Llama-3's 70 billion weights would be four billion."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(narrowed(config))
    assert sum(weight.numel() for weight in model.parameters()) < 40_000_000
    assert len(model.model.layers) == 2 and model.get_input_embeddings().num_embeddings == 128_256
    assert config.num_hidden_layers == 80


@pytest.mark.parametrize(
    "kind",
    [
        "gemma3_text",
        "qwen3_next",
        "qwen3_moe",
        "gpt_neox",
        "mistral",
        "deepseek_v3",
        "cohere2",
        pytest.param("gpt_oss", marks=pytest.mark.slow),
    ],
)
def test_the_copy_has_a_layer_of_each_kind(kind):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](vocab_size=500, pad_token_id=0)
    small = narrowed(config)
    assert set(getattr(small, "layer_types", None) or ()) == set(getattr(config, "layer_types", None) or ())
    assert torch.isfinite(AutoModelForCausalLM.from_config(small)(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def test_where_no_copy_can_be_made_nothing_is_said(config, tmp_path):
    file = tmp_path / "model" / "config.json"
    for broken in ({"hidden_size": 17}, {"model_type": "made_up"}, {"num_attention_heads": "x"}):
        text = file.read_text()
        file.write_text(json.dumps(json.loads(text) | broken))
        assert small_copy(config().model) is None
        file.write_text(text)
    assert small_copy(config().model) is not None


def test_nothing_is_left_of_the_copy(config):
    """bitsandbytes keeps the embeddings of all models that its 8-bit optimizers have met, for good."""
    import bitsandbytes

    kept = bitsandbytes.optim.GlobalOptimManager.get_instance().module_weight_config_triple
    before = len(kept)
    refusal(config("train.optim=paged_adamw_8bit"))  # the weights are missing, which comes after the trial
    assert len(kept) > before and all(module.weight.is_meta for module, *_ in kept[before:])


# --- Going on from another run ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_optimizer_and_base(tiny_llama, write_rows, tmp_path, caplog):
    rows, out = write_rows(question_rows(12)), tmp_path / "out"
    keys = ["train.max_steps=2", "train.save_steps=1"]
    ragfit.train(tiny_trainer(tiny_config(tiny_llama, rows, out, *keys)))

    def resumed(model, *more):
        return tiny_config(model, rows, out, *keys, "resume_checkpoint=true", *more)

    other = shutil.copytree(tiny_llama, tmp_path / "other")
    assert refusal(resumed(tiny_llama, "train.optim=adafactor")).startswith("resume_checkpoint: train.optim differs")
    assert refusal(resumed(other)).startswith("resume_checkpoint: model.model_name_or_path differs")
    moved = shutil.copytree(tiny_llama, tmp_path / "elsewhere" / tiny_llama.name)
    tiny_trainer(resumed(moved))
    assert "model.model_name_or_path differs" in caplog.text


# --- The one place ------------------------------------------------------------------------------------------------------

# What a library raises, and what to do about it.
RAISED = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "Lower train.per_device_train_batch_size"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "Lower train.per_device_train_batch_size"),
    (MemoryError(), "MemoryError. Lower train.per_device_train_batch_size"),
    (OSError(28, "No space left on device", "out/x"), "Make room there, or set train.output_dir"),
    (PermissionError(13, "Permission denied", "secret.txt"), "Check that 'secret.txt' exists and that you may read"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal"), "Set train.dataloader_num_workers=0"),
    (RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for w"), "for X: size mismatch for w. Check that resume_checkpoint"),
    (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "Install one (gcc)"),
    (IndexError("index out of range in self"), "IndexError: index out of range in self. Check that the tokenizer"),
    (ValueError("`neftune_noise_alpha` is odd."), "is odd. Change or remove train.neftune_noise_alpha."),
    (KeyError("x"), "KeyError: 'x'. If its text names a key of yours"),
    (ValueError("\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07 \u202e\x00\r\nend"), "red link ⟨RLO⟩␀ end. If"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "expected"), RAISED, ids=[type(error).__name__ for error, _ in RAISED])
def test_what_a_library_raises_becomes_a_sentence(error, expected):
    with pytest.raises(RagfitError) as caught, explained("Training"):
        raise error
    message = str(caught.value)
    assert message.startswith("Training failed: ") and expected in message and message.isprintable()
    assert message.endswith("RAGFIT_TRACEBACK=1 shows where it happened.") and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), ConfigError("limit", "it is 0", "Set it."), ragfit.errors.Interrupted("x", 2)],
)
def test_what_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, explained("Training"):
        raise error
    assert caught.value is error


def test_the_trace_is_shown_where_it_is_asked_for(monkeypatch):
    with pytest.raises(RagfitError) as caught, explained("Training"):
        raise KeyError("x")
    error = caught.value
    monkeypatch.delenv("RAGFIT_TRACEBACK", raising=False)
    assert for_terminal(error) == f"error: {error}" and error._render_traceback_() == [f"RagfitError: {error}"]
    monkeypatch.setenv("RAGFIT_TRACEBACK", "1")
    for shown in (for_terminal(error), "\n".join(error._render_traceback_())):
        assert 'raise KeyError("x")' in shown and shown.endswith(str(error)) and shown.count("Traceback") == 2


def fails(*args, **kwargs):
    raise KeyError("from a library")


@pytest.mark.slow
def test_every_public_step_goes_through_it(tiny_llama, write_rows, tmp_path, monkeypatch):
    rows = write_rows(question_rows(12))
    cfg = tiny_config(tiny_llama, rows, tmp_path / "out", "train.max_steps=1")
    prepared = ragfit.prepare(cfg)
    trainer = ragfit.build_trainer(cfg, prepared)
    steps = {
        "ragfit.data.prepare._choose_rows": lambda: ragfit.prepare(cfg),
        "ragfit.training.run.load_model": lambda: ragfit.build_trainer(cfg, prepared),
        "ragfit.training.run.resume_path": lambda: ragfit.build_trainer(cfg, prepared),
        "ragfit.evaluation.answered.generate": lambda: ragfit.evaluate(trainer, rows=1),
        "ragfit.training.reload.load_believed": lambda: ragfit.load_checkpoint(tmp_path / "out" / "checkpoint"),
        "ragfit.runs.merge.believed": lambda: ragfit.merge_checkpoint(
            tmp_path / "out" / "checkpoint", tmp_path / "merged"
        ),
        "ragfit.training.resume.RunCallback.on_step_end": lambda: ragfit.train(tiny_trainer(cfg)),
    }
    ragfit.train(trainer)
    for place, step in steps.items():
        with monkeypatch.context() as patch:
            # The trial takes a step of its own, which is not what is looked at here.
            patch.setattr(ragfit.training.run, "try_run", lambda *run: None)
            patch.setattr(place, fails)
            with pytest.raises(RagfitError, match="failed: KeyError: 'from a library'"):
                step()
    assert "failed: KeyError" in json.loads((tmp_path / "out" / "status.json").read_text())["reason"]
