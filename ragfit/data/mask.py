"""What is learned: token ids, and which of them have loss. The only place where labels are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ragfit.data.prompt import Rendered
from ragfit.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # the label of a token without loss, as in `torch.nn.CrossEntropyLoss`
_NEAR = 200  # characters before the end of a prompt that decide how its last tokens are split


@dataclass(frozen=True)
class Masked:
    """One row as the token ids of its whole training text, with loss from position `start` to before `end`."""

    input_ids: list[int]
    start: int
    end: int
    boundary: tuple[int, int] | None = None  # (start, end) characters of a token that spans the completion's beginning

    def labels(self) -> list[int]:
        learned = range(self.start, self.end)
        return [token if n in learned else IGNORE_INDEX for n, token in enumerate(self.input_ids)]


def to_arrow(rows: list[Masked]) -> pa.RecordBatch:
    ids = pa.array([row.input_ids for row in rows], pa.list_(pa.int32()))
    flat = ids.values.to_numpy()
    labels = np.full(len(flat), IGNORE_INDEX, np.int32)  # a Python list of labels for each row would take longer
    for begin, row in zip(ids.offsets.to_pylist(), rows, strict=False):
        learned = slice(begin + row.start, begin + max(row.start, row.end))
        labels[learned] = flat[learned]
    return pa.record_batch([ids, pa.ListArray.from_arrays(ids.offsets, labels)], ["input_ids", "labels"])


class Encoder:
    """Tokenizes rendered rows and finds the run of tokens with loss. `bos` are ids to put before each text's own."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", bos: Sequence[int] = ()):
        if not tokenizer.is_fast:
            problem = f"its tokenizer ({type(tokenizer).__name__}) does not tell which characters a token stands for"
            fix = "Use a model with a fast tokenizer (tokenizer.json)."
            raise ConfigError("model.model_name_or_path", problem, fix)
        self.tokenizer, self.bos = tokenizer, list(bos)
        self._backend = _with_whole_offsets(tokenizer.backend_tokenizer)

    @property
    def backend(self) -> "Tokenizer":
        """The Rust tokenizer, which neither cuts nor pads, whatever tokenizer.json or an earlier call has set."""
        if self._backend.truncation or self._backend.padding:  # nothing may be set while another thread encodes
            self._backend.no_truncation()
            self._backend.no_padding()
        return self._backend

    def encode(self, rows: list[Rendered]) -> list[Masked]:
        encodings = self.backend.encode_batch([row.text for row in rows], add_special_tokens=False)
        return [self._mask(row, encoding) for row, encoding in zip(rows, encodings, strict=True)]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def begins_as_alone(self, row: Rendered, masked: Masked) -> bool:
        """Whether the ids before the first with loss are those of the prompt tokenized alone, as inference does it."""
        read = masked.input_ids[: masked.start]  # of the same text, so tokens can differ near the prompt's end only
        ids, spans = self.spans(row.prompt[-_NEAR:])
        near = [token for token, (begin, _) in zip(ids, spans, strict=True) if begin >= _NEAR // 2]
        return bool(near and read[-len(near) :] == near) or read == self.bos + self.spans(row.prompt)[0]

    def _mask(self, row: Rendered, encoding: "Encoding") -> Masked:
        start, end = (_first_token_from(encoding, char, len(row.text)) for char in (row.completion_char, row.end_char))
        left, right = encoding.token_to_chars(start - 1) or (0, 0) if start else (0, 0)
        boundary = (left, right) if left < row.completion_char < right else None
        return Masked(self.bos + encoding.ids, start + len(self.bos), end + len(self.bos), boundary)


def _first_token_from(encoding: "Encoding", char: int, length: int) -> int:
    """The first token that starts at or after a character; `len(encoding)` where none. (`offsets` copies all.)"""
    while char < length and (token := encoding.char_to_token(char)) is None:
        char += 1  # the normalizer has dropped it
    if char >= length:
        return len(encoding)
    while token < len(encoding) and encoding.token_to_chars(token)[0] < char:
        token += 1  # the one that holds the character may begin before it
    return token


def _with_whole_offsets(backend: "Tokenizer") -> "Tokenizer":
    """A tokenizer whose offsets cover each token's whole text, from which a post-processor may trim white space.

    A token " a" whose space is the prompt's last character would then look as if it began with the completion.
    """
    from tokenizers import Tokenizer, processors

    if b'"trim_offsets":true' not in (backend.post_processor.__getstate__() if backend.post_processor else b""):
        return backend
    exact = Tokenizer.from_str(backend.to_str())
    exact.encode_special_tokens = backend.encode_special_tokens  # not part of the serialized form
    exact.post_processor = processors.ByteLevel(trim_offsets=False)
    return exact
