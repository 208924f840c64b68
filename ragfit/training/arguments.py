"""The arguments of the trainer, as the configuration and the device ask for them."""

import os
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import EarlyStoppingCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl import SFTConfig

from ragfit.config.load import resolved
from ragfit.config.save import leaves, without_secrets
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError
from ragfit.models.hf import bf16_is_fast
from ragfit.secrets import masked


class Arguments(SFTConfig):
    """`SFTConfig` that is pickled into checkpoints and told to trackers without secrets, with the configuration."""

    told = {}  # the configuration without secrets, by dotted keys: what came from the environment as it was written

    def _masked(self, values: dict[str, Any]) -> dict[str, Any]:
        written = {name: self.told.get(f"train.{name}") for name, value in values.items() if isinstance(value, str)}
        return masked(values | {name: text for name, text in written.items() if "${" in str(text)})

    def __getstate__(self) -> dict[str, Any]:
        return self._masked(self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        return self._masked(super().to_dict()) | {f"ragfit.{key}": value for key, value in self.told.items()}


def training_arguments(cfg: DictConfig, prepared: Prepared) -> Arguments:
    """The arguments of a configuration; what it leaves open is chosen for the device."""
    given = {key: value for key, value in resolved(cfg, "train").items() if value is not None}
    cuda, strategy = torch.cuda.is_available() and not given.get("use_cpu"), given.get("eval_strategy", "no")
    if prepared.dev is None and strategy != "no":
        fix = "Set dev_split to a share, such as 0.1, or to a file."
        raise ConfigError("train.eval_strategy", f"{strategy} needs a dev set", fix)
    defaults = {
        "bf16": bf16_is_fast() and not given.get("fp16"),
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,  # the live display stands in its place
        "activation_checkpointing": given.pop("gradient_checkpointing", cuda),  # on a CPU it seldom pays
        "logging_nan_inf_filter": False,  # else a loss that is not a number is logged as an average
        "project": "ragfit",
    }
    if "early_stopping_patience" in given:  # the best step needs a checkpoint, and a resumed run the count so far
        defaults |= {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}
        every = given.get("eval_steps", given.get("logging_steps", 10))
        given |= {"save_strategy": strategy, "save_steps": every, "restore_callback_states_from_checkpoint": True}
    given = defaults | {key: value for key, value in given.items() if not key.startswith("early_stopping_")}
    # The rows are tokenized, labelled and packed already.
    given |= {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    if not torch.accelerator.is_available():
        given["use_cpu"] = True  # else transformers refuses bf16, which a CPU can do
    if cfg.get("use_wandb"):
        others = given.get("report_to", "none")
        given["report_to"] = sorted({*([others] if isinstance(others, str) else others), "wandb"} - {"none", "all"})
    args = Arguments(**given)
    for make in get_reporting_integration_callbacks(args.report_to):
        make()  # refuses a package that is not installed
    args.told = dict(leaves(without_secrets(cfg)))
    if "LOCAL_RANK" not in os.environ and args.n_gpu > 1:
        args._n_gpu = 1  # TRL refuses DataParallel over all visible GPUs, which Trainer would take
    return args


def early_stopping(cfg: DictConfig) -> list[EarlyStoppingCallback]:
    """transformers' callback, where `train.early_stopping_patience` asks for it."""
    patience = cfg.train.get("early_stopping_patience")
    return [EarlyStoppingCallback(patience, cfg.train.get("early_stopping_threshold") or 0.0)] if patience else []
