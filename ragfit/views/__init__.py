"""Views: what the model reads, what it learns from and what a run did, drawn from the trainer's own objects.

Each view has `_repr_html_` for notebooks, a `__repr__` that reads well in a log, and `save_html(path)`. Their HTML
survives JupyterLab's sanitizer: no scripts, no style sheets, only inline styles with hex colours.
"""

import importlib

_HOME = {
    "TokenView": "tokens",
    "PromptView": "prompt",
    "ReportView": "report",
    "report_html": "report",
    "LengthsView": "lengths",
    "DifferencesView": "run",
    "PreflightView": "run",
    "EvaluationView": "answers",
    "RunsView": "runs",
    "SavedView": "run",
    "StatusView": "run",
    "FailureView": "failure",
    "failure_on_top": "failure",
    "LossCurve": "curve",
    "loss_curve": "curve",
    "RowView": "rows",
    "rows_with_findings": "rows",
    "explore": "interactive",
    "RagView": "rag",
    "token_losses": "losses",
    "load_tuned": "losses",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"ragfit.views.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ragfit.views' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_HOME})
