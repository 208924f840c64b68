"""The files that a run leaves in its output folder, and the names of the figures in them."""

from datetime import UTC, datetime

CONFIG, STATUS, LOG, EVALUATION = "ragfit.yaml", "status.json", "trainer_state.json", "evaluation.json"
GROUNDING = "grounding.json"
METRICS = {  # of `ragfit.evaluation.metrics.scores`: name, and what it is
    "exact_match": ("exact match", "the answer is an expected one"),
    "f1": ("token F1", "tokens shared with the expected answer that fits best"),
    "recall": ("answer recall", "the share of short answers found in the answer"),
    "citations": ("same citations", "it cites the documents that the expected answer cites"),
}
OF_LABELS = {  # the same where the expected answers are labels
    "accuracy": ("accuracy", "the answer is the expected label, or begins with it"),
    "macro_f1": ("macro F1", "the mean over the labels of each one's F1"),
}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
