"""Keys of `train` that nothing reads: what somebody set there and believes in would never happen.

Each field of `SFTConfig` was gone through once (trl 1.16, transformers 5.24). What is in neither table is read by
transformers' Trainer, TRL's SFTTrainer or this kit.
"""

from collections.abc import Collection
from typing import Any

from ragfit.config.keys import get
from ragfit.errors import ConfigError

# What to do instead, and the keys that nothing reads here.
_UNREAD = {
    "Training trains, and eval_strategy evaluates": "do_train do_eval do_predict",
    "Set resume_checkpoint": "resume_from_checkpoint",
    "Set hfhub_tag to push the adapter at the end": "push_to_hub hub_model_id hub_private_repo hub_strategy "
    "hub_always_push hub_revision",
    "The rows are labelled and tokenized before the trainer sees them": "dataset_text_field dataset_kwargs "
    "dataset_num_proc assistant_only_loss length_column_name include_for_metrics batch_eval_metrics",
    "Set model.over_length": "truncation_mode",
    "Set shuffle": "shuffle_dataset",
    "Set template, or the tokenizer's own chat template": "chat_template_path",
    "Take a tokenizer that has it": "eos_token pad_token",
    "Set the keys of model": "model_init_kwargs trust_remote_code",
}
UNREAD = {name: instead for instead, names in _UNREAD.items() for name in names.split()}
# Keys that are read only where one of some others is set (`key`, or `key=value`), and these others.
_BEST = "train.load_best_model_at_end train.save_strategy=best train.early_stopping_patience"
_READ_WITH = {
    "load_best_model_at_end eval_delay early_stopping_patience": "train.eval_strategy",
    "eval_steps": "train.eval_strategy=steps",
    "eval_on_start eval_packing": "dev_split",
    "early_stopping_threshold": "train.early_stopping_patience",
    "metric_for_best_model": f"{_BEST} train.lr_scheduler_type=reduce_lr_on_plateau",
    "greater_is_better": _BEST,
    "save_steps": "train.save_strategy=steps",
    "save_total_limit save_only_model save_on_each_node": "train.save_strategy",
    "logging_steps": "train.logging_strategy=steps",
    "packing_strategy": "train.packing",
    "dataloader_prefetch_factor dataloader_persistent_workers": "train.dataloader_num_workers",
    "liger_kernel_config": "train.use_liger_kernel",
    "ignore_data_skip restore_callback_states_from_checkpoint": "resume_checkpoint",
    "trackio_space_id trackio_bucket_id trackio_static_space_id": "train.report_to=trackio train.report_to=all",
}
READ_WITH = {name: others.split() for names, others in _READ_WITH.items() for name in names.split()}
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
    for key in [f"train.{name}" for name in tree["train"] if _is_on(tree, f"train.{name}")]:
        name = key.removeprefix("train.")
        if name in UNREAD:
            raise ConfigError(key, "it is set, but nothing reads it", f"Remove it. {UNREAD[name]}.")
        others = READ_WITH.get(name, [key])
        if any(_is_on(tree, other) for other in others):
            continue
        if key in given or not any(other.partition("=")[0] in given for other in others):
            fix = f"Remove it, or set {' or '.join(others)}."
            raise ConfigError(key, "it is set, but nothing reads it in this configuration", fix)
        left.append(key)
    return left


def _is_on(tree: dict[str, Any], setting: str) -> bool:
    """Whether `key` has a value that turns something on, or `key=value` is that value or holds it."""
    key, _, wanted = setting.partition("=")
    value = get(tree, key)
    value = ON_BY_DEFAULT.get(key) if value is None else value
    if wanted:
        return wanted in value if isinstance(value, list) else value == wanted
    return value not in (None, False, 0, "", "no", "none", [], {})
