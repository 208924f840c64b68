"""What looks wrong: findings over the whole data set, each with its rows, its meaning and its remedy."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Something to look at before training.

    Attributes:
        kind: a short name, a key of `KINDS`.
        severity: "warning" (the model will learn something else than meant) or "note".
        meaning: what it means for training, in a sentence.
        fix: the configuration key that mends it, and how.
        rows: the rows concerned, as (part, number) with part "train" or "dev" and the row's number in its file
            from 0; empty where it concerns all of them.
        detail: what was seen.
    """

    kind: str
    severity: str
    meaning: str
    fix: str
    rows: tuple[tuple[str, int], ...] = ()
    detail: str = ""

    def __str__(self):
        rows = "all rows" if not self.rows else f"{len(self.rows)} row{'s' * (len(self.rows) != 1)}"
        if self.rows:
            first = ", ".join(f"{part} {number}" for part, number in self.rows[:5])
            rows += f" ({first}{', …' if len(self.rows) > 5 else ''})"
        detail = f" Seen: {self.detail}." if self.detail else ""
        return f"[{self.severity}] {self.kind}, {rows}: {self.meaning}{detail} {self.fix}"


KINDS = {
    "instruction not in prompt": (
        "warning",
        "The template drops the system message, so the model never reads the instruction.",
        "Set model.instruction_in_prompt=true, or use a template that keeps it.",
    ),
    "prompt mismatch": (
        "warning",
        "The training text does not begin with the prompt the model is given at inference, so it learns to continue another text.",
        "Set template to a file of your own, or use a tokenizer whose template renders both alike.",
    ),
    "output changed by the template": (
        "warning",
        "The template rewrites these outputs (it drops their reasoning, say), and what it writes is learned instead.",
        "Set template to a file of your own, which writes outputs as they stand, or keep what it drops out of the data.",
    ),
    "marker not before the output": (
        "warning",
        "The template writes other text before these outputs (they bring their own reasoning, say), so loss begins where "
        "the generation prompt or that text ends.",
        "Set model.completion_start to a marker that stands before every output, or change the rows.",
    ),
    "other text has loss": (
        "warning",
        "Text that the template adds before the output has loss and will be generated.",
        "Set model.completion_start to a marker that ends behind it, unless that is wanted.",
    ),
    "first word without loss": (
        "warning",
        "One token holds the prompt's last character and the output's first ones. It counts as prompt, so the output's "
        "beginning is not learned, and at inference the model cannot say it in the same way.",
        "Let the template (or the prompt, where nothing stands between it and the output) end without white space.",
    ),
    "no end of turn": (
        "warning",
        "No token that ends generation (EOS, or one that the model's generation configuration names) has loss, so the "
        "model does not learn to stop.",
        "Give the tokenizer an eos_token, or set template to a file that ends with one.",
    ),
    "double BOS": (
        "warning",
        "The text begins with two BOS tokens, which the model has never seen.",
        "Remove BOS from the data or the template.",
    ),
    "dropped: too long": (
        "warning",
        "The row has more tokens than max_sequence_len and is not trained on.",
        "Raise model.max_sequence_len, or set model.over_length to cut_start or cut_end to cut the prompt.",
    ),
    "data file changed": (
        "warning",
        "The file was written to after it was opened. Lines that were added since are not among these rows.",
        "Start again once it is whole.",
    ),
    "cut": (
        "note",
        "The row's prompt was cut so that the row fits max_sequence_len; its completion is whole.",
        "Raise model.max_sequence_len to keep it whole.",
    ),
    "dropped: no loss": (
        "warning",
        "No token of the row has loss, so there is nothing to learn from it.",
        "Check output_key and the row.",
    ),
    "dropped: place of output unknown": (
        "warning",
        "The template rewrites the answer so that its place cannot be known; the row is not trained on.",
        "Change the rows, or set template to a file of your own.",
    ),
    "dropped: refused by the template": (
        "warning",
        "The template raises an error for these rows; they are not trained on.",
        "Change the rows, or set template to a file of your own.",
    ),
    "empty output": (
        "warning",
        "The output is empty, so the model learns to say nothing.",
        "Check output_key, or remove the rows.",
    ),
    "special tokens in data": (
        "warning",
        "The row's own text holds special tokens, which the model reads as control tokens.",
        "Remove them from the data.",
    ),
    "dated template": (
        "note",
        "The template writes today's date, so the same rows give other tokens on another day.",
        "Set template to a file of your own to make runs repeatable.",
    ),
    "duplicate rows": (
        "note",
        "The same prompt and output stand in more than one row.",
        "Remove the repetitions from the data file, unless they are wanted.",
    ),
    "row in train and dev": (
        "warning",
        "The same prompt is trained on and evaluated on, so the dev loss flatters.",
        "Set dev_split to rows that are not in data_file.",
    ),
    "boundary token": (
        "note",
        "One token holds the prompt's end and white space that begins the output. It counts as prompt and has no loss.",
        "Nothing to do, unless that white space matters.",
    ),
}


def became(given: str, written: str) -> str:
    """What the template made of an output (`Rendered.changed`), in words."""
    given, written = ((text if len(text) <= 60 else f"{text[:30]}…{text[-29:]}") for text in (given, written))
    return (
        f"{given!r} became {written!r}"
        if given and written
        else f"{given!r} is left out"
        if given
        else f"{written!r} is put in"
    )


@dataclass
class Collected:
    """Rows by kind, gathered while the rows are prepared."""

    rows: dict = field(default_factory=lambda: defaultdict(list))
    all_rows: set = field(default_factory=set)
    details: dict = field(default_factory=dict)

    def add(self, kind, part, number, detail=""):
        if kind not in self.all_rows:
            self.rows[kind].append((part, number))
        if detail:
            self.details.setdefault(kind, detail)

    def everywhere(self, kind, detail=""):
        self.all_rows.add(kind)
        self.rows[kind] = []
        if detail:
            self.details[kind] = detail

    def findings(self):
        """All findings, warnings first, in the order of `KINDS`."""
        found = [
            Finding(kind, severity, meaning, fix, tuple(self.rows[kind]), self.details.get(kind, ""))
            for kind, (severity, meaning, fix) in KINDS.items()
            if kind in self.rows
        ]
        return sorted(found, key=lambda finding: finding.severity != "warning")
