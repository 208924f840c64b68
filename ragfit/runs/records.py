"""The small files that a run leaves in its output folder: their names, and what they measure."""

from datetime import UTC, datetime

CONFIG, STATUS, LOG, EVALUATION = "ragfit.yaml", "status.json", "trainer_state.json", "evaluation.json"
GROUNDING = "grounding.json"
# What an evaluation measures, with its name and what it is: what `ragfit.evaluation.metrics.scores` gives.
METRICS = {
    "exact_match": ("exact match", "the answer is an expected one"),
    "f1": ("token F1", "tokens shared with the expected answer that fits best"),
    "recall": ("answer recall", "the share of short answers found in the answer"),
    "citations": ("same citations", "it cites the documents that the expected answer cites"),
}
# The same of one whose expected answers are labels.
OF_LABELS = {
    "accuracy": ("accuracy", "the answer is the expected label, or begins with it"),
    "macro_f1": ("macro F1", "the mean over the labels of each one's F1"),
}


def now() -> str:
    """The time as it is written into these files."""
    return datetime.now(UTC).isoformat(timespec="seconds")
