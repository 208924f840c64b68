"""Rows packed by TRL, several in one sequence of the model; whether it keeps them apart is tried before training."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import get_temporary_cache_files_directory
from omegaconf import DictConfig
from trl import SFTTrainer, pack_dataset

from ragfit.collator import BOUNDARIES
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError, first_line
from ragfit.models.load import base_of
from ragfit.training.cpu import is_sharded

Rows = tuple[Dataset, Dataset | None]  # train, dev
TRIED = 24  # tokens of each row of the trial
# How far a pack's log-probabilities may be from those of its rows side by side, as a share of how far they are where
# one row goes on from the other. Rounding made 0.1 of it (8-bit weights); rows that see each other make all of it.
TOLERANCE = 0.6


def pack_length(cfg: DictConfig, prepared: Prepared) -> int:
    """The tokens that a pack has at most."""
    return cfg.train.get("max_length") or cfg.model.get("max_sequence_len") or prepared.report.train.longest


def training_rows(cfg: DictConfig, prepared: Prepared) -> Rows:
    """The train rows, packed where `train.packing` asks for it, and the dev rows as they are."""
    if not cfg.train.get("packing"):
        return prepared.train, prepared.dev
    length, longest = pack_length(cfg, prepared), prepared.report.train.longest
    if longest > length:  # TRL would cut it
        problem = f"a pack has {length:,} tokens at most, but the longest row has {longest:,}, and no row is cut"
        raise ConfigError("train.max_length", problem, f"Set train.max_length={longest} or model.max_sequence_len.")
    # A file of its own, else `map` would write beside the cached rows that are read here.
    file = Path(get_temporary_cache_files_directory(), f"{uuid.uuid4()}.arrow")
    return pack_dataset(prepared.train, length, "bfd", {"cache_file_name": str(file)}), prepared.dev


def is_packed(rows: Dataset) -> bool:
    return BOUNDARIES in rows.column_names


def token_counts(rows: Dataset) -> Iterator[tuple[int, int]]:
    """(tokens without loss, tokens with loss) of each row or pack."""
    for table in rows.with_format("arrow").iter(batch_size=1000):
        column = table["labels"].combine_chunks()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        learned = column.flatten().to_numpy(zero_copy_only=False) != IGNORE_INDEX
        counts = np.add.reduceat(learned, np.cumsum(lengths) - lengths, dtype=np.int64)
        yield from zip((lengths - counts).tolist(), counts.tolist(), strict=True)


def check_apart(trainer: SFTTrainer) -> None:
    """Refuse a model in which two short rows have other log-probabilities packed than side by side."""
    base = base_of(trainer.model)
    if is_sharded(base):
        return
    try:
        reason = "log-probabilities change" if difference(trainer) > TOLERANCE else ""
    except Exception as error:  # models refuse packs in ways of their own
        reason = first_line(error)
    if reason:
        how = f"{type(base).__name__} with attn_implementation={base.config._attn_implementation}"
        problem = f"{how} does not keep the rows of a pack apart: {reason}"
        raise ConfigError("train.packing", problem, "Remove train.packing, or set another model.attn_implementation.")


def difference(trainer: SFTTrainer) -> float:
    """How far a pack's log-probabilities are from its rows' in one batch: 0 where they are apart, 1 where they are one.

    The larger of two shares: of what it changes that a row goes on from the other, and that the first is another one.
    """
    size = base_of(trainer.model).get_input_embeddings().weight.shape[0]
    first, second = (torch.arange(1, 1 + 2 * TRIED) * 7919 % size).view(2, TRIED).tolist()

    def one(first: list[int], **boundaries: list[int]) -> torch.Tensor:
        row = {"input_ids": first + second, "labels": [*first, IGNORE_INDEX, *second[1:]]}
        return _log_probs(trainer, [row | boundaries])

    pack = {BOUNDARIES: [TRIED, TRIED]}
    # Side by side, not one after the other, because LLM.int8 quantizes by what is in a batch.
    apart = _log_probs(trainer, [{"input_ids": row, "labels": row} for row in (first, second)])
    joined, packed = one(first), one(first, **pack)
    other, other_packed = one(first[::-1]), one(first[::-1], **pack)
    second_row = slice(TRIED - 1, None)
    pairs = ((packed - apart, joined - apart), ((other_packed - packed)[second_row], (other - joined)[second_row]))
    return max(float(found.norm() / whole.norm().clamp(min=1e-6)) for found, whole in pairs)


@torch.no_grad()
def _log_probs(trainer: SFTTrainer, rows: list[dict]) -> torch.Tensor:
    args, model = trainer.args, trainer.model
    batch = trainer.data_collator(rows)
    batch = {name: value.to(args.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    # Flash attention has no other types than these. Without autocast, less is rounded.
    half = "flash" in str(model.config._attn_implementation) and (args.bf16 or args.fp16)
    training = model.training
    model.eval()
    with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, enabled=bool(half)):
        output = model(**batch, use_cache=False, fused_lm_head=True)
    model.train(training)
    return output.log_probs[output.label_mask].float()
