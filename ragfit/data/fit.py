"""Over-long rows: their prompts cut until they fit, or the rows refused."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ragfit.data.documents import Passages, find_documents, supporting
from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Cut
from ragfit.data.words import question_of
from ragfit.errors import PromptError

Fitted = tuple[Cut | None, Rendered, Masked]  # None where nothing was cut


class TooLong(Exception):
    """A row has more tokens than `max_sequence_len`: `tokens` of them. Cutting it is not asked for or not enough."""

    def __init__(self, tokens: int):
        super().__init__(tokens)
        self.tokens = tokens


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

    def fit(self, query: str, output: str, source: Mapping, row: Rendered, masked: Masked) -> Fitted:
        """Cut a prompt until the row has at most `limit` tokens.

        Args:
            source: the row as it stands in the data file.
            row, masked: the row with its whole prompt.

        Raises:
            TooLong: the row has too many tokens, and too few of them may be cut.
        """
        if len(masked.input_ids) <= self.limit:
            return None, row, masked
        fitted = None
        try:
            if self.policy == "cut_documents":
                fitted = self._without_documents(query, output, source, len(masked.input_ids) - self.limit)
            elif self.policy != "drop" and row.user is not None:
                fitted = self._shortened(query, output, row, masked)
        except PromptError:
            pass  # what is left has no place for the completion: the marker stood in what was cut
        if fitted is None:
            raise TooLong(len(masked.input_ids))
        return fitted

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
        left, length = query.index(user), len(query)  # white space that the template strips holds no tokens
        at_end = self.policy == "cut_end"
        cut = Cut(0, left + len(user), length) if at_end else Cut(left, length, length)
        for _ in range(20):
            over = len(masked.input_ids) - self.limit
            if over <= 0:
                return cut, row, masked
            if row.user is None or cut.start >= cut.stop:
                return None
            drop = max(self._characters(row, over, cut.stop - cut.start), 1)
            if at_end:
                cut = replace(cut, stop=max(cut.stop - drop, 0))
            else:
                cut = replace(cut, start=min(cut.start + drop, length))
            row, masked = self._made(query, output, cut)
        return None

    def _characters(self, row: Rendered, over: int, length: int) -> int:
        """How many of a prompt's `length` characters hold the `over` tokens that must go from its start or end."""
        begin, end = row.user
        inside = [span for span in self.encoder.spans(row.text)[1] if begin <= span[0] < span[1] <= end]
        if len(inside) <= over:
            return length
        return end - inside[-over][0] if self.policy == "cut_end" else inside[over][0] - begin


def _places(passages: Passages) -> list[tuple[int, int]]:
    """(start, end) of each document in its prompt, its header included."""
    places, at = [], len(passages.before)
    for document, gap in zip(passages.documents, (*passages.gaps, ""), strict=True):
        end = at + len(document.header) + len(document.text)
        places.append((at, end))
        at = end + len(gap)
    return places


def _only_documents(passages: Passages, kept: list[int]) -> Cut:
    """The cut that leaves these documents of a prompt, each with the gap before it, and all that is no document."""
    places, length = _places(passages), len(passages.prompt())
    ends = [places[0][0], *(end for place in kept for end in places[place]), places[-1][1]]
    runs = list(zip(ends[::2], ends[1::2], strict=True))
    for n, (one, other) in enumerate(itertools.pairwise(kept), 1):
        runs[n] = places[one][1], places[other - 1][1]
    return Cut(0, length, length, tuple(run for run in runs if run[0] < run[1]))


def taken(cut: Cut, query: str, output: str, source: Mapping, output_key: str) -> list[str]:
    """Which of "question" and "supporting document" a cut has taken from a prompt, where that can be known."""
    passages, question = find_documents(query, source), question_of(source, "")
    asked = [match.span() for match in re.finditer(re.escape(question), query)] if question else []
    found = [not any(cut.holds(*place) for place in asked)] if asked else []
    supports = []
    if passages:
        # A question that the row does not name stands outside of its documents.
        around = [(0, len(passages.before)), (len(query) - len(passages.after), len(query))]
        around = [_without_space(query, *place) for place in around if query[slice(*place)].strip()]
        asking = [place for place in around if re.search("[?？؟]", query[slice(*place)])] or around
        found = found or [not all(cut.holds(*place) for place in asking)]
        numbers = supporting(passages, source, output, output_key)
        pairs = zip(passages.documents, _places(passages), strict=True)
        supports = [_without_space(query, *place) for document, place in pairs if document.number in numbers]
    gone = ["question"] if any(found) else []
    return gone + ["supporting document"] * (bool(supports) and not any(cut.holds(*place) for place in supports))


def _without_space(text: str, begin: int, end: int) -> tuple[int, int]:
    """A place in a text without the white space at its ends."""
    piece = text[begin:end]
    return begin + len(piece) - len(piece.lstrip()), begin + len(piece.rstrip())
