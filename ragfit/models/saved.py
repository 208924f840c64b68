"""What a saved adapter says of the model that it belongs to."""

from pathlib import Path
from typing import Any

from ragfit.config.trust import believed
from ragfit.errors import ConfigError


def earlier_adapter(checkpoint: str | Path) -> str | None:
    """The adapter that was merged into the base before this one was trained (`model.trained_adapter`), or None."""
    return _model_keys(checkpoint).get("trained_adapter")


def quantized_in_training(checkpoint: str | Path) -> str | None:
    """How a run's base was quantized: "8-bit", "4-bit", "quantized", or None."""
    keys = _model_keys(checkpoint)
    eight, four = keys.get("load_in_8bit"), keys.get("load_in_4bit")
    return "8-bit" if eight else "4-bit" if four else "quantized" if keys.get("quantization_config") else None


def _model_keys(checkpoint: str | Path) -> dict[str, Any]:
    """What counts of the keys of `model`; {} where the configuration cannot be read, which merging says."""
    try:
        return believed(checkpoint)[0].get("model", {})
    except ConfigError:
        return {}
