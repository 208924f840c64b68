"""What looks wrong: findings over the whole data set, each with its rows, its meaning and its remedy."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from ragfit.data.mask import Masked
from ragfit.data.prompt import Rendered, Renderer, added_tokens_pattern
from ragfit.draw.text import counted, listed


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

    def __str__(self) -> str:
        detail = f" Seen: {self.detail}." if self.detail else ""
        return f"[{self.severity}] {self.kind}, {self.which}: {self.meaning}{detail} {self.fix}"

    @property
    def which(self) -> str:
        """The rows concerned, counted, and the first of them by name."""
        names = listed([f"{part} {number}" for part, number in self.rows], 5)
        return f"{counted(len(self.rows), 'row')} ({names})" if self.rows else "all rows"


KINDS = {
    "instruction not in prompt": (
        "warning",
        "The template drops the system message, so the model never reads the instruction.",
        "Set model.instruction_in_prompt=true, or use a template that keeps it.",
    ),
    "prompt mismatch": (
        "warning",
        "The training text does not begin with the prompt the model is given at inference, so it learns to continue "
        "another text.",
        "Set template to a file of your own, or use a tokenizer whose template renders both alike.",
    ),
    "output changed by the template": (
        "warning",
        "The template rewrites these outputs (it drops their reasoning, say), and what it writes is learned instead.",
        "Set template to a file of your own that writes outputs as they stand, or remove from the data what it drops.",
    ),
    "marker not before the output": (
        "warning",
        "The template writes other text before these outputs (they bring their own reasoning, say), so loss begins "
        "where the generation prompt or that text ends.",
        "Set model.completion_start to a marker that stands before every output, or change the rows.",
    ),
    "other text has loss": (
        "warning",
        "Text that the template adds before the output has loss and will be generated.",
        "Leave model.completion_start empty to begin where the inference prompt ends. Where the prompt lacks the text, "
        "set model.chat_template_kwargs so that it has it too (such as {enable_thinking: false}).",
    ),
    "loss behind the prompt": (
        "warning",
        "Loss begins behind text that the inference prompt lacks and that nothing teaches the model to write.",
        "Leave model.completion_start empty, or set model.chat_template_kwargs so that the prompt has that text too "
        "(such as {enable_thinking: false}).",
    ),
    "loss within the prompt": (
        "note",
        "Loss begins before the inference prompt ends, so the model learns to write the prompt's end too.",
        "Leave model.completion_start empty to begin where the inference prompt ends.",
    ),
    "prompt tokenized otherwise": (
        "warning",
        "The prompt's last tokens are others when it is tokenized alone, as at inference, than before the output.",
        "Let the template (or the prompt, where nothing stands between it and the output) end without white space.",
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
        "Raise model.max_sequence_len, or set model.over_length=cut_documents (or cut_start, cut_end) to cut it.",
    ),
    "supporting document in one place": (
        "warning",
        "In nearly all rows the document with the answer is at the same position, so a model learns the position "
        "instead of reading.",
        "Shuffle each row's documents before its prompt is written.",
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
    "cut: question": (
        "warning",
        "The cut took the question or part of it, so the model learns to answer what it was not asked.",
        "Set model.over_length=cut_documents, or raise model.max_sequence_len.",
    ),
    "cut: supporting document": (
        "warning",
        "The cut took every document that supports the answer, so the model learns to answer from no source.",
        "Set model.over_length=cut_documents, which takes the others first, or raise model.max_sequence_len.",
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
    "empty prompt": (
        "warning",
        "The prompt is empty, so the model learns to answer whatever it is asked with this output.",
        "Check input_key, or remove the rows.",
    ),
    "special tokens in data": (
        "warning",
        "The row's own text holds special tokens, which the model reads as control tokens.",
        "Remove them from the data.",
    ),
    "added tokens in data": (
        "note",
        "The row's own text holds added tokens of the tokenizer, which the model reads and learns as single tokens.",
        "Remove them from the data, unless they are meant (as <think> in an answer may be).",
    ),
    "dated template": (
        "note",
        "The template writes today's date, so the same rows give other tokens on another day.",
        "Set template to a file of your own to make runs repeatable.",
    ),
    "duplicate rows": (
        "note",
        "The same prompt and output occur in more than one row.",
        "Remove the repetitions from the data file, unless they are wanted.",
    ),
    "row in train and dev": (
        "warning",
        "The same prompt is trained on and evaluated on, so the dev loss is too optimistic.",
        "Set dev_split to rows that are not in data_file.",
    ),
    "boundary token": (
        "note",
        "One token holds the prompt's end and white space that begins the output. It counts as prompt and has no loss.",
        "Nothing needs to be done, unless that white space matters.",
    ),
}


def became(given: str, written: str) -> str:
    """What the template made of an output (`Rendered.changed`), in words."""
    given, written = ((text if len(text) <= 60 else f"{text[:30]}…{text[-29:]}") for text in (given, written))
    if given and written:
        return f"{given!r} became {written!r}"
    return f"{given!r} is left out" if given else f"{written!r} is put in"


class Checks:
    """Looks at every row that is trained on, for what looks wrong and for where loss begins and ends.

    Attributes:
        rows: (part, number) of the rows, by the kind of finding.
        all_rows: the kinds that concern all rows.
        details: what was seen, by kind.
    """

    def __init__(self, renderer: Renderer):
        self.rows: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.all_rows: set[str] = set()
        self.details: dict[str, str] = {}
        self.renderer, self.tokenizer = renderer, renderer.tokenizer
        self.first, self.last, self.boundary = Counter(), Counter(), Counter()
        self._rows, self._queries = set(), set()
        self._specials = added_tokens_pattern(self.tokenizer, special_only=True)
        # A turn ends with a token of its own, not with text that looks like one.
        added = self.tokenizer.added_tokens_decoder
        self._ends = {self.tokenizer.eos_token_id, *(token for token in added if str(added[token]) in renderer.stops)}
        if renderer.system == "dropped":
            self.everywhere("instruction not in prompt")
        if renderer.dated:
            self.everywhere("dated template")
        if special := self._special_token_in(renderer.instruction):
            self.everywhere("special tokens in data", f"{special!r} in the instruction")

    def add(self, kind: str, part: str, number: int, detail: str = "") -> None:
        """Note a row of a part. What the first one says in detail is kept."""
        if kind not in self.all_rows:
            self.rows[kind].append((part, number))
        if detail:
            self.details.setdefault(kind, detail)

    def everywhere(self, kind: str, detail: str = "") -> None:
        """Note what concerns all rows."""
        self.all_rows.add(kind)
        self.rows[kind] = []
        if detail:
            self.details[kind] = detail

    def findings(self) -> list[Finding]:
        """All findings, warnings first, in the order of `KINDS`."""
        found = [
            Finding(kind, severity, meaning, fix, tuple(self.rows[kind]), self.details.get(kind, ""))
            for kind, (severity, meaning, fix) in KINDS.items()
            if kind in self.rows
        ]
        return sorted(found, key=lambda finding: finding.severity != "warning")

    def _special_token_in(self, text: str) -> str:
        match = self._specials.search(text) if self._specials else None
        return match.group() if match else ""

    def check(self, part: str, number: int, query: str, output: str, row: Rendered, masked: Masked) -> None:
        """Look at one row."""
        ids = masked.input_ids
        self.first[ids[masked.start]] += 1
        self.last[ids[masked.end - 1]] += 1
        if masked.boundary:
            shared = row.text[slice(*masked.boundary)]
            self.boundary[shared] += 1
            # A marker token that takes in the template's own white space takes nothing from the output.
            if masked.boundary[1] > row.output[0]:
                taken = row.text[max(row.output[0], row.completion_char) : masked.boundary[1]].strip()
                self.add("first word without loss" if taken else "boundary token", part, number, f"{shared!r}")
        if not row.matches:
            self.add("prompt mismatch", part, number)
        if row.changed:
            self.add("output changed by the template", part, number, became(*row.changed))
        if self.renderer.marker and not row.marker:
            self.add("marker not before the output", part, number)
        if row.extra:
            self.add("other text has loss", part, number, f"{row.extra[:40]!r}")
        if not output.strip():
            self.add("empty output", part, number)
        if not query.strip():
            self.add("empty prompt", part, number)
        if ids[masked.end - 1] not in self._ends:
            self.add("no end of turn", part, number)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            self.add("double BOS", part, number)
        if special := self._special_token_in(query) or self._special_token_in(output):
            self.add("special tokens in data", part, number, f"{special!r}")
        if part == "train":
            if hash((query, output)) in self._rows:
                self.add("duplicate rows", part, number)
            self._rows.add(hash((query, output)))
            self._queries.add(hash(query))
        elif hash(query) in self._queries:
            self.add("row in train and dev", part, number)

    def counts(self) -> dict:
        """The fields of a `Report` that tell where loss begins and ends."""
        return {
            "first_labels": self._texts_of_ids(self.first),
            "last_labels": self._texts_of_ids(self.last),
            "last_ids": sorted(self.last),
            "boundary": self.boundary,
        }

    def _texts_of_ids(self, counter: Counter[int]) -> Counter[str]:
        texts = Counter()
        for token, count in counter.most_common():  # tokens that are part of a character share the text "\ufffd"
            texts[self.tokenizer.decode([token], clean_up_tokenization_spaces=False)] += count
        return texts
