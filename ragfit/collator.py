"""The batch the model gets: prepared rows plus padding, nothing else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragfit.data.mask import IGNORE_INDEX, Encoder
from ragfit.errors import PromptError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

BOUNDARIES = "seq_lengths"  # TRL's column of packs: the lengths of the rows in a pack


class DataCollatorForCompletionOnlyLM:
    """Pads rows to a batch with TRL's collator, and labels those that have no labels yet.

    Padding is told apart by position, never by id: EOS keeps its loss when pad and EOS are one token.

    Rows with `labels` (those of `ragfit.prepare`) are only padded, and packs of them (`seq_lengths`) laid end to end.
    Rows with `input_ids` alone are labelled here, from behind the last `completion_start` to their end, as the collator
    of this name that TRL removed in 0.20 did; a marker quoted in the answer is taken for the template's own.

    Args:
        completion_start: the marker that loss starts behind, as text or ids, for rows without labels.
        tokenizer: its pad token (or EOS) fills, and rows without labels need it.
        pad_token_id: the id to pad with, instead of the tokenizer's.
        pad_to_multiple_of: make the batch's length a multiple of this.

    Example:
        >>> collator = DataCollatorForCompletionOnlyLM(pad_token_id=0)
        >>> collator([{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7, 2], "labels": [-100, 2]}])
        {'input_ids': tensor([[5, 6, 2],
                [7, 2, 0]]), 'labels': tensor([[-100,    6,    2],
                [-100,    2, -100]]), 'attention_mask': tensor([[1, 1, 1],
                [1, 1, 0]])}
    """

    def __init__(
        self,
        completion_start: str | Sequence[int] | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        pad_token_id: int | None = None,
        pad_to_multiple_of: int | None = None,
    ):
        if pad_token_id is None and tokenizer is not None:
            pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if completion_start is not None and not isinstance(completion_start, str):
            completion_start = tokenizer.decode(list(completion_start))
        self.completion_start, self.tokenizer = completion_start or "", tokenizer
        self.pad_token_id = pad_token_id or 0  # any id will do: padding is not attended to and has no loss
        self.pad_to_multiple_of = pad_to_multiple_of
        self._encoder: Encoder | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Make a batch.

        Args:
            rows: each with `input_ids` and, where it has them, `labels` of the same length and `seq_lengths`; other
                keys are left out.

        Returns:
            `input_ids`, `labels` and `attention_mask`: int64 tensors of shape (rows, longest row). Of packs, instead of
            the mask, `position_ids` that begin at 0 in each row, and all of shape (1, all tokens).

        Raises:
            ValueError: a row has more or fewer labels than ids, which TRL would pad.
        """
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        examples = [{key: row[key] for key in ("input_ids", "labels", BOUNDARIES) if key in row} for row in rows]
        for row in examples:
            if row.get("labels") is None:
                row["labels"] = self.label(list(row["input_ids"]))
            if len(row["labels"]) != len(row["input_ids"]):
                raise ValueError(f"A row has {len(row['input_ids'])} input_ids and {len(row['labels'])} labels.")
        settings = {"padding_free": BOUNDARIES in rows[0], "pad_to_multiple_of": self.pad_to_multiple_of}
        return DataCollatorForLanguageModeling(self.pad_token_id, **settings)(examples)

    def label(self, ids: list[int]) -> list[int]:
        """Labels for the token ids of a text that others rendered; PromptError where the marker finds no answer."""
        if self.tokenizer is None or not self.completion_start:
            problem = "a row has none, and the collator has no tokenizer or completion_start to make them with"
            raise PromptError("labels", problem, "Give both, or rows that ragfit.prepare made.")
        self._encoder = self._encoder or Encoder(self.tokenizer)
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        again, spans = self._encoder.spans(text)
        # With nothing but white space behind it, the last marker is the header of the next turn.
        before, found, answer = text.rpartition(self.completion_start)
        if found and not answer.strip():
            before, found, answer = before.rpartition(self.completion_start)
        starts = [at for at, (left, _) in enumerate(spans) if left >= len(before) + len(found)]
        if not found or not starts or again != ids:
            problem = f"{self.completion_start!r} does not occur before an answer in a row that ends {text[-80:]!r}"
            raise PromptError("completion_start", problem, "Set it to the text right before the answer.")
        return [IGNORE_INDEX] * starts[0] + ids[starts[0] :]
