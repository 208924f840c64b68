"""Fine-tune language models for RAG from notebooks, and see which tokens they learn from.

`import ragfit` imports nothing heavy; each name below brings its module with it when it is first used.
"""

import importlib
from typing import Any

import ragfit.before_torch  # noqa: F401  (whichever part of the kit is used first)

__version__ = "0.1.0"

_HOME = {
    "load_config": "config.load",
    "save_config": "config.save",
    "to_yaml": "config.save",
    "differences": "config.load",
    "from_parameters": "config.notebook",
    "overrides_for": "config.notebook",
    "prepare": "data.prepare",
    "Prepared": "data.report",
    "build_trainer": "training.run",
    "train": "training.run",
    "run": "training.run",
    "preflight": "training.preflight",
    "load_checkpoint": "training.reload",
    "evaluate": "evaluation.evaluate",
    "grounding": "evaluation.grounding",
    "dev_loss": "evaluation.losses",
    "run_status": "runs.status",
    "merge_checkpoint": "runs.merge",
    "table_of_runs": "runs.table",
    "RagfitError": "errors",
}
_ROOMS = "collator config data draw errors evaluation files models runs secrets training views".split()  # noqa: SIM905

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ragfit.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"ragfit.{name}")
    raise AttributeError(f"module 'ragfit' has no attribute {name!r}")
