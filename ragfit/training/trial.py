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
from types import SimpleNamespace

from ragfit.config.explain import tried
from ragfit.config.schema import is_hf_train
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import generate
from ragfit.models.hf import COMPUTED, resolve

logger = logging.getLogger(__name__)

LARGEST = 100_000_000  # parameters of a copy, most of them its vocabulary's; half as many where all of them are trained
TOKENS = 16  # of a row that are read
# What a text model's other sizes are called.
WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "ffn_dim")
# LoRA's keys that name layers which a copy may lack.
OF_LAYERS = (
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "exclude_modules",
    "target_parameters",
    "eva_config",
)


def try_run(cfg, prepared, args):
    """Try a run on a small copy of its model.

    Where no copy can be made or even a plain run fails on it, nothing is known, and nothing is said: the copy is at
    fault then, or loading the model will say it.

    Args:
        cfg: the resolved configuration.
        prepared: the rows of `ragfit.prepare`.
        args: of `ragfit.training.arguments.training_arguments`.

    Raises:
        ConfigError: with the key, what the library says, and what to do.
    """
    with _unseen():
        _try_all(cfg, prepared, args)


def _try_all(cfg, prepared, args):
    model = small_copy(cfg.model)
    if model is None:
        return
    check_vocabulary(model, prepared)
    check_positions(model, prepared)
    _try_answer(model, prepared, cfg.model.get("generation"), args.per_device_eval_batch_size)
    _try_step(cfg, prepared, args, model)


@contextlib.contextmanager
def _unseen():
    """Nothing is said, since the libraries say it again in the run itself, and no memory is kept."""
    from transformers.utils.logging import warning_once

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


def small_copy(keys):
    """A model of the same architecture and vocabulary with few, thin layers and arbitrary weights.

    Args:
        keys: `model` of the configuration.

    Returns:
        A `transformers` model on the CPU, or None where none can be made.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if not is_hf_train(keys.get("_target_")):
        return None
    remote = bool(keys.get("trust_remote_code"))
    try:
        source = resolve(keys.model_name_or_path)
        config = narrowed(AutoConfig.from_pretrained(source, trust_remote_code=remote, revision=keys.get("revision")))
        with torch.device("meta"):
            size = sum(
                weight.numel()
                for weight in AutoModelForCausalLM.from_config(config, trust_remote_code=remote).parameters()
            )
        lora = keys.get("lora")
        if size > (LARGEST if lora and not lora.get("modules_to_save") else LARGEST // 2):
            return None
        with no_init_weights():  # which takes most of the time
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(0.01)
            ids = torch.tensor([[0, 1]])
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (
        Exception
    ) as error:  # of an architecture that cannot be made thin, or of a model that cannot be loaded at all
        logger.debug("No trial: %s", error)
        return None
    return model


def narrowed(config):
    """A model's configuration with a layer of each kind, two at least, and as few heads of attention as can be.

    A head keeps its size, which positions are computed with, and the vocabulary keeps its ids.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or [""] * count
    kept = sorted({0, min(1, count - 1), *(kinds.index(kind) for kind in kinds)})
    for key, value in vars(text).copy().items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(text, key, [value[layer] for layer in kept])
    text.num_hidden_layers = len(kept)
    width = text.hidden_size // text.num_attention_heads
    heads = 16 // math.gcd(16, width)  # some kernels ask for multiples of 16
    text.num_attention_heads, text.hidden_size = heads, heads * width
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = heads
    for key in WIDTHS:
        if isinstance(getattr(text, key, None), int):
            setattr(text, key, min(getattr(text, key), 2 * text.hidden_size))
    return config


def with_adapter(model, lora):
    """The copy with an adapter like the run's; which layers it names is checked on the whole model, when it is loaded."""
    from peft import LoraConfig, get_peft_model

    if lora is None:
        return model
    lora = {key: value for key, value in lora.items() if key not in OF_LAYERS}
    targets = lora.get("target_modules")
    if isinstance(targets, str) or any("." in str(target) for target in targets or ()):
        lora["target_modules"] = "all-linear"
    if str(lora.get("init_lora_weights", "")).lower().startswith(COMPUTED):
        lora["init_lora_weights"] = True
    return get_peft_model(model, LoraConfig(**lora))


# What is tried.


def check_vocabulary(model, prepared):
    """Ids beyond the embedding would crash in the middle of a run (on CUDA without a readable message)."""
    size = model.get_input_embeddings().weight.shape[0]  # PEFT may have wrapped the embedding
    if len(prepared.tokenizer) > size:
        parts = [part for part in (prepared.train, prepared.dev) if part is not None]
        highest = max(max(ids) for part in parts for ids in part["input_ids"])
        if highest >= size:
            raise ConfigError(
                f"The rows hold the token id {highest}, but the model's embedding has {size} rows. "
                "Set model.model_name_or_path so that tokenizer and model belong together."
            )


def check_positions(model, prepared):
    """A row that is longer than a table of learned positions would crash in the middle of a run."""
    import torch

    longest = max(sum(pair) for part in (prepared.report.train, prepared.report.dev) for pair in part.lengths)
    ids = torch.zeros(1, 2, dtype=torch.long)

    def fails(*places):
        try:
            with torch.no_grad():
                model(input_ids=ids, position_ids=torch.tensor([places]), use_cache=False)
        except (IndexError, RuntimeError, TypeError):
            return True
        return False

    if longest > 2 and fails(longest - 2, longest - 1) and not fails(0, 1):
        most = model.config.get_text_config().max_position_embeddings
        raise ConfigError(
            f"model.max_sequence_len: the longest row has {longest:,} tokens, but the model has learned no more than {most:,} positions. "
            f"Set model.max_sequence_len={most}, or choose another model."
        )


def _try_answer(model, prepared, settings, batch_size):
    """One token of two answers with the settings of `model.generation`."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(settings, resolve=True) if settings else {}
    prompt = prepared.rendered(0).prompt[-4 * TOKENS :]

    def answer(settings):
        limit = settings.get("max_new_tokens")
        one = {"max_new_tokens": 1} if limit is None or isinstance(limit, int) and limit > 0 else {}
        generate(model, prepared, [prompt, prompt[TOKENS:]], 1, settings | one, batch_size)

    tried(
        answer, settings, lambda key: {k: v for k, v in settings.items() if k != key}, {}, "model.generation", settings
    )


def _try_step(cfg, prepared, args, model):
    """A step of training, and of evaluation where there is any, as the run would take them."""
    from omegaconf import OmegaConf

    from ragfit.training.arguments import training_arguments

    keys = OmegaConf.to_container(cfg, resolve=True)
    lora = keys["model"].get("lora")
    try:
        adapted = with_adapter(model, lora)
    except Exception as error:  # the whole model will be asked in a moment, and knows the names of its layers
        logger.debug("No trial: %s", error)
        return
    models = [adapted]

    def without(key):
        tree = copy.deepcopy(keys)
        room, _, name = key.rpartition(".")
        mapping = tree["train"] if room == "train" else tree["model"]["lora"]
        del mapping[name]
        if name == "target_modules":
            mapping[name] = "all-linear"  # PEFT has a default for few architectures
        return tree

    def step(tree):
        if tree is keys:
            return _step(cfg, prepared, args, models.pop())
        changed = OmegaConf.create(tree)
        fresh = with_adapter(small_copy(changed.model), tree["model"].get("lora"))
        _step(changed, prepared, training_arguments(changed, prepared), fresh)

    plain = copy.deepcopy(keys)
    plain["train"] = {key: value for key, value in plain["train"].items() if key in ("output_dir", "use_cpu")}
    if lora:
        plain["model"]["lora"] = {"target_modules": "all-linear"}
    names = {f"train.{key}": value for key, value in keys["train"].items() if key != "output_dir"}
    names |= {f"model.lora.{key}": value for key, value in (lora or {}).items()}
    tried(step, keys, without, plain, "train", names)


def _step(cfg, prepared, args, model):
    from transformers import DefaultFlowCallback, TrainerCallback

    from ragfit.training.resume import RunCallback
    from ragfit.training.trainer import RagfitTrainer

    class OneStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    if prepared.dev is not None:
        prepared = copy.copy(prepared)
        prepared.dev = prepared.dev.select([0])
    with tempfile.TemporaryDirectory() as folder:
        trainer = RagfitTrainer(
            cfg, prepared, SimpleNamespace(model=model), _small(args, folder), callbacks=[OneStep()]
        )
        for callback in list(trainer.callback_handler.callbacks):
            if not isinstance(callback, DefaultFlowCallback | RunCallback | OneStep):
                trainer.remove_callback(callback)
        if (
            args.world_size > 1 or args.deepspeed or args.torch_compile
        ):  # what takes a minute, or all processes together
            trainer.create_optimizer_and_scheduler(10)
            return
        collator = trainer.data_collator
        trainer.data_collator = lambda rows: collator([_end(row) for row in rows])
        trainer.train()


def _small(args, folder):
    """The run's arguments for a single step that leaves nothing behind."""
    small = copy.copy(args)
    vars(small).update(
        {key: copy.deepcopy(value) for key, value in vars(small).items() if isinstance(value, dict | list)}
    )
    small.output_dir, small.save_strategy, small.load_best_model_at_end, small.disable_tqdm = folder, "no", False, True
    small.gradient_accumulation_steps, small.eval_delay = 1, 0
    small.dataloader_num_workers, small.dataloader_drop_last = min(args.dataloader_num_workers, 1), False
    return small


def _end(row):
    """The last tokens of a row up to its last label."""
    stop = max(place for place, label in enumerate(row["labels"]) if label != -100) + 1
    return {key: values[max(0, stop - TOKENS) : stop] for key, values in row.items()}
