"""What the notebooks show, drawn from the trainer's own objects: each view is HTML, and text for a log."""

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
    if name not in _HOME:
        raise AttributeError(f"module 'ragfit.views' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ragfit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
