"""Over-long rows: their prompts cut until they fit, or the rows refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ragfit.data.documents import Passages, find_documents, supporting
from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Cut
from ragfit.data.words import question_of
from ragfit.errors import PromptError

Fitted = tuple[Cut | None, Rendered, Masked]  # None where nothing was cut


@dataclass(frozen=True)
class Fitter:
    """Fits rows into `max_sequence_len`.

    Only the row's own prompt is cut: the template's text, the instruction and the completion stay whole.

    Attributes:
        limit: the largest number of tokens; `math.inf` for any.
        policy: "drop", or what is cut of the prompt: whole documents ("cut_documents"), its start ("cut_start") or its
            end ("cut_end").
        output_key: the row's key of the output.
    """

    renderer: Renderer
    encoder: Encoder
    limit: float
    policy: str
    output_key: str = ""

    def fit(self, query: str, output: str, source: Mapping, row: Rendered, masked: Masked) -> Fitted | None:
        """Cut a prompt until the row has at most `limit` tokens; None where that is not asked for, or not enough.

        Args:
            source: the row as it stands in the data file.
            row, masked: the row with its whole prompt.
        """
        if len(masked.input_ids) <= self.limit:
            return None, row, masked
        try:
            if self.policy == "cut_documents":
                return self._without_documents(query, output, source, len(masked.input_ids) - self.limit)
            if self.policy != "drop" and row.user is not None:
                return self._shortened(query, output, row, masked)
        except PromptError:
            pass  # what is left has no place for the completion: the marker stood in what was cut
        return None

    def _made(self, query: str, output: str, cut: Cut) -> tuple[Rendered, Masked]:
        row = self.renderer.render(cut.apply(query), output)
        return row, self.encoder.encode([row])[0]

    def _without_documents(self, query: str, output: str, source: Mapping, over: float) -> Fitted | None:
        """The row without as many whole documents as needed, the last first and those that support the answer last."""
        passages = find_documents(query, source)
        if passages is None:
            return None
        supports = supporting(passages, source, output, self.output_key)
        places = range(len(passages.documents))
        order = sorted(places, key=lambda place: (passages.documents[place].number in supports, -place))
        texts = [f"{one.header}{one.text}" for one in passages.documents]
        sizes = list(map(len, self.encoder.backend.encode_batch(texts, add_special_tokens=False)))
        while order:
            while order and over > 0:
                over -= sizes[order.pop(0)]
            cut = _only_documents(passages, sorted(order))
            row, masked = self._made(query, output, cut)
            over = len(masked.input_ids) - self.limit
            if over <= 0:
                return cut, row, masked
        return None

    def _shortened(self, query: str, output: str, row: Rendered, masked: Masked) -> Fitted | None:
        """The row with its prompt cut from its start or end; the tokens' places tell where, in a few tries."""
        user = row.text[slice(*row.user)]
        left, at_end = query.index(user), self.policy == "cut_end"
        # White space that the template strips holds no tokens.
        start, stop = (0, left + len(user)) if at_end else (left, len(query))
        for _ in range(20):
            over = len(masked.input_ids) - self.limit
            if row.user is None or start >= stop:
                return None
            begin, end = row.user
            inside = [span for span in self.encoder.spans(row.text)[1] if begin <= span[0] < span[1] <= end]
            if len(inside) <= over:
                start = stop
            elif at_end:
                stop -= max(end - inside[-over][0], 1)
            else:
                start += max(inside[over][0] - begin, 1)
            cut = Cut(((start, max(start, stop)),), len(query))
            row, masked = self._made(query, output, cut)
            if len(masked.input_ids) <= self.limit:
                return cut, row, masked
        return None


def _only_documents(passages: Passages, kept: list[int]) -> Cut:
    """The cut that leaves these documents of a prompt, each with the gap before it, and all that is no document."""
    places, length = [(left, end) for _, left, _, end in passages.spans], len(passages.query)
    runs = [(places[place - 1][1] if place != kept[0] else places[place][0], places[place][1]) for place in kept]
    return Cut(((0, places[0][0]), *runs, (places[-1][1], length)), length)


def taken(cut: Cut, query: str, output: str, source: Mapping, output_key: str) -> list[str]:
    """Which of "question" and "supporting document" a cut has taken from a prompt, where that can be known."""
    passages, question, left = find_documents(query, source), question_of(source, "").strip(), cut.apply(query)
    asking, supports = [question] if question and question in query else [], []
    if passages:
        # A question that the row does not name stands outside of its documents.
        around = [text for text in (passages.before.strip(), passages.after.strip()) if text]
        asking = asking or [text for text in around if re.search("[?？؟]", text)] or around
        numbers = supporting(passages, source, output, output_key)
        supports = [one.text.strip() for one in passages.documents if one.number in numbers]
    gone = ["question"] if any(text not in left for text in asking) else []
    return gone + ["supporting document"] * (bool(supports) and not any(text in left for text in supports))
