"""Fine-tune language models for RAG from notebooks, and see which tokens they learn from.

`import ragfit` imports nothing heavy; each name below brings its module with it when it is first used.
"""

import importlib
from typing import Any

import ragfit.before_torch  # noqa: F401  (whichever part of the kit is used first)

__version__ = "0.1.0"

_NAMES = {
    "config.load": ["load_config", "differences"],
    "config.save": ["save_config", "to_yaml"],
    "config.notebook": ["from_parameters", "overrides_for"],
    "data.prepare": ["prepare"],
    "data.report": ["Prepared"],
    "training.run": ["build_trainer", "train", "run"],
    "training.preflight": ["preflight"],
    "training.reload": ["load_checkpoint"],
    "evaluation.evaluate": ["evaluate"],
    "evaluation.grounding": ["grounding"],
    "evaluation.losses": ["dev_loss"],
    "runs.status": ["run_status"],
    "runs.merge": ["merge_checkpoint"],
    "runs.table": ["table_of_runs"],
    "errors": ["RagfitError"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_ROOMS = "collator config data draw errors evaluation files models runs secrets training views".split()  # noqa: SIM905

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ragfit.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"ragfit.{name}")
    raise AttributeError(f"module 'ragfit' has no attribute {name!r}")


def __dir__() -> list[str]:  # what a notebook completes
    return [*globals(), *_HOME, *_ROOMS]
