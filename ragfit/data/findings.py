"""What looks wrong: findings over the whole data set, each with its rows, its meaning and its remedy.

One more finding is an entry of `KINDS` and a line in `Checks.check`; what is seen elsewhere is noted with `Checks.add`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ragfit.data.documents import answer_as_data, missing_documents, unread_documents
from ragfit.data.kinds import KINDS
from ragfit.data.mask import Masked
from ragfit.data.prompt import Rendered, Renderer, added_tokens_pattern
from ragfit.data.words import question_of, words_of
from ragfit.draw.text import counted, listed

NO_ROW = MappingProxyType({})


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


def became(given: str, written: str) -> str:
    """What the template made of an output (`Rendered.changed`), in words."""
    given, written = ((text if len(text) <= 60 else f"{text[:30]}…{text[-29:]}") for text in (given, written))
    if given and written:
        return f"{given!r} became {written!r}"
    return f"{given!r} is left out" if given else f"{written!r} is put in"


class Checks:
    """Looks at every row that is trained on, for what looks wrong and for where loss begins and ends.

    Attributes:
        rows: (part, number) of the rows, by the kind of finding; None for a kind that concerns all rows.
        details: what was seen first, by kind.
    """

    def __init__(self, renderer: Renderer):
        self.rows: dict[str, list[tuple[str, int]] | None] = {}
        self.details: dict[str, str] = {}
        self.renderer, self.tokenizer = renderer, renderer.tokenizer
        self._first, self._last, self._boundary, self._last_ids = Counter(), Counter(), Counter(), set()
        self._texts: dict[int, str] = {}
        self._pairs, self._questions = set(), set()  # hashes of what is trained on
        self._specials = added_tokens_pattern(self.tokenizer, special_only=True)
        # A turn ends with a token of its own, not with text that looks like one.
        added = self.tokenizer.added_tokens_decoder
        self._ends = {self.tokenizer.eos_token_id, *(token for token in added if str(added[token]) in renderer.stops)}
        if renderer.system == "dropped":
            self.everywhere("instruction not in prompt")
        if control := self._special_token(renderer.instruction):
            self.everywhere("special tokens in data", f"{control} in the instruction")

    def add(self, kind: str, part: str, number: int, detail: str = "") -> None:
        """Note a row of a part ("train" or "dev") by its number in its file. The first one's detail is kept."""
        rows = self.rows.setdefault(kind, [])
        if rows is not None:
            rows.append((part, number))
        if detail:
            self.details.setdefault(kind, detail)

    def everywhere(self, kind: str, detail: str = "") -> None:
        """Note what concerns all rows."""
        self.rows[kind], self.details[kind] = None, detail

    def findings(self) -> list[Finding]:
        """All findings, in the order of `KINDS`: warnings first."""
        return [
            Finding(kind, *said, tuple(self.rows[kind] or ()), self.details.get(kind, ""))
            for kind, said in KINDS.items()
            if kind in self.rows
        ]

    def check(
        self, part: str, number: int, query: str, output: str, row: Rendered, masked: Masked, source: Mapping = NO_ROW
    ) -> None:
        """Look at one row.

        Args:
            query: the row's prompt, before it is cut.
            source: the row as it stands in its file.
        """
        ids = masked.input_ids
        first, last = ids[masked.start], ids[masked.end - 1]
        self._first[self._text_of(first, row.text[row.completion_char :][:9])] += 1
        self._last[self._text_of(last, row.text[: row.end_char][-1:])] += 1
        self._last_ids.add(last)
        if masked.boundary:
            self._boundary[row.text[slice(*masked.boundary)]] += 1
        question = hash(words_of(asked) if (asked := question_of(source, "")) else query)
        missing = missing_documents(query, source)
        seen = {  # what each kind of finding has to show, or whether there is one
            "prompt mismatch": not row.matches,
            "output changed by the template": row.changed and became(*row.changed),
            "marker not before the output": self.renderer.marker and not row.marker,
            "other text has loss": row.extra and f"{row.extra[:40]!r}",
            "first word without loss": _taken(row, masked),
            "no end of turn": last not in self._ends,
            "double BOS": ids[:2] == [self.tokenizer.bos_token_id] * 2,
            "empty output": not output.strip(),
            "empty prompt": not query.strip(),
            "special tokens in data": self._special_token(query) or self._special_token(output),
            "documents not in the prompt": missing,
            "documents without text": not missing and unread_documents(source),
            "answer is the text of a list or of nothing": answer_as_data(source, output),
            "duplicate rows": part == "train" and hash((query, output)) in self._pairs,
            "row in train and dev": part == "dev" and question in self._questions,
        }
        for kind, what in seen.items():
            if what:
                self.add(kind, part, number, what if isinstance(what, str) else "")
        if part == "train":
            self._pairs.add(hash((query, output)))
            self._questions.add(question)

    def _special_token(self, text: str) -> str:
        found = self._specials.search(text) if self._specials else None
        return f"{found[0]!r}" if found else ""

    def _text_of(self, token: int, text: str) -> str:
        """The text of a token; of one that is a part of a character, that character, which begins or ends `text`."""
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return f"⟨part of {text.strip()[:1]}⟩" if "\ufffd" in self._texts[token] else self._texts[token]

    def counts(self) -> dict[str, Any]:
        """The fields of a `Report` that tell where loss begins and ends."""
        ends = {"first_labels": self._first, "last_labels": self._last, "boundary": self._boundary}
        return {**ends, "last_ids": sorted(self._last_ids)}


def _taken(row: Rendered, masked: Masked) -> str:
    """The token that spans the boundary, where it takes more of the output than white space; else ""."""
    begin, end = masked.boundary or (0, 0)
    # A marker token that takes in the template's own white space takes nothing from the output.
    taken = row.text[max(row.output[0], row.completion_char) : end].strip()
    return f"{row.text[begin:end]!r}" if taken else ""
