"""Keys of `train` that nothing reads; `SFTConfig`'s fields were gone through for them (trl 1.16, transformers 5.24)."""

from typing import Any

from ragfit.errors import ConfigError


def _by_key(table: dict[str, str]) -> dict[str, list[str]]:
    return {f"train.{name}": settings.split() for settings, names in table.items() for name in names.split()}


# What to set instead, and the keys that nothing reads here.
UNREAD = _by_key({
    "": "do_train do_eval do_predict dataset_text_field dataset_kwargs dataset_num_proc assistant_only_loss "
    "length_column_name include_for_metrics batch_eval_metrics truncation_mode shuffle_dataset chat_template_path",
    "resume_checkpoint": "resume_from_checkpoint",
    "hfhub_tag": "push_to_hub hub_model_id hub_private_repo hub_strategy hub_always_push hub_revision",
    "train.packing": "padding_free eval_packing packing_strategy",
    "model": "model_init_kwargs trust_remote_code eos_token pad_token",
})  # fmt: skip
# One of these is to be on (`key`, or `key=value`), and the keys that are read only then.
READ_WITH = _by_key({
    "train.eval_strategy": "load_best_model_at_end eval_delay eval_on_start early_stopping_patience",
    "train.eval_strategy=steps": "eval_steps",
    "train.early_stopping_patience": "early_stopping_threshold",
    "train.load_best_model_at_end train.save_strategy=best train.early_stopping_patience "
    "train.lr_scheduler_type=reduce_lr_on_plateau": "metric_for_best_model greater_is_better",
    "train.save_strategy=steps": "save_steps",
    "train.save_strategy": "save_total_limit save_only_model save_on_each_node",
    "train.packing": "max_length",
})  # fmt: skip


def refuse_unread(values: dict[str, Any], given: set[str]) -> list[str]:
    """Raise a ConfigError for a key that nothing reads; returns those that an override has put out of use."""
    left = []
    for key, settings in (UNREAD | READ_WITH).items():
        if not _is_on(values, key) or key in READ_WITH and any(_is_on(values, setting) for setting in settings):
            continue
        if key in given | UNREAD.keys() or given.isdisjoint(setting.partition("=")[0] for setting in settings):
            fix = " or ".join(["Remove it", *(f"set {setting}" for setting in settings)])
            raise ConfigError(key, "it is set, but nothing reads it in this configuration", f"{fix}.")
        left.append(key)
    return left


def _is_on(values: dict[str, Any], setting: str) -> bool:
    key, _, wanted = setting.partition("=")
    value = values.get(key, "steps" if key == "train.save_strategy" else None)  # which is on by default
    return value == wanted if wanted else value not in (None, False, 0, "", "no", "none", [], {})
