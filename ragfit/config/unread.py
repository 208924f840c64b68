"""Keys of `train` that nothing reads: what somebody set there and believes in would never happen.

Each field of `SFTConfig` was gone through once (trl 1.16, transformers 5.24). What is in neither table is read by
transformers' Trainer, TRL's SFTTrainer or this kit.
"""

from collections.abc import Collection
from typing import Any

from ragfit.config.keys import get
from ragfit.errors import ConfigError

# Keys of SFTConfig that nothing reads here, and what to do instead.
_LABELLED = "The rows are labelled and tokenized before the trainer sees them"
_HUB = "Set hfhub_tag to push the adapter at the end"
UNREAD = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "Training trains, and eval_strategy evaluates"),
    "resume_from_checkpoint": "Set resume_checkpoint",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "assistant_only_loss"), _LABELLED),
    **dict.fromkeys(("length_column_name", "include_for_metrics", "batch_eval_metrics"), _LABELLED),
    "truncation_mode": "Set model.over_length",
    "shuffle_dataset": "Set shuffle",
    "chat_template_path": "Set template, or the tokenizer's own chat template",
    **dict.fromkeys(("eos_token", "pad_token"), "Take a tokenizer that has it"),
    "model_init_kwargs": "Set the keys of model",
    "trust_remote_code": "Set model.trust_remote_code",
}
# Keys of `train` that are read only where one of these others is set (`key`, or `key=value`).
_EVALUATES, _BEST = ("train.eval_strategy",), ("train.load_best_model_at_end", "train.save_strategy=best")
_TRACKIO = ("train.report_to=trackio", "train.report_to=all")
READ_WITH = {
    **dict.fromkeys(("load_best_model_at_end", "eval_delay", "early_stopping_patience"), _EVALUATES),
    "eval_steps": ("train.eval_strategy=steps",),
    **dict.fromkeys(("eval_on_start", "eval_packing"), ("dev_split",)),
    "early_stopping_threshold": ("train.early_stopping_patience",),
    "metric_for_best_model": (*_BEST, "train.early_stopping_patience", "train.lr_scheduler_type=reduce_lr_on_plateau"),
    "greater_is_better": (*_BEST, "train.early_stopping_patience"),
    "save_steps": ("train.save_strategy=steps",),
    **dict.fromkeys(("save_total_limit", "save_only_model", "save_on_each_node"), ("train.save_strategy",)),
    "logging_steps": ("train.logging_strategy=steps",),
    "packing_strategy": ("train.packing",),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_persistent_workers"), ("train.dataloader_num_workers",)),
    "liger_kernel_config": ("train.use_liger_kernel",),
    **dict.fromkeys(("ignore_data_skip", "restore_callback_states_from_checkpoint"), ("resume_checkpoint",)),
    **dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
}
ON_BY_DEFAULT = {"train.save_strategy": "steps", "train.logging_strategy": "steps"}


def refuse_unread(tree: dict[str, Any], given: Collection[str]) -> list[str]:
    """Raise for a key that nothing reads in this configuration.

    Args:
        tree: the configuration as plain values.
        given: the keys that overrides set.

    Returns:
        Keys that are read no more since an override turned off what reads them, such as `train.save_steps` of a file
        beside `train.save_strategy=no`.
    """
    left = []
    for name, instead in UNREAD.items():
        if _is_on(tree, f"train.{name}"):
            raise ConfigError(f"train.{name}", "it is set, but nothing reads it", f"Remove it. {instead}.")
    for name, others in READ_WITH.items():
        key = f"train.{name}"
        if not _is_on(tree, key) or any(_is_on(tree, other) for other in others):
            continue
        if key not in given and any(other.partition("=")[0] in given for other in others):
            left.append(key)
        else:
            fix = f"Remove it, or set {' or '.join(others)}."
            raise ConfigError(key, "it is set, but nothing reads it in this configuration", fix)
    return left


def _is_on(tree: dict[str, Any], setting: str) -> bool:
    """Whether `key` has a value that turns something on, or `key=value` is that value or holds it."""
    key, _, wanted = setting.partition("=")
    value = get(tree, key)
    value = ON_BY_DEFAULT.get(key) if value is None else value
    if wanted:
        return wanted in value if isinstance(value, list) else value == wanted
    return value not in (None, False, 0, "", "no", "none", [], {})
