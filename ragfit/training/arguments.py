"""The arguments of the trainer, as the configuration and the device ask for them."""

import os
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import EarlyStoppingCallback
from trl import SFTConfig

from ragfit.config.load import resolved
from ragfit.config.save import leaves, without_secrets
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError
from ragfit.models.hf import bf16_is_fast
from ragfit.secrets import masked
from ragfit.training.tracking import check_trackers

OWN = ("early_stopping_patience", "early_stopping_threshold", "stop_on_nan")  # keys of `train` that are this kit's


class Arguments(SFTConfig):
    """`SFTConfig` that is pickled (`training_args.bin`, in checkpoints) and told to trackers without secrets.

    Trackers get the whole configuration beside the arguments. What came from the environment is told as it was written.

    Attributes:
        told: the configuration without secrets, by dotted keys.
    """

    told = {}

    def _masked(self, values: dict[str, Any]) -> dict[str, Any]:
        written = {name: self.told.get(f"train.{name}") for name, value in values.items() if isinstance(value, str)}
        return masked(values | {name: text for name, text in written.items() if "${" in str(text)})

    def __getstate__(self) -> dict[str, Any]:
        return self._masked(self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        return self._masked(super().to_dict()) | {f"ragfit.{key}": value for key, value in self.told.items()}


def training_arguments(cfg: DictConfig, prepared: Prepared) -> Arguments:
    """The arguments of a configuration.

    What the rows need is set here and cannot be overridden: they are tokenized and labelled, and must be neither
    cut nor labelled again. TRL packs only what it prepares itself, so it is told of no packing; the trainer is given
    packs. What the configuration leaves open is chosen for the device.

    Raises:
        ConfigError: evaluation without a dev set, or a key that goes against the prepared rows.
        ValueError: of transformers or TRL, for a value that they refuse.
    """
    given = {key: value for key, value in resolved(cfg, "train").items() if value is not None}
    _evaluate(given, prepared)
    for suffix in ("", "_kwargs"):  # the name that transformers 6 keeps
        old = given.pop(f"gradient_checkpointing{suffix}", None)
        if old is not None:
            given.setdefault(f"activation_checkpointing{suffix}", old)
    cuda = torch.cuda.is_available() and not given.get("use_cpu")
    defaults = {
        # It trades time for memory: worth it on a GPU, seldom on a CPU.
        "activation_checkpointing": cuda,
        "bf16": bf16_is_fast() and not given.get("fp16"),
        "dataloader_pin_memory": cuda,
        "logging_nan_inf_filter": False,  # else a loss that is not a number is logged as an average
        "project": "ragfit",
        "report_to": "none",
        "trackio_static_space_id": False,  # else pushing a checkpoint publishes a Space with the metrics
    }
    given = defaults | {key: value for key, value in given.items() if key not in OWN}
    given |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    given |= {"packing": False}
    if given.get("fp16") and not cuda:
        raise ConfigError("train.fp16", "it is set, but there is no GPU", "Set train.bf16=true, which a CPU can do.")
    if not torch.accelerator.is_available():
        given["use_cpu"] = True  # else transformers refuses bf16, which a CPU can do
    if cfg.get("use_wandb"):
        others = given["report_to"] if isinstance(given["report_to"], list) else [given["report_to"]]
        given["report_to"] = sorted({*others, "wandb"} - {"none", "all"})
    args = Arguments(**given)
    check_trackers(args)
    args.told = dict(leaves(without_secrets(cfg)))
    if "LOCAL_RANK" not in os.environ and args.n_gpu > 1:
        # Trainer would take all visible GPUs through DataParallel, which TRL refuses. One process takes one GPU;
        # model.device_map=auto or `accelerate launch` take more.
        args._n_gpu = 1
    return args


def _evaluate(given: dict[str, Any], prepared: Prepared) -> None:
    """Check what evaluation needs, and give early stopping what it needs."""
    strategy = str(given.get("eval_strategy", "no"))
    if prepared.dev is None:
        given.pop("eval_on_start", None)
        if strategy != "no":
            fix = "Set dev_split to a share, such as 0.1, or to a file."
            raise ConfigError("train.eval_strategy", f"{strategy} needs a dev set", fix)
    if given.get("early_stopping_patience") is None:
        return
    given.setdefault("metric_for_best_model", "eval_loss")
    if given.setdefault("load_best_model_at_end", True):  # which needs a checkpoint of each evaluated step
        given |= {"save_strategy": strategy, "save_steps": given.get("eval_steps", given.get("logging_steps", 10))}


def early_stopping(cfg: DictConfig) -> list[EarlyStoppingCallback]:
    """transformers' callback, where `train.early_stopping_patience` asks for it."""
    patience, threshold = (cfg.train.get(f"early_stopping_{key}") for key in ("patience", "threshold"))
    return [] if patience is None else [EarlyStoppingCallback(patience, threshold or 0.0)]
