"""The text that each token adds to a row."""

from typing import TYPE_CHECKING

from ragfit.data.mask import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]


def token_texts(ids: list[int], text: str, encoder: Encoder) -> tuple[list[str], Spans | None, dict[int, str]]:
    """The text that each token adds.

    Args:
        ids: token ids without padding.
        text: what they were made from.

    Returns:
        (texts, spans, dropped): a text for each id ("" where a token only continues a character), the (start, end)
        characters of each id, and, by position, text before a token that belongs to none. Spans are None where the
        text gives other ids, as that of a template that writes the date does on another day.
    """
    again, spans = encoder.spans(text)
    ahead = len(ids) - len(again)
    if ahead < 0 or list(again) != ids[ahead:]:  # ahead stands a BOS that is not in the text
        return _decoded(encoder.tokenizer, ids), None, {}
    texts, dropped, at = [encoder.tokenizer.decode(i) for i in ids[:ahead]], {}, 0
    space = encoder.tokenizer.convert_tokens_to_ids("▁")
    for position, (start, end) in enumerate(spans, ahead):
        piece = text[max(start, at) : end]
        if ids[position] == space and piece.strip(" "):
            piece = ""  # SentencePiece's own space, which is not in the text; the next token has these characters
        elif piece:
            if start > at:
                dropped[position] = text[at:start]
            at = end
        texts.append(piece)
    return texts, [(0, 0)] * ahead + list(spans), dropped


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[str]:
    """Texts of ids that no text gives again: each is what decoding gains by it."""
    texts, first, read = [], 0, 0
    for i in range(len(ids)):
        before = tokenizer.decode(ids[first:read], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        after = tokenizer.decode(ids[first : i + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts.append("")
        if not after.endswith("\ufffd") or i - read >= 4 or i == len(ids) - 1:
            texts[read] = after[len(before) :]  # a character of several tokens stands at the first of them
            first, read = read, i + 1
    return texts
