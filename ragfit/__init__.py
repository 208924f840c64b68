"""Fine-tune language models for RAG from notebooks, and see which tokens they learn from.

`import ragfit` imports nothing heavy; each name below brings its module with it when it is first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "load_config": "config",
    "save_config": "config",
    "to_yaml": "config",
    "from_parameters": "parameters",
    "overrides_for": "parameters",
    "prepare": "preparation",
    "Prepared": "preparation",
    "build_trainer": "training",
    "train": "training",
    "run": "training",
    "run_status": "status",
    "preflight": "resources",
    "evaluate": "evaluation",
    "load_checkpoint": "evaluation",
    "merge_checkpoint": "merge",
    "table_of_runs": "runs",
    "dev_loss": "answers",
    "differences": "config",
    "RagfitError": "errors",
}
_MODULES = {
    "answers", "cache", "checkpoints", "collator", "config", "data", "demo", "errors", "evaluation", "findings", "hub", "keys", "masking", "merge", "metrics", "models", "overrides", "parameters",
    "preparation", "prepared", "printable", "prompts", "resources", "runs", "status", "tokenizers", "tracking", "trainer", "training", "trial", "views",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"ragfit.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"ragfit.{name}")
    raise AttributeError(f"module 'ragfit' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_HOME, *_MODULES})
