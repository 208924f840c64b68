"""A run tried on a small copy of its model before the weights are read.

The libraries check most of their arguments only when they meet the model: some in the trainer's constructor, some at
the first step, some when the model answers after hours of training. So the run is tried first on a model of the same
architecture with two thin layers: one step of training and of evaluation with the run's own arguments and adapter, and
one token of an answer. It takes a second, and a library's refusal is a sentence with the key that causes it: the one
without which the trial succeeds.
"""

import contextlib
import copy
import gc
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DefaultFlowCallback,
    PreTrainedConfig,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.initialization import no_init_weights
from transformers.utils.logging import warning_once

from ragfit.collator import BOUNDARIES, IGNORE_INDEX
from ragfit.config.explain import tried
from ragfit.config.schema import is_hf_train
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import generate
from ragfit.models.adapter import new_adapter
from ragfit.models.hf import resolve
from ragfit.training.arguments import Arguments, training_arguments
from ragfit.training.packing import Rows, training_rows
from ragfit.training.resume import RunCallback
from ragfit.training.trainer import RagfitTrainer, check_vocabulary

logger = logging.getLogger(__name__)

TOKENS = 16  # of a row that are read
# What a text model's other sizes are called.
WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "ffn_dim")


def try_run(cfg: DictConfig, prepared: Prepared, args: Arguments, rows: Rows) -> None:
    """Try a run on a small copy of its model.

    Where no copy can be made or even a plain run fails on it, nothing is known, and nothing is said: the copy is at
    fault then, or loading the model will say it.

    Raises:
        ConfigError: with the key, what the library says, and what to do.
    """
    with _unseen():
        model = small_copy(cfg.model)
        if model is None:
            return
        check_vocabulary(model, prepared)
        check_positions(model, prepared)
        _try_answer(model, prepared, cfg.model.get("generation"), args.per_device_eval_batch_size)
        _try_step(cfg, prepared, args, rows, model)


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Nothing is said, since the libraries say it again in the run itself, and no memory is kept."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    gc.freeze()  # accelerate collects garbage after each run, which takes a second over all that was imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.collect()  # a trainer and its model hold each other
        gc.unfreeze()
        logging.disable(before)
        warning_once.cache_clear()


# The copy.


def small_copy(keys: DictConfig) -> PreTrainedModel | None:
    """A model like that of the configuration's `model`, with few, thin layers and arbitrary weights, on the CPU.

    It has the same architecture and vocabulary. None where none can be made.
    """
    if not is_hf_train(keys.get("_target_")):
        return None
    remote = {"trust_remote_code": bool(keys.get("trust_remote_code"))}
    try:
        source = resolve(keys.model_name_or_path)
        config = narrowed(AutoConfig.from_pretrained(source, revision=keys.get("revision"), **remote))
        with no_init_weights():  # which takes most of the time
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **remote)
        with torch.no_grad():
            for weight in model.parameters():
                weight.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    except Exception as error:  # the architecture cannot be made thin, or the model cannot be loaded at all
        logger.debug("No trial: %s", error)
        return None
    return model


def narrowed(config: PreTrainedConfig) -> PreTrainedConfig:
    """A model's configuration with a layer of each kind, two at least, and as few heads of attention as can be.

    A head keeps its size, which positions are computed with, and the vocabulary keeps its ids.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count, width = text.num_hidden_layers, text.hidden_size // text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or [""] * count
    kept = sorted({0, min(1, count - 1), *(kinds.index(kind) for kind in kinds)})
    heads = 16 // math.gcd(16, width)  # some kernels ask for multiples of 16
    for key, value in vars(text).copy().items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(text, key, [value[layer] for layer in kept])
    text.num_hidden_layers, text.num_attention_heads, text.hidden_size = len(kept), heads, heads * width
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = heads
    for key in WIDTHS:
        if isinstance(size := getattr(text, key, None), int):
            setattr(text, key, min(size, 2 * text.hidden_size))
    return config


# What is tried.


def check_positions(model: PreTrainedModel, prepared: Prepared) -> None:
    """A row that is longer than a table of learned positions would crash in the middle of a run."""
    longest = max(prepared.report.train.longest, prepared.report.dev.longest)

    def takes(*places) -> bool:
        try:
            with torch.no_grad():
                model(input_ids=torch.tensor([[0, 0]]), position_ids=torch.tensor([places]), use_cache=False)
        except (IndexError, RuntimeError, TypeError):
            return False
        return True

    if longest > 2 and takes(0, 1) and not takes(longest - 2, longest - 1):
        most = model.config.get_text_config().max_position_embeddings
        raise ConfigError(
            "model.max_sequence_len",
            f"the longest row has {longest:,} tokens, but the model has learned no more than {most:,} positions",
            f"Set model.max_sequence_len={most}, or choose another model.",
        )


def _try_answer(model: PreTrainedModel, prepared: Prepared, generation: DictConfig | None, batch_size: int) -> None:
    """One token of two answers with the settings of `model.generation`."""
    settings = OmegaConf.to_container(generation, resolve=True) if generation else {}
    prompt = prepared.rendered(0).prompt[-4 * TOKENS :]

    def answer(settings: dict) -> None:
        limit = settings.get("max_new_tokens")
        one = {"max_new_tokens": 1} if limit is None or isinstance(limit, int) and limit > 0 else {}
        generate(model, prepared, [prompt, prompt[TOKENS:]], 1, settings | one, batch_size)

    def without(name: str) -> dict:
        return {key: value for key, value in settings.items() if key != name}

    tried(answer, settings, without, {}, "model.generation", settings)


def _try_step(cfg: DictConfig, prepared: Prepared, args: Arguments, rows: Rows, model: PreTrainedModel) -> None:
    """A step of training, and of evaluation where there is any, as the run would take them."""
    keys = OmegaConf.to_container(cfg, resolve=True)
    lora = keys["model"].get("lora")
    try:
        models = [new_adapter(model, lora)]
    except Exception as error:  # the whole model will be asked in a moment, and knows the names of its layers
        logger.debug("No trial: %s", error)
        return

    def without(key: str) -> dict:
        tree = copy.deepcopy(keys)
        room, _, name = key.rpartition(".")
        mapping = tree["train"] if room == "train" else tree["model"]["lora"]
        del mapping[name]
        if name == "target_modules":
            mapping[name] = "all-linear"  # PEFT has a default for few architectures
        return tree

    def step(tree: dict) -> None:
        if tree is keys:
            return _step(cfg, prepared, args, rows, models.pop())
        changed = OmegaConf.create(tree)
        fresh = new_adapter(small_copy(changed.model), tree["model"].get("lora"))
        _step(changed, prepared, training_arguments(changed, prepared), training_rows(changed, prepared), fresh)

    plain = copy.deepcopy(keys)
    plain["train"] = {key: value for key, value in plain["train"].items() if key in ("output_dir", "use_cpu")}
    if lora:
        plain["model"]["lora"] = {"target_modules": "all-linear"}
    names = {f"train.{key}": value for key, value in keys["train"].items() if key != "output_dir"}
    names |= {f"model.lora.{key}": value for key, value in (lora or {}).items()}
    tried(step, keys, without, plain, "train", names)


class OneStep(TrainerCallback):
    """Ends training after a step, and has that evaluated where the run evaluates."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        control.should_training_stop = True
        control.should_evaluate = args.eval_strategy != "no"


def _step(cfg: DictConfig, prepared: Prepared, args: Arguments, rows: Rows, model: torch.nn.Module) -> None:
    train, dev = rows
    rows = train, dev and dev.select([0])
    with tempfile.TemporaryDirectory() as folder:
        small = copy.deepcopy(args)
        small.output_dir, small.disable_tqdm, small.gradient_accumulation_steps, small.eval_delay = folder, True, 1, 0
        small.dataloader_num_workers = min(args.dataloader_num_workers, 1)
        small.dataloader_drop_last = False
        trainer = RagfitTrainer(cfg, prepared, SimpleNamespace(model=model), small, rows, callbacks=[OneStep()])
        small.save_strategy, small.load_best_model_at_end = "no", False  # the trainer has checked them
        kept = DefaultFlowCallback | RunCallback | OneStep
        trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, kept)]
        if args.world_size > 1 or args.deepspeed or args.torch_compile:  # that takes a minute, or all processes
            trainer.create_optimizer_and_scheduler(10)
            return
        collator = trainer.data_collator
        trainer.data_collator = lambda rows: collator([_end(row) for row in rows])
        try:
            trainer.train()
        finally:
            trainer.model.to("meta")  # bitsandbytes keeps the embeddings that its optimizers have met


def _end(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """The last tokens of a row up to its last label."""
    stop = max(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX) + 1
    cut = {key: row[key][max(0, stop - TOKENS) : stop] for key in ("input_ids", "labels")}
    return cut | ({BOUNDARIES: [len(cut["labels"])]} if BOUNDARIES in row else {})
