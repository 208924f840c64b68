"""Over-long rows: their prompts cut until they fit, or the rows refused."""

from dataclasses import dataclass, replace

from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer
from ragfit.data.report import Cut
from ragfit.errors import PromptError

_CHARACTERS_PER_TOKEN = 64  # Above so many per allowed token, only a piece of a text is tokenized to decide.


class TooLong(Exception):
    """A row has more tokens than `max_sequence_len`, about `tokens`; cutting it is not asked for or not enough."""

    def __init__(self, tokens: int):
        super().__init__(tokens)
        self.tokens = tokens


@dataclass(frozen=True)
class Fitter:
    """Fits rows into `max_sequence_len`.

    Only the row's own prompt is cut: the template's text, the instruction and the completion stay whole.

    Attributes:
        limit: the largest number of tokens; `math.inf` for any.
        policy: "drop", or where the prompt is cut: "cut_start" or "cut_end".
    """

    renderer: Renderer
    encoder: Encoder
    limit: float
    policy: str

    def shorten(self, query: str, output: str) -> Cut:
        """The piece of a prompt to begin with: all of it, but for a row of megabytes, which would take minutes.

        Raises:
            TooLong: a piece of the prompt (with the policy "drop") or of the output alone has too many tokens.
        """
        whole = Cut(0, len(query), len(query))
        size = _CHARACTERS_PER_TOKEN * self.limit
        if len(output) > size and (tokens := self._too_many(output, output[:size])):
            raise TooLong(tokens)
        if len(query) <= size:
            return whole
        piece = replace(whole, start=len(query) - size) if self.policy == "cut_start" else replace(whole, stop=size)
        tokens = self._too_many(query, piece.apply(query))
        if tokens and self.policy == "drop":
            raise TooLong(tokens)
        return piece if tokens else whole

    def _too_many(self, text: str, piece: str) -> int:
        """About how many tokens a text has, where its piece has twice the limit already; else 0, for it may fit."""
        tokens = len(self.encoder.spans(piece)[0])
        return tokens * len(text) // len(piece) if tokens > 2 * self.limit else 0

    def fit(self, query: str, output: str, cut: Cut, row: Rendered, masked: Masked) -> tuple[Cut, Rendered, Masked]:
        """Cut a prompt from its start or end until the row has at most `limit` tokens.

        Args:
            query: the whole prompt.
            cut: the piece of it that `row` and `masked` were made of.

        Raises:
            TooLong: the row has too many tokens, and too few of them are the prompt's.
        """
        length = len(masked.input_ids)
        if length > self.limit and row.user is not None:  # white space that the template strips holds no tokens
            user = row.text[slice(*row.user)]
            left = cut.start + cut.apply(query).index(user)
            cut = replace(cut, stop=left + len(user)) if self.policy == "cut_end" else replace(cut, start=left)
        for _ in range(20):
            over = len(masked.input_ids) - self.limit
            if over <= 0:
                return cut, row, masked
            if self.policy == "drop" or row.user is None or cut.start >= cut.stop:
                break
            drop = max(self._characters(row, over, cut.stop - cut.start), 1)
            if self.policy == "cut_end":
                cut = replace(cut, stop=max(cut.stop - drop, 0))
            else:
                cut = replace(cut, start=min(cut.start + drop, cut.length))
            try:
                row = self.renderer.render(cut.apply(query), output)
            except PromptError:
                break  # what is left has no place for the completion: the marker stood in what was cut
            masked = self.encoder.encode([row])[0]
        raise TooLong(length)

    def _characters(self, row: Rendered, over: int, length: int) -> int:
        """How many of a prompt's `length` characters hold the `over` tokens that must go from its start or end."""
        ids, spans = self.encoder.spans(row.text)
        if spans is None:
            return length * over // max(len(ids), 1)
        begin, end = row.user
        inside = [span for span in spans if begin <= span[0] < span[1] <= end]
        if len(inside) <= over:
            return length
        return end - inside[-over][0] if self.policy == "cut_end" else inside[over][0] - begin
