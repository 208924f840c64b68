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
CONTROL, ADDED = "special tokens in data", "added tokens in data"


@dataclass(frozen=True)
class Finding:
    """Something to look at before training: what it means there, and the key that mends it."""

    kind: str  # a key of `KINDS`
    severity: str  # "warning" (the model will learn something else than meant) or "note"
    meaning: str
    fix: str
    rows: tuple[tuple[str, int], ...] = ()  # (part, number in its file from 0) of the rows concerned; () for all
    detail: str = ""  # what was seen first

    def __str__(self) -> str:
        detail = f" Seen: {self.detail}." if self.detail else ""
        return f"[{self.severity}] {self.kind}, {self.which}: {self.meaning}{detail} {self.fix}"

    @property
    def which(self) -> str:
        """The rows concerned, counted, and the first of them by name."""
        names = listed([f"{part} {number}" for part, number in self.rows], 5)
        return f"{counted(len(self.rows), 'row')} ({names})" if self.rows else "all rows"


class Checks:
    """Looks at every row that is trained on, for what looks wrong and for where loss begins and ends."""

    def __init__(self, renderer: Renderer, encoder: Encoder):
        self.rows: dict[str, list[tuple[str, int]] | None] = {}  # by kind of finding; None where it concerns all rows
        self.details: dict[str, str] = {}
        self.renderer, self.encoder, self.tokenizer = renderer, encoder, renderer.tokenizer
        self._first, self._last, self._boundary, self._last_ids = Counter(), Counter(), Counter(), set()
        self._texts: dict[int, str] = {}
        self._pairs, self._questions = set(), set()  # hashes of what is trained on
        added, self._added = self.tokenizer.added_tokens_decoder, added_tokens_pattern(self.tokenizer)
        # A turn ends with a token of its own, not with text that looks like one.
        self._ends = {self.tokenizer.eos_token_id, *(token for token in added if str(added[token]) in renderer.stops)}
        # Added tokens that control the model, be they called special or not.
        self._control = {*renderer.stops, *self.tokenizer.all_special_tokens}
        self._control |= {str(token) for token in added.values() if token.special or str(token) in renderer.header}
        if renderer.system == "dropped":
            self.rows["instruction not in prompt"] = None
        if control := self._tokens_in(renderer.instruction).get(CONTROL):
            self.rows[CONTROL], self.details[CONTROL] = None, f"{control} in the instruction"

    def add(self, kind: str, part: str, number: int, detail: str = "") -> None:
        """Note a row of a part ("train" or "dev") by its number in its file. The first one's detail is kept."""
        rows = self.rows.setdefault(kind, [])
        if rows is not None:
            rows.append((part, number))
        if detail:
            self.details.setdefault(kind, detail)

    def findings(self) -> list[Finding]:
        """All findings, warnings first; where a variable of the chat template would mend one, its fix says so."""
        variable = self.renderer.kwargs_that_fit() if self.rows.keys() & OTHER_TEXT else ""
        cure = f"Set model.chat_template_kwargs={variable}, and leave model.completion_start empty."
        kinds = {kind: said for kind, said in KINDS.items() if kind in self.rows}
        if variable:
            kinds |= {kind: (*kinds[kind][:2], cure) for kind in kinds.keys() & OTHER_TEXT}
        rows = {kind: tuple(self.rows[kind] or ()) for kind in kinds}
        return [Finding(kind, *said, rows[kind], self.details.get(kind, "")) for kind, said in kinds.items()]

    def check(
        self, part: str, number: int, query: str, output: str, source: Mapping, row: Rendered, masked: Masked
    ) -> None:
        """Look at one row: its prompt before a cut, its output, itself as in its file, and as it is learned."""
        ids, (begin, end) = masked.input_ids, masked.boundary or (0, 0)
        last = ids[masked.end - 1]
        self._first[self._text_of(ids[masked.start], row.text[row.completion_char :][:9])] += 1
        self._last[self._text_of(last, row.text[: row.end_char][-1:])] += 1
        self._last_ids.add(last)
        self._boundary.update([row.text[begin:end]] if masked.boundary else [])
        # A marker token that takes in the template's own white space takes nothing from the output.
        taken = row.text[max(row.output[0], row.completion_char) : end].strip()
        question, missing = question_of(source, ""), missing_documents(query, source)
        pair, question = hash((query, output)), hash(words_of(question) if question else query)
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
            "duplicate rows": part == "train" and pair in self._pairs,
            "row in train and dev": part == "dev" and question in self._questions,
            **self._against_the_prompt(row, masked),
            **self._tokens_in(f"{query}\0{output}"),
        }
        for kind, what in seen.items():
            if what:
                self.add(kind, part, number, what if isinstance(what, str) else "")
        if part == "train":
            self._pairs.add(pair)
            self._questions.add(question)

    def _against_the_prompt(self, row: Rendered, masked: Masked) -> dict[str, str]:
        """How the ids before the first with loss differ from the inference prompt's, where their texts are the same."""
        length, begins = len(row.prompt), max(row.completion_char, masked.boundary[1] if masked.boundary else 0)
        if not row.matches:
            return {}
        if row.completion_char > length:
            return {"loss behind the prompt": repr(row.text[length : row.completion_char])}
        if begins < length:
            return {"loss within the prompt": repr(row.text[begins:length])}
        same = begins > length or self.encoder.begins_as_alone(row, masked)
        return {} if same else {"prompt tokenized otherwise": repr(row.prompt[-20:])}

    def _tokens_in(self, text: str) -> dict[str, str]:
        """The first control token and the first other added token in a text, by the kind of their finding."""
        found = self._added.findall(text)[::-1] if self._added else ()
        return {CONTROL if token in self._control else ADDED: repr(token) for token in found}

    def _text_of(self, token: int, text: str) -> str:
        """The text of a token; of one that is a part of a character, that character, which begins or ends `text`."""
        if token not in self._texts:
            self._texts[token] = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return f"⟨part of {text.strip()[:1]}⟩" if "\ufffd" in self._texts[token] else self._texts[token]

    def counts(self) -> dict[str, Any]:
        """The fields of a `Report` that tell what was found, and where loss begins and ends."""
        ends = {"first_labels": self._first, "last_labels": self._last, "boundary": self._boundary}
        return {**ends, "last_ids": sorted(self._last_ids), "findings": self.findings()}
