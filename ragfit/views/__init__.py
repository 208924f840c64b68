"""Views: what the model reads, what it learns from and what a run did, drawn from the trainer's own objects.

Each view has `_repr_html_` for notebooks, a `__repr__` that reads well in a log, and `save_html(path)`. Their HTML
survives JupyterLab's sanitizer: no scripts, no style sheets, only inline styles with hex colours.
"""

import importlib
from typing import Any

_HOME = {
    "TokenView": "views.tokens",
    "BatchView": "views.batch",
    "PromptView": "views.prompt",
    "ReportView": "data.report",
    "LengthsView": "views.lengths",
    "DifferencesView": "views.differences",
    "PreflightView": "training.preflight",
    "EvaluationView": "evaluation.view",
    "GroundingView": "evaluation.grounding_view",
    "RunsView": "runs.table",
    "SavedView": "runs.save",
    "StatusView": "runs.status",
    "LossCurve": "training.live",
    "RowView": "views.row",
    "rows_with_findings": "views.row",
    "explore": "views.explorer",
    "RagView": "views.documents",
    "token_losses": "evaluation.losses",
    "load_tuned": "training.reload",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ragfit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ragfit.views' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
