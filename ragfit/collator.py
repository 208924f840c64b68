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
    """Pads rows to a batch, and labels those that have no labels yet.

    Padding is told apart by position, never by id: EOS keeps its loss when pad and EOS are one token.

    Rows with `input_ids` and `labels` (those of `ragfit.prepare`) are only padded. Packs of rows, which say as
    `seq_lengths` how long their rows are, are laid end to end by TRL's collator. Rows with `input_ids` alone
    are labelled here, as the collator of this name that TRL removed in 0.20 did: from behind the last
    `completion_start` to the end of the ids. Ids do not say who wrote them, so a marker quoted in the answer can
    only be told from the template's own where the tokenizer's chat template shows what comes before the latter.

    Args:
        completion_start: the marker that loss starts behind (text, or its ids); needed for rows without labels.
        tokenizer: a `transformers` tokenizer; its pad token (or EOS) fills, and it is needed for rows without labels.
        pad_token_id: the id to pad with, instead of the tokenizer's.
        ignore_index: the label of tokens without loss.
        padding_side: "right" or "left".
        pad_to_multiple_of: make the batch's length a multiple of this.

    Raises:
        ValueError: an unknown `padding_side`, or a `completion_start` of ids without a tokenizer.

    Example:
        >>> collator = DataCollatorForCompletionOnlyLM(pad_token_id=0)
        >>> collator([{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7, 2], "labels": [-100, 2]}])
        {'input_ids': tensor([[5, 6, 2],
                [7, 2, 0]]), 'attention_mask': tensor([[1, 1, 1],
                [1, 1, 0]]), 'labels': tensor([[-100,    6,    2],
                [-100,    2, -100]])}
    """

    def __init__(
        self,
        completion_start: str | Sequence[int] | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        pad_token_id: int | None = None,
        ignore_index: int = IGNORE_INDEX,
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
    ):
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}. Use 'right' or 'left'.")
        if completion_start is not None and not isinstance(completion_start, str):
            if tokenizer is None:
                raise ValueError("completion_start is given as ids. Give the tokenizer too, or the marker's text.")
            completion_start = tokenizer.decode(list(completion_start))
        if pad_token_id is None and tokenizer is not None:
            pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.completion_start = completion_start or ""
        self.tokenizer = tokenizer
        self.pad_token_id = pad_token_id or 0  # any id will do: padding is not attended to and has no loss
        self.ignore_index = ignore_index
        self.padding_side = padding_side
        self.pad_to_multiple_of = pad_to_multiple_of
        self._labeller: _Labeller | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        """Make a batch.

        Args:
            rows: each with `input_ids` and, where it has them, `labels` of the same length and `seq_lengths`; other
                keys are left out.

        Returns:
            `input_ids`, `attention_mask` and `labels`: int64 tensors of shape (rows, longest row). Of packs
            `input_ids`, `labels` and `position_ids`, which begin at 0 in each row, of shape (1, all tokens); no mask,
            beside which the positions would be overlooked; and the boundaries in the forms that kernels take.

        Raises:
            ValueError: a row has more or fewer labels than ids.
            PromptError: as `label`.
        """
        import torch

        if BOUNDARIES in rows[0]:
            return self._end_to_end(rows)
        width = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(rows), width)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, self.ignore_index, dtype=torch.int64),
        }
        for i, row in enumerate(rows):
            ids = torch.as_tensor(row["input_ids"], dtype=torch.int64)
            labels = row.get("labels")
            labels = torch.as_tensor(self.label(ids.tolist()) if labels is None else labels, dtype=torch.int64)
            if len(labels) != len(ids):
                raise ValueError(
                    f"Row {i} of the batch has {len(ids)} input_ids and {len(labels)} labels. "
                    "Give one label for each id."
                )
            if self.ignore_index != IGNORE_INDEX:
                labels = labels.masked_fill(labels == IGNORE_INDEX, self.ignore_index)
            place = slice(0, len(ids)) if self.padding_side == "right" else slice(width - len(ids), width)
            batch["input_ids"][i, place] = ids
            batch["attention_mask"][i, place] = 1
            batch["labels"][i, place] = labels
        return batch

    def _end_to_end(self, rows: Sequence[Mapping[str, Any]]) -> "dict[str, torch.Tensor]":
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        collate = DataCollatorForLanguageModeling(self.pad_token_id, True, pad_to_multiple_of=self.pad_to_multiple_of)
        # By name: TRL's would learn a whole row that has no labels.
        batch = collate([{key: row[key] for key in ("input_ids", "labels", BOUNDARIES)} for row in rows])
        if self.ignore_index != IGNORE_INDEX:
            batch["labels"].masked_fill_(batch["labels"] == IGNORE_INDEX, self.ignore_index)
        return batch

    def label(self, ids: list[int]) -> list[int]:
        """Labels for the token ids of a text that others rendered, as many as there are ids.

        Raises:
            PromptError: the marker does not occur or nothing follows it, so no token would have loss.
        """
        if self.tokenizer is None or not self.completion_start:
            raise PromptError(
                "labels",
                "a row has none, and the collator has no tokenizer or completion_start to make them with",
                "Give both, or rows that ragfit.prepare made.",
            )
        if self._labeller is None:
            self._labeller = _Labeller(self.tokenizer, self.completion_start)
        start = self._labeller.start(ids)
        if start >= len(ids):
            raise PromptError(
                "completion_start",
                f"nothing follows {self.completion_start!r} in a row, so none of its tokens would have loss",
                "Leave such rows out.",
            )
        return [self.ignore_index] * start + ids[start:]


class _Labeller:
    """Finds the first token with loss in ids alone."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", marker: str):
        from ragfit.data.prompt import Renderer

        self.tokenizer, self.marker = tokenizer, marker
        self.encoder = Encoder(tokenizer)
        try:
            # The template's own text before the output; in it, the marker is the template's and nobody's quotation.
            # What the template writes after the answer may hold the marker too: Llama-3 adds an assistant header.
            renderer = Renderer(tokenizer, completion_start=marker)
            self.middle, self.tail = renderer.middle, renderer.tail
        except PromptError:
            self.middle, self.tail = marker, ""

    def start(self, ids: list[int]) -> int:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        again, spans = self.encoder.spans(text)
        char = self._char(text)
        if again == ids and spans is not None and char is not None:
            return next((position for position, (left, _) in enumerate(spans) if left >= char), len(ids))
        # Ids that their own text does not give again (others tokenized it in pieces): the marker's ids decide.
        marker = self.encoder.spans(self.marker)[0]
        # One with nothing but white space behind it is the header of the next turn.
        for at in range(len(ids) - len(marker), -1, -1):
            if ids[at : at + len(marker)] == marker and self.tokenizer.decode(ids[at + len(marker) :]).strip():
                return at + len(marker)
        raise PromptError(
            "completion_start",
            f"{self.marker!r} does not occur in a row, so none of its tokens would have loss: it ends {text[-80:]!r}",
            "Set completion_start to the text that comes right before the answer.",
        )

    def _char(self, text: str) -> int | None:
        """Where the answer begins in a text; None where the marker does not occur."""
        text = text.removesuffix(self.tail)
        within, at = self.middle.rfind(self.marker), text.rfind(self.middle)
        if at >= 0 and within >= 0:
            return at + within + len(self.marker)
        at = text.rfind(self.marker)
        return at + len(self.marker) if at >= 0 else None
