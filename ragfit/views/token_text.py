"""The text that each token adds to a row."""

from ragfit.data.mask import Encoder

Spans = list[tuple[int, int]]


def token_texts(ids: list[int], text: str, encoder: Encoder) -> tuple[list[str], Spans | None]:
    """(texts, spans): the text that each token adds, and its (start, end) characters.

    "" where a token only continues a character. Where the text gives other ids, as that of a template that writes the
    date does on another day, spans are None and each id is decoded by itself.
    """
    again, spans = encoder.spans(text)
    ahead = len(ids) - len(again)
    if ahead < 0 or list(again) != ids[ahead:]:  # ahead stands a BOS that is not in the text
        return [encoder.tokenizer.decode([one]) for one in ids], None
    texts, at = [encoder.tokenizer.decode([one]) for one in ids[:ahead]], 0
    space = encoder.tokenizer.convert_tokens_to_ids("▁")
    for token, (start, end) in zip(again, spans, strict=True):
        # SentencePiece's own space is not in the text; the next token has these characters.
        own = token == space and text[max(start, at) : end].strip(" ")
        # What a tokenizer drops before a token, such as spaces behind a special one, stands in that token.
        texts.append("" if own or end <= at else text[at:end])
        at = at if own else max(at, end)
    return texts, [(0, 0)] * ahead + list(spans)
