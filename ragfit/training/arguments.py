"""The arguments of the trainer, as the configuration and the device ask for them."""

import os
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from trl import SFTConfig

from ragfit.config.explain import tried
from ragfit.config.paths import user_path
from ragfit.config.save import without_secrets
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError
from ragfit.models.hf import bf16_is_fast
from ragfit.secrets import masked
from ragfit.training import packing
from ragfit.training.tracking import PROJECT, prepare_trackers

if TYPE_CHECKING:
    from datasets import Dataset

# Keys of TRL that would undo what this kit has prepared, and why they are refused.
LABELLED = "this kit labels the rows"
WRITTEN = "the rows are written with the tokenizer of model.model_name_or_path, or with template"
REFUSED = {"assistant_only_loss": LABELLED, "chat_template_path": WRITTEN, "eos_token": WRITTEN}


def check_writable(folder: str, key: str = "train.output_dir") -> None:
    """Raise before hours of work where what comes of it could not be saved."""
    path = user_path(folder, key)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
        raise ConfigError(key, problem, f"Set {key} to a folder of yours.") from error


class Arguments(SFTConfig):
    """`SFTConfig` that is pickled (`training_args.bin`, in checkpoints) and told to trackers without secrets.

    `from_environment` stands there in place of what came from the environment: the text that it was written as.
    """

    from_environment = {}

    def __getstate__(self) -> dict[str, Any]:
        return masked(self.__dict__ | self.from_environment)

    def to_dict(self) -> dict[str, Any]:
        return masked(super().to_dict() | self.from_environment)


def training_arguments(cfg: DictConfig, prepared: Prepared) -> Arguments:
    """The arguments of a configuration.

    What the rows need is set here and cannot be overridden: they are tokenized and labelled, and must be neither
    cut nor labelled again. TRL packs only what it prepares itself, so it is told of no packing; the trainer is given
    packs. What the configuration leaves open is chosen for the device.

    Raises:
        ConfigError: evaluation without a dev set, or an argument that transformers refuses.
    """
    given = OmegaConf.to_container(cfg.train, resolve=True)
    for key in REFUSED:
        if given.get(key):
            raise ConfigError(f"train.{key}", f"it is set, but {REFUSED[key]}", f"Remove train.{key}.")
    packing.check_keys(given)
    for suffix in ("", "_kwargs"):  # the name that transformers 6 keeps
        old = given.pop(f"gradient_checkpointing{suffix}", None)
        if given.get(f"activation_checkpointing{suffix}") is None:
            given[f"activation_checkpointing{suffix}"] = old
    cuda = torch.cuda.is_available() and not given.get("use_cpu")
    if not cuda and given.get("fp16"):
        fix = "Set train.fp16=false; train.bf16=true works on a CPU."
        raise ConfigError("train.fp16", "it is set, but there is no GPU", fix)
    if prepared.dev is None:
        if (strategy := str(given.get("eval_strategy") or "no")) != "no":
            fix = "Set dev_split to a share, such as 0.1, or to a file."
            raise ConfigError("train.eval_strategy", f"{strategy} needs a dev set", fix)
        given.pop("eval_on_start", None)
    defaults = {
        # It trades time for memory: worth it on a GPU, seldom on a CPU.
        "activation_checkpointing": cuda,
        "bf16": bf16_is_fast() and not given.get("fp16"),
        "dataloader_pin_memory": cuda,
        "logging_nan_inf_filter": False,  # else a loss that is not a number is logged as an average
        "project": PROJECT,
        "report_to": "none",
        "trackio_static_space_id": False,  # else pushing a checkpoint publishes a Space with the metrics
    }
    given = defaults | {key: value for key, value in given.items() if value is not None}
    given |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    given |= dict.fromkeys(packing.KEYS, False)
    if not torch.accelerator.is_available():
        given["use_cpu"] = True  # else transformers refuses bf16, which a CPU can do
    if cfg.get("use_wandb"):
        others = given["report_to"] if isinstance(given["report_to"], list) else [given["report_to"]]
        given["report_to"] = sorted({*others, "wandb"} - {"none", "all"})

    def without(name: str) -> dict[str, Any]:
        return {key: value for key, value in given.items() if key != name}

    args = tried(lambda keys: Arguments(**keys), given, without, None, "train", given)
    prepare_trackers(args)
    args.from_environment = {name: text for name, text in without_secrets(cfg)["train"].items() if "${" in str(text)}
    if "LOCAL_RANK" not in os.environ and args.n_gpu > 1:
        # Trainer would take all visible GPUs through DataParallel, which TRL refuses. One process takes one GPU;
        # model.device_map=auto or `accelerate launch` take more.
        args._n_gpu = 1
    return args


def check_batches(args: Arguments, train: "Dataset", dev: "Dataset | None") -> None:
    """Raise where the last batch is dropped for want of rows (or packs), and there is no other one."""
    for part, size, rows in (("train", args.train_batch_size, train), ("eval", args.eval_batch_size, dev)):
        needed = size * args.world_size
        if args.dataloader_drop_last and rows is not None and len(rows) < needed:
            raise ConfigError(
                "train.dataloader_drop_last",
                f"it drops the only batch: there are {len(rows)} rows to {part} on, and a batch takes {needed}",
                f"Set train.dataloader_drop_last=false, or lower train.per_device_{part}_batch_size.",
            )
