"""The arguments of the trainer, as the configuration and the device ask for them."""

import os
import tempfile

from omegaconf import OmegaConf
from trl import SFTConfig

from ragfit.config.explain import tried
from ragfit.config.paths import user_path
from ragfit.config.save import without_secrets
from ragfit.errors import ConfigError
from ragfit.models.hf import bf16_is_fast
from ragfit.secrets import masked
from ragfit.training.tracking import prepare_trackers


def check_writable(output_dir):
    """Raise before training where the adapter could not be saved after it."""
    try:
        user_path(output_dir, "train.output_dir").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"train.output_dir: {output_dir} cannot be written: {error.strerror}. Set train.output_dir to a folder of yours."
        ) from error


class Arguments(SFTConfig):
    """`SFTConfig` that is pickled (`training_args.bin`, in checkpoints) and told to trackers without secrets.

    `from_environment` stands there in place of what came from the environment: the text that it was written as.
    """

    from_environment = {}

    def __getstate__(self):
        return masked(self.__dict__ | self.from_environment)

    def to_dict(self):
        return masked(super().to_dict() | self.from_environment)


def training_arguments(cfg, prepared):
    """The `trl.SFTConfig` of a configuration.

    What the rows need is set here and cannot be overridden: they are tokenized and labelled, and must be neither
    cut, packed nor labelled again. What the configuration leaves open is chosen for the device.

    Raises:
        ConfigError: evaluation without a dev set, or an argument that transformers refuses.
    """
    import torch

    given = OmegaConf.to_container(cfg.train, resolve=True)
    for key in ("packing", "padding_free", "assistant_only_loss"):
        if given.get(key):
            raise ConfigError(f"train.{key} is set, but rows are labelled and padded by this kit. Remove train.{key}.")
    for key in ("chat_template_path", "eos_token"):
        if given.get(key):
            raise ConfigError(
                f"train.{key} is set, but the rows are written with the tokenizer of model.model_name_or_path. "
                f"Remove train.{key}; set template for a prompt of your own."
            )
    given |= {
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    given.setdefault("logging_nan_inf_filter", False)  # else a loss that is no number is logged as an average
    cuda = torch.cuda.is_available() and not given.get("use_cpu")
    if not torch.accelerator.is_available():
        given["use_cpu"] = True  # else transformers refuses bf16, which a CPU can do
    for suffix in ("", "_kwargs"):  # the name that transformers 6 keeps
        old = given.pop(f"gradient_checkpointing{suffix}", None)
        if given.get(f"activation_checkpointing{suffix}") is None:
            given[f"activation_checkpointing{suffix}"] = old
    if given["activation_checkpointing"] is None:
        # It trades time for memory: worth it on a GPU, seldom on a CPU.
        given["activation_checkpointing"] = cuda
    if given.get("bf16") is None:
        given["bf16"] = bf16_is_fast() and not given.get("fp16")
    if not cuda and given.get("fp16"):
        raise ConfigError(
            "train.fp16 is set, but there is no GPU. Set train.fp16=false; train.bf16=true works on a CPU."
        )
    if not cuda:
        given.setdefault("dataloader_pin_memory", False)
    if prepared.dev is None and str(given.get("eval_strategy") or "no") != "no":
        raise ConfigError(
            f"train.eval_strategy={given['eval_strategy']} needs a dev set. Set dev_split to a share, such as 0.1, or to a file."
        )
    if prepared.dev is None:
        given.pop("eval_on_start", None)
    given = {key: value for key, value in given.items() if value is not None or key == "max_length"}
    given.setdefault("report_to", "none")
    if cfg.get("use_wandb"):
        others = given["report_to"] if isinstance(given["report_to"], list) else [given["report_to"]]
        given["report_to"] = sorted({*others, "wandb"} - {"none", "all"})
    args = tried(
        lambda keys: Arguments(**keys),
        given,
        lambda name: {k: v for k, v in given.items() if k != name},
        None,
        "train",
        given,
    )
    prepare_trackers(args)
    args.from_environment = {name: text for name, text in without_secrets(cfg)["train"].items() if "${" in str(text)}
    if "LOCAL_RANK" not in os.environ and args.n_gpu > 1:
        # Trainer would take all visible GPUs through DataParallel, which TRL refuses. One process takes one GPU;
        # model.device_map=auto or `accelerate launch` take more.
        args._n_gpu = 1
    if args.dataloader_drop_last:
        _check_batches(args, prepared)
    return args


def _check_batches(args, prepared):
    """Where the last batch is dropped for want of rows, there must be another one."""
    for part, rows in (("train", prepared.train), ("eval", prepared.dev)):
        needed = getattr(args, f"{part}_batch_size") * args.world_size
        if rows is not None and len(rows) < needed:
            raise ConfigError(
                f"train.dataloader_drop_last drops the only batch: there are {len(rows)} rows to {part} on, and a batch takes {needed}. "
                f"Set train.dataloader_drop_last=false, or lower train.per_device_{part}_batch_size."
            )
