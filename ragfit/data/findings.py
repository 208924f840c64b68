"""What looks wrong: findings over the whole data set, each with its rows, its meaning and its remedy.

One more finding is an entry of `KINDS` and a line in `Checks.check`; what is seen elsewhere is noted with `Checks.add`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragfit.data.documents import answer_as_data, missing_documents, unread_documents
from ragfit.data.kinds import KINDS
from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer, added_tokens_pattern
from ragfit.data.words import question_of, words_of
from ragfit.draw.text import counted, listed

# Findings of text before the output that training and inference do not share.
OTHER_TEXT = {"other text has loss", "loss behind the prompt", "prompt mismatch"}


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


class Checks:
    """Looks at every row that is trained on, for what looks wrong and for where loss begins and ends.

    Attributes:
        rows: (part, number) of the rows, by the kind of finding; None for a kind that concerns all rows.
        details: what was seen first, by kind.
    """

    def __init__(self, renderer: Renderer, encoder: Encoder):
        self.rows: dict[str, list[tuple[str, int]] | None] = {}
        self.details: dict[str, str] = {}
        self.renderer, self.encoder, self.tokenizer = renderer, encoder, renderer.tokenizer
        self._first, self._last, self._boundary, self._last_ids = Counter(), Counter(), Counter(), set()
        self._texts: dict[int, str] = {}
        self._pairs, self._questions = set(), set()  # hashes of what is trained on
        added, self._added = self.tokenizer.added_tokens_decoder, added_tokens_pattern(self.tokenizer)
        # A turn ends with a token of its own, not with text that looks like one.
        self._ends = {self.tokenizer.eos_token_id, *(token for token in added if str(added[token]) in renderer.stops)}
        # Added tokens that control the model, be they called special or not.
        self._control = {str(token) for token in added.values() if token.special} | set(
            self.tokenizer.all_special_tokens
        )
        self._control |= renderer.stops | set(self._added.findall(renderer.header) if self._added else ())
        if renderer.system == "dropped":
            self.everywhere("instruction not in prompt")
        if control := self._tokens_in(renderer.instruction).get("special tokens in data"):
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
        """All findings, warnings first; where a variable of the chat template would mend one, its fix says so."""
        variable = self.renderer.kwargs_that_fit() if self.rows.keys() & OTHER_TEXT else ""
        found = []
        for kind, (severity, meaning, fix) in KINDS.items():
            if kind in self.rows:
                if variable and kind in OTHER_TEXT:
                    fix = f"Set model.chat_template_kwargs={variable}, and leave model.completion_start empty."
                rows = tuple(self.rows[kind] or ())
                found.append(Finding(kind, severity, meaning, fix, rows, self.details.get(kind, "")))
        return found

    def check(
        self, part: str, number: int, query: str, output: str, source: Mapping, row: Rendered, masked: Masked
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
        begin, end = masked.boundary or (0, 0)
        if masked.boundary:
            self._boundary[row.text[begin:end]] += 1
        # A marker token that takes in the template's own white space takes nothing from the output.
        taken = row.text[max(row.output[0], row.completion_char) : end].strip()
        question = hash(words_of(asked) if (asked := question_of(source, "")) else query)
        missing = missing_documents(query, source)
        seen = {  # what each kind of finding has to show, or whether there is one
            "prompt mismatch": not row.matches,
            "output changed by the template": row.changed and "{!r:.70} became {!r:.70}".format(*row.changed),
            "marker not before the output": self.renderer.marker and not row.marker,
            "other text has loss": row.extra and f"{row.extra[:40]!r}",
            "first word without loss": taken and f"{row.text[begin:end]!r}",
            "no end of turn": last not in self._ends,
            "double BOS": ids[:2] == [self.tokenizer.bos_token_id] * 2,
            "empty output": not output.strip(),
            "empty prompt": not query.strip(),
            "documents not in the prompt": missing,
            "documents without text": not missing and unread_documents(source),
            "answer is the text of a list or of nothing": answer_as_data(source, output),
            "duplicate rows": part == "train" and hash((query, output)) in self._pairs,
            "row in train and dev": part == "dev" and question in self._questions,
            **self._against_the_prompt(row, masked),
            **self._tokens_in(f"{query}\0{output}"),
        }
        for kind, what in seen.items():
            if what:
                self.add(kind, part, number, what if isinstance(what, str) else "")
        if part == "train":
            self._pairs.add(hash((query, output)))
            self._questions.add(question)

    def _against_the_prompt(self, row: Rendered, masked: Masked) -> dict[str, str]:
        """How the ids before the first token with loss differ from the ids of the inference prompt, tokenized alone.

        Other findings say where the texts differ from their beginning, and where one token spans prompt and output.
        """
        length, begins = len(row.prompt), max(row.completion_char, masked.boundary[1] if masked.boundary else 0)
        if not row.matches:
            return {}
        if row.completion_char > length:
            return {"loss behind the prompt": repr(row.text[length : row.completion_char])}
        if begins < length:
            return {"loss within the prompt": repr(row.text[begins:length])}
        if begins == length and not self.encoder.begins_as_alone(row, masked):
            return {"prompt tokenized otherwise": repr(row.prompt[-20:])}
        return {}

    def _tokens_in(self, text: str) -> dict[str, str]:
        """The first control token and the first other added token in a text, by the kind of their finding."""
        found: dict[str, str] = {}
        for token in self._added.findall(text) if self._added else ():
            found.setdefault(
                "special tokens in data" if token in self._control else "added tokens in data", repr(token)
            )
        return found

    def _text_of(self, token: int, text: str) -> str:
        """The text of a token; of one that is a part of a character, that character, which begins or ends `text`."""
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return f"⟨part of {text.strip()[:1]}⟩" if "\ufffd" in self._texts[token] else self._texts[token]

    def counts(self) -> dict[str, Any]:
        """The fields of a `Report` that tell what was found, and where loss begins and ends."""
        ends = {"first_labels": self._first, "last_labels": self._last, "boundary": self._boundary}
        return {**ends, "last_ids": sorted(self._last_ids), "findings": self.findings()}
