"""Over-long rows: their prompts cut until they fit, or the rows refused."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from ragfit.data.documents import find_documents, supporting
from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Cut
from ragfit.data.words import question_of
from ragfit.errors import PromptError

Fitted = tuple[Cut | None, Rendered, Masked]  # no cut where the row fits


@dataclass(frozen=True)
class Fitter:
    """Fits rows into `limit` tokens: only the row's own prompt is cut, as `model.over_length` (`policy`) says."""

    renderer: Renderer
    encoder: Encoder
    limit: int | None
    policy: str | None
    output_key: str = ""

    def fit(self, query: str, output: str, source: Mapping, row: Rendered, masked: Masked) -> Fitted | None:
        """The row, cut where it is too long; None where that is not asked for, or not enough."""
        if not self.limit or len(masked.input_ids) <= self.limit:
            return None, row, masked
        try:
            if self.policy == "cut_documents":
                return self._without_documents(query, output, source)
            return self._shortened(query, output, row, masked) if self.policy in ("cut_start", "cut_end") else None
        except PromptError:  # what is left has no place for the completion: the marker stood in what was cut
            return None

    def _made(self, query: str, output: str, *left: tuple[int, int]) -> tuple[Cut, Rendered, Masked, int]:
        """A row of whose prompt this is left, and the tokens that are still too many."""
        cut = Cut(left)
        masked = self.encoder.encode([row := self.renderer.render(cut.apply(query), output)])[0]
        return cut, row, masked, len(masked.input_ids) - self.limit

    def _without_documents(self, query: str, output: str, source: Mapping) -> Fitted | None:
        """The row without as many whole documents as needed, the last first, those that support the answer last."""
        if not (passages := find_documents(query, source)):
            return None
        supports, spans = supporting(passages, source, output, self.output_key), passages.spans
        order = sorted(range(len(spans)), key=lambda place: (spans[place][0] in supports, -place))

        def without(count: int) -> tuple[Cut, Rendered, Masked, int]:
            kept = sorted(order[count:])  # each of which keeps the gap before it, but for the first
            runs = [(spans[place][1] if place == kept[0] else spans[place - 1][3], spans[place][3]) for place in kept]
            return self._made(query, output, (0, spans[0][1]), *runs, (spans[-1][3], len(query)))

        few = bisect_left(range(1, len(spans) + 1), True, key=lambda count: without(count)[-1] <= 0) + 1
        return without(few)[:3] if few <= len(spans) else None

    def _shortened(self, query: str, output: str, row: Rendered, masked: Masked) -> Fitted | None:
        """The row with its prompt cut from its start or end; the tokens' places tell where, in a few tries."""
        over, at_end = len(masked.input_ids) - self.limit, self.policy == "cut_end"
        user = row.text[slice(*row.user)] if row.user else query  # without white space that the template strips
        left = query.index(user)
        start, stop = (0, left + len(user)) if at_end else (left, len(query))
        for _ in range(20):
            if row.user is None or start >= stop:
                break
            begin, end = row.user
            inside = [span for span in self.encoder.spans(row.text)[1] if begin <= span[0] < span[1] <= end]
            if len(inside) <= over:
                start = stop
            elif at_end:
                stop = max(stop - max(end - inside[-over][0], 1), 0)
            else:
                start = min(start + max(inside[over][0] - begin, 1), stop)
            cut, row, masked, over = self._made(query, output, (start, stop))
            if over <= 0:
                return cut, row, masked
        return None


def taken(cut: Cut, query: str, output: str, source: Mapping, output_key: str) -> list[str]:
    """The kinds of findings on a cut. A question that the row does not name is what stands around its documents."""
    passages, question, left = find_documents(query, source), question_of(source, "").strip(), cut.apply(query)
    rest = [text for text in (passages.before.strip(), passages.after.strip()) if text] if passages else []
    asking = [question] if question and question in query else [one for one in rest if set("?？؟") & set(one)] or rest
    numbers = supporting(passages, source, output, output_key) if passages else ()
    supports = [one.text.strip() for one in passages.documents if one.number in numbers] if passages else []
    unasked, unfounded = any(text not in left for text in asking), all(text not in left for text in supports)
    return ["cut", *["cut: question"] * unasked, *["cut: supporting document"] * (bool(supports) and unfounded)]
