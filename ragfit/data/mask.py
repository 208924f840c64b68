"""What is learned: token ids, and which of them have loss.

The only place where labels are made. Each text is tokenized once, as a whole, and a token has loss exactly
if it starts at or after the completion's first character and before the end of the assistant's turn.
"""

import array
import hashlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.data.prompt import Rendered
from ragfit.errors import PromptError

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token without loss, as in `torch.nn.CrossEntropyLoss(ignore_index=-100)`."""


@dataclass(frozen=True)
class Masked:
    """One row as token ids, with loss on one run of them.

    Attributes:
        input_ids: the ids of the whole training text.
        start: the first position with loss.
        end: one past the last position with loss.
        boundary: the (start, end) characters of the token that begins before the completion and ends in it, or
            None. Such a token counts as prompt.
    """

    input_ids: list[int]
    start: int
    end: int
    boundary: tuple[int, int] | None = None

    def labels(self, ignore_index: int = IGNORE_INDEX) -> list[int]:
        """A label for each id: the id itself where there is loss, `ignore_index` elsewhere."""
        ids, start, end = self.input_ids, self.start, max(self.start, self.end)
        return [ignore_index] * start + ids[start:end] + [ignore_index] * (len(ids) - end)


def to_arrow(rows: list[Masked]) -> "tuple[pa.ListArray, pa.ListArray]":
    """Ids and labels of many rows as two Arrow arrays, without a Python list of labels for each.

    Returns:
        (input_ids, labels): two `pyarrow.ListArray` of int32, one list a row; labels as `Masked.labels` gives them.
    """
    import numpy as np
    import pyarrow as pa

    ids, offsets = array.array("i"), np.zeros(len(rows) + 1, np.int32)
    for row, masked in enumerate(rows, 1):
        ids.fromlist(masked.input_ids)
        offsets[row] = len(ids)
    ids = np.frombuffer(ids, np.int32) if len(ids) else np.empty(0, np.int32)
    labels = np.full(len(ids), IGNORE_INDEX, np.int32)
    for begin, masked in zip(offsets[:-1], rows, strict=True):
        learned = slice(begin + masked.start, begin + max(masked.start, masked.end))
        labels[learned] = ids[learned]
    return pa.ListArray.from_arrays(offsets, ids), pa.ListArray.from_arrays(offsets, labels)


class Encoder:
    """Tokenizes rendered rows and finds the run of tokens with loss.

    Args:
        tokenizer: a `transformers` tokenizer.
        bos: ids to put before each text's own.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", bos: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self.bos = list(bos)
        self.backend = exact_backend(tokenizer)
        self._alone = threading.Lock()  # a tokenizer in Python may not take two texts at once
        if self.backend is not None:
            self._encode_whole()

    def encode(self, rows: list[Rendered]) -> list[Masked]:
        """Encode rendered rows. Several threads may do so at once."""
        if self.backend is None:
            with self._alone:
                return [self._encode_slow(row) for row in rows]
        self._encode_whole()
        encodings = self.backend.encode_batch([row.text for row in rows], add_special_tokens=False)
        return [self._mask(row, encoding) for row, encoding in zip(rows, encodings, strict=True)]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Ids and the (start, end) characters of each token of a text; `(ids, None)` for a slow tokenizer."""
        if self.backend is None:
            with self._alone:
                return self.tokenizer.encode(text, add_special_tokens=False), None
        self._encode_whole()
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _encode_whole(self) -> None:
        """Truncation or padding stored in tokenizer.json would cut or fill the texts without a word."""
        # Asked first, because nothing may be set while another thread encodes.
        if self.backend.truncation is not None:
            self.backend.no_truncation()
        if self.backend.padding is not None:
            self.backend.no_padding()

    def _mask(self, row: Rendered, encoding: "Encoding") -> Masked:
        start = first_token_from(encoding, row.completion_char, len(row.text))
        end = first_token_from(encoding, row.end_char, len(row.text))
        boundary = None
        if 0 < start <= len(encoding):
            left, right = encoding.token_to_chars(start - 1) or (0, 0)
            if left < row.completion_char < right:
                boundary = (left, right)
        shift = len(self.bos)
        return Masked(self.bos + encoding.ids, start + shift, end + shift, boundary)

    def _encode_slow(self, row: Rendered) -> Masked:
        """Without offsets: the texts up to a place, encoded alone, must be the beginning of the whole's ids.

        Where they are not, a token spans the place; the tokens that both have in common end before it.
        """
        ids = self.tokenizer.encode(row.text, add_special_tokens=False)
        start, boundary = self._slow_place(ids, row.text, row.completion_char)
        end, _ = self._slow_place(ids, row.text, row.end_char)
        shift = len(self.bos)
        return Masked(self.bos + list(ids), start + shift, end + shift, boundary)

    def _slow_place(self, ids: list[int], text: str, char: int) -> tuple[int, tuple[int, int] | None]:
        head = list(self.tokenizer.encode(text[:char], add_special_tokens=False))
        differ = (i for i, (own, other) in enumerate(zip(head, ids, strict=False)) if own != other)
        shared = next(differ, min(len(head), len(ids)))
        if shared == len(head):
            return shared, None
        # The token that spans the place is the next one, or one of a few where a character takes several.
        before = self._decode(ids[:shared])
        for position in range(shared + 1, min(shared + 9, len(ids) + 1)):
            decoded = self._decode(ids[:position])
            if len(decoded) >= char and decoded == text[: len(decoded)]:
                before = self._decode(ids[: position - 1])
                return position, (len(before), len(decoded)) if len(decoded) > char else None
        # A special token may drop the white space before it.
        if before == text[: len(before)] and not text[len(before) : char].strip():
            return shared, None
        raise PromptError(
            "model.model_name_or_path",
            f"{type(self.tokenizer).__name__} gives no offsets, and its tokens do not decode to the text they came "
            f"from, so the completion's place is not known near {text[max(0, char - 20) : char + 20]!r}",
            "Use a model with a fast tokenizer (a tokenizer.json).",
        )

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def first_token_from(encoding: "Encoding", char: int, length: int) -> int:
    """The first token that starts at or after a character; `len(encoding)` where there is none."""
    # `encoding.offsets` would copy the places of all tokens, which costs a tenth of preparing.
    # Characters that the normalizer drops belong to no token.
    while char < length:
        token = encoding.char_to_token(char)
        if token is not None:
            start = encoding.token_to_chars(token)[0]
            if start >= char:
                return token
            # It begins before the place: the next token that begins later is the first one behind it.
            while token < len(encoding) and encoding.token_to_chars(token)[0] < char:
                token += 1
            return token
        char += 1
    return len(encoding)


_exact = weakref.WeakKeyDictionary()  # tokenizer -> (what it was copied from, the copy)


def exact_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """The Rust tokenizer with offsets that cover each token's whole text, or None for a slow tokenizer.

    A byte-level post-processor may trim white space from the offsets (`trim_offsets`). A token " a" whose space
    is the prompt's last character would then look as if it began with the completion.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    backend = tokenizer.backend_tokenizer
    processor = backend.post_processor
    if processor is None or b'"trim_offsets":true' not in bytes(processor.__getstate__()).replace(b" ", b""):
        return backend
    from tokenizers import Tokenizer, processors

    state = backend.to_str()
    made_from = hashlib.blake2b(state.encode()).digest(), backend.encode_special_tokens
    if tokenizer in _exact and _exact[tokenizer][0] == made_from:
        return _exact[tokenizer][1]
    exact = Tokenizer.from_str(state)
    exact.encode_special_tokens = backend.encode_special_tokens  # not part of the serialized form
    # Only special tokens and offsets are a post-processor's work, and no special tokens are asked for here.
    exact.post_processor = processors.ByteLevel(trim_offsets=False)
    _exact[tokenizer] = made_from, exact
    return exact
