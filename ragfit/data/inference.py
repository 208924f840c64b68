"""What differs from inference: the ids before the loss from the prompt's own, and texts of a row that are tokens."""

from collections.abc import Iterator

from ragfit.data.mask import Encoder, Masked
from ragfit.data.prompt import Rendered, Renderer, added_tokens_pattern

# Findings of text before the output that training and inference do not share.
OTHER_TEXT = ("other text has loss", "loss behind the prompt", "prompt mismatch")
Found = tuple[str, str]  # the kind of a finding, and what was seen


def against_the_prompt(encoder: Encoder, row: Rendered, masked: Masked) -> Iterator[Found]:
    """How the ids before the first token with loss differ from the ids of the inference prompt, tokenized alone.

    Other findings say where the texts differ from their beginning, and where one token spans prompt and output.
    """
    length, begins = len(row.prompt), max(row.completion_char, masked.boundary[1] if masked.boundary else 0)
    if not row.matches:
        return
    if row.completion_char > length:
        yield "loss behind the prompt", repr(row.text[length : row.completion_char])
    elif begins < length:
        yield "loss within the prompt", repr(row.text[begins:length])
    elif begins == length and not encoder.begins_as_alone(row, masked):
        yield "prompt tokenized otherwise", repr(row.prompt[-20:])


class ControlTokens:
    """Finds the tokenizer's added tokens that are not called special, and are control tokens nevertheless."""

    def __init__(self, renderer: Renderer):
        every, special = (added_tokens_pattern(renderer.tokenizer, special) for special in (False, True))
        self._every, self._special = every, special
        self._of_turns = {*renderer.stops, *(every.findall(renderer.header) if every else ())}

    def __call__(self, text: str) -> Iterator[Found]:
        """Those in a text."""
        for match in self._every.finditer(text) if self._every else ():
            token = match.group()
            if not (self._special and self._special.fullmatch(token)):
                kind = "special tokens in data" if token in self._of_turns else "added tokens in data"
                yield kind, repr(token)
