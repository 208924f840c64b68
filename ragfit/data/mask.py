"""What is learned: token ids, and which of them have loss.

The only place where labels are made. Each text is tokenized once, as a whole, and a token has loss exactly
if it starts at or after the completion's first character and before the end of the assistant's turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.data.prompt import Rendered
from ragfit.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token without loss, as in `torch.nn.CrossEntropyLoss(ignore_index=-100)`."""

_NEAR = 200  # characters before the end of a prompt that decide how its last tokens are split


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

    def labels(self) -> list[int]:
        """A label for each id: the id itself where there is loss, `IGNORE_INDEX` elsewhere."""
        ids, start, end = self.input_ids, self.start, max(self.start, self.end)
        return [IGNORE_INDEX] * start + ids[start:end] + [IGNORE_INDEX] * (len(ids) - end)


def to_arrow(rows: list[Masked]) -> "pa.RecordBatch":
    """Many rows as the columns `input_ids` and `labels` (lists of int32)."""
    import numpy as np
    import pyarrow as pa

    ids = pa.array([row.input_ids for row in rows], pa.list_(pa.int32()))
    flat = ids.values.to_numpy()
    labels = np.full(len(flat), IGNORE_INDEX, np.int32)  # a Python list of labels for each row would take longer
    for begin, row in zip(ids.offsets.to_pylist(), rows, strict=False):
        learned = slice(begin + row.start, begin + max(row.start, row.end))
        labels[learned] = flat[learned]
    return pa.record_batch([ids, pa.ListArray.from_arrays(ids.offsets, labels)], ["input_ids", "labels"])


class Encoder:
    """Tokenizes rendered rows and finds the run of tokens with loss.

    Args:
        tokenizer: a fast `transformers` tokenizer, which gives offsets.
        bos: ids to put before each text's own.

    Raises:
        ConfigError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", bos: Sequence[int] = ()):
        from transformers import PreTrainedTokenizerFast

        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            problem = f"its tokenizer ({type(tokenizer).__name__}) does not tell which characters each token stands for"
            fix = "Use a model with a fast tokenizer (a tokenizer.json)."
            raise ConfigError("model.model_name_or_path", problem, fix)
        self.tokenizer, self.bos = tokenizer, list(bos)
        self._backend = _with_whole_offsets(tokenizer.backend_tokenizer)

    @property
    def backend(self) -> "Tokenizer":
        """The Rust tokenizer, which neither cuts nor pads, whatever tokenizer.json or an earlier call has set."""
        # Asked first, because nothing may be set while another thread encodes.
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        return self._backend

    def encode(self, rows: list[Rendered]) -> list[Masked]:
        """Encode rendered rows. Several threads may do so at once."""
        encodings = self.backend.encode_batch([row.text for row in rows], add_special_tokens=False)
        return [self._mask(row, encoding) for row, encoding in zip(rows, encodings, strict=True)]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the (start, end) characters of each token of a text."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def begins_as_alone(self, row: Rendered, masked: Masked) -> bool:
        """Whether the ids before the first with loss are those of the prompt tokenized alone, as inference does it."""
        read = masked.input_ids[: masked.start]
        # The texts are the same there, so their tokens can differ near the prompt's end only.
        ids, spans = self.spans(row.prompt[-_NEAR:])
        near = [token for token, (begin, _) in zip(ids, spans, strict=True) if begin >= _NEAR // 2]
        return bool(near and read[-len(near) :] == near) or read == self.bos + self.spans(row.prompt)[0]

    def _mask(self, row: Rendered, encoding: "Encoding") -> Masked:
        start = _first_token_from(encoding, row.completion_char, len(row.text))
        end = _first_token_from(encoding, row.end_char, len(row.text))
        boundary = None
        if 0 < start <= len(encoding):
            left, right = encoding.token_to_chars(start - 1) or (0, 0)
            if left < row.completion_char < right:
                boundary = (left, right)
        shift = len(self.bos)
        return Masked(self.bos + encoding.ids, start + shift, end + shift, boundary)


def _first_token_from(encoding: "Encoding", char: int, length: int) -> int:
    """The first token that starts at or after a character; `len(encoding)` where there is none."""
    # `encoding.offsets` would copy the places of all tokens, which costs a tenth of preparing.
    while char < length:
        token = encoding.char_to_token(char)
        if token is not None:  # which may begin before the character
            while token < len(encoding) and encoding.token_to_chars(token)[0] < char:
                token += 1
            return token
        char += 1  # the normalizer has dropped it
    return len(encoding)


def _with_whole_offsets(backend: "Tokenizer") -> "Tokenizer":
    """A tokenizer whose offsets cover each token's whole text.

    A post-processor may trim white space from them. A token " a" whose space is the prompt's last character would then
    look as if it began with the completion.
    """
    from tokenizers import Tokenizer, processors

    state = bytes(backend.post_processor.__getstate__()) if backend.post_processor else b""
    if b'"trim_offsets":true' not in state.replace(b" ", b""):
        return backend
    exact = Tokenizer.from_str(backend.to_str())
    exact.encode_special_tokens = backend.encode_special_tokens  # not part of the serialized form
    # Only special tokens and offsets are a post-processor's work, and no special tokens are asked for here.
    exact.post_processor = processors.ByteLevel(trim_offsets=False)
    return exact
