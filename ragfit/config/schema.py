"""For the merge: goes with views/row.py, views/copied.py, training/trial.py and runs/table.py."""

from ragfit.config.keys import HF_TRAIN, PROMPT_KEYS, RENAMED, get, is_hf_train  # noqa: F401

REMOVED = ()


def renamed(packing: object) -> dict[str, str]:
    return {old: new for old, new in RENAMED.items() if not (packing and old == "train.max_length")}
