"""Rows whose expected answers are labels, such as yes and no."""

from collections.abc import Mapping, Sequence

from ragfit.data.words import words
from ragfit.evaluation.metrics import after_marker
from ragfit.evaluation.results import MODELS


def label_scores(table: Sequence[Mapping], marker: str | None = None) -> dict[str, dict[str, float]]:
    """`accuracy` and `macro_f1` where the expected answers are two to ten labels (yes, no, maybe); else {}.

    An answer that begins with a label ("Yes, because …") counts as it (PubMedQA, https://arxiv.org/abs/1909.06146).
    """
    from sklearn.metrics import accuracy_score, f1_score

    expected = [" ".join(words(row["expected"][0], joined=True)) for row in table]
    labels = sorted(set(expected), key=len, reverse=True)  # the longest first: "not sure" is not "not"
    if not 2 <= len(labels) <= min(10, len(table) / 3) or any(len(row["expected"]) > 1 for row in table):
        return {}
    found = {"accuracy": {"rows": len(table)}, "macro_f1": {"rows": len(table)}}
    for name in (name for name in MODELS if name in table[0]):
        answers = [" ".join(words(after_marker(row[name], marker), joined=True)) + " " for row in table]
        said = [next((label for label in labels if answer.startswith(f"{label} ")), "") for answer in answers]
        found["accuracy"][name] = accuracy_score(expected, said)
        found["macro_f1"][name] = f1_score(expected, said, labels=labels, average="macro", zero_division=0.0)
    return found
