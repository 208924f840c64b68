"""Rows laid end to end, several in one sequence of the model, of which none sees another.

TRL packs (`pack_dataset`) and lays a batch end to end (its collator's `padding_free`); here its parameters are chosen,
and whether the model keeps the rows of a pack apart is tried before it is trained.
"""

import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.fingerprint import get_temporary_cache_files_directory
from datasets.utils.logging import is_progress_bar_enabled
from omegaconf import DictConfig
from trl import SFTTrainer, pack_dataset

from ragfit.collator import BOUNDARIES
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError, first_line
from ragfit.models.load import base_of
from ragfit.training.cpu import BY_ROW, is_sharded
from ragfit.training.preflight import GROUPED

KEYS = ("packing", "padding_free", "eval_packing")  # of `train`
# How far the values of two rows packed may be from those of the rows side by side, as a share of them: by rounding in
# float32 (4e-6 was seen), and where less precise types or quantized weights take part (0.07 was seen in 30 layers of 8
# bits). Rows that see each other were 0.7 and more apart.
ROUNDING, COARSE = 1e-4, 0.3
Rows = tuple[Dataset, Dataset | None]  # train, dev
TRIED = 24  # tokens of each row


def check_keys(train: dict) -> None:
    """Refuse keys of `train` that go against packing."""
    if not any(train.get(key) for key in ("packing", "eval_packing")):
        return
    if (strategy := train.get("packing_strategy") or "bfd") != "bfd":
        raise ConfigError(
            "train.packing_strategy",
            f"{strategy} splits rows, and then a piece of an answer is trained on without its prompt",
            "Remove train.packing_strategy: rows are packed best fit first (bfd), and none is split.",
        )
    order = train.get("train_sampling_strategy")
    if train.get("packing") and order in GROUPED:
        raise ConfigError(
            "train.train_sampling_strategy",
            f"{order} puts rows of similar length into a batch to save padding, but packs (train.packing) have none, "
            "and are of one length anyway",
            "Remove train.packing, or train.group_by_length and train.train_sampling_strategy.",
        )


def pack_length(cfg: DictConfig, prepared: Prepared) -> int:
    """The tokens that a pack has at most."""
    report = prepared.report
    packed = [report.train, report.dev] if cfg.train.get("eval_packing") else [report.train]
    return cfg.train.get("max_length") or cfg.model.get("max_sequence_len") or max(part.longest for part in packed)


def training_rows(cfg: DictConfig, prepared: Prepared) -> Rows:
    """The train and dev rows as the trainer takes them: as they are prepared, or packed.

    Packed rows, and those of which batches are laid end to end (`train.padding_free`), have a column `seq_lengths`,
    by which the collator knows them.

    Raises:
        ConfigError: a row is longer than a pack.
    """
    train, dev = prepared.train, prepared.dev
    if cfg.train.get("packing"):
        train = _packed(cfg, prepared, "train")
    elif cfg.train.get("padding_free"):
        train = train.add_column(BOUNDARIES, [[sum(pair)] for pair in prepared.report.train.lengths])
    if dev is not None and cfg.train.get("eval_packing"):
        dev = _packed(cfg, prepared, "dev")
    return train, dev


def _packed(cfg: DictConfig, prepared: Prepared, part: str) -> Dataset:
    length = pack_length(cfg, prepared)
    longest = prepared.report.part(part).longest
    if longest > length:  # TRL would cut it
        raise ConfigError(
            "train.max_length",
            f"a pack has {length:,} tokens at most, but the longest {part} row has {longest:,}, and no row is cut",
            f"Set train.max_length={longest} or more; model.max_sequence_len={length} drops or cuts longer rows.",
        )
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        # Else `map` would write beside the cached rows that are read here.
        file = Path(get_temporary_cache_files_directory(), f"{uuid.uuid4()}.arrow")
        return pack_dataset(prepared.part(part), length, "bfd", {"cache_file_name": str(file)})
    finally:
        if shown:
            enable_progress_bars()


def is_packed(rows: Dataset | None) -> bool:
    """Whether rows are packed, or laid end to end by the batch."""
    return rows is not None and BOUNDARIES in rows.column_names


def token_counts(rows: Dataset) -> Iterator[tuple[int, int]]:
    """(tokens without loss, tokens with loss) of each row or pack."""
    for table in rows.with_format("arrow").iter(batch_size=1000):
        column = table["labels"].combine_chunks()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        learned = column.flatten().to_numpy(zero_copy_only=False) != IGNORE_INDEX
        counts = np.add.reduceat(learned, np.cumsum(lengths) - lengths, dtype=np.int64)
        yield from zip((lengths - counts).tolist(), counts.tolist(), strict=True)


# Whether rows are kept apart.


def check_apart(trainer: SFTTrainer) -> None:
    """Try whether two short rows packed give the losses and gradients of the same rows side by side.

    On a CPU, SDPA then takes each row of a pack by itself.

    Raises:
        ConfigError: they don't.
    """
    model = trainer.model
    base = base_of(model)
    if is_sharded(base):
        return
    key = next(key for key in KEYS if trainer.cfg.train.get(key))
    parallel = trainer.accelerator.parallelism_config
    if parallel is not None and parallel.cp_enabled:  # as TRL says of its own packing
        problem = "context parallelism has attention without masks, so that the rows of a pack would see each other"
        raise ConfigError(f"train.{key}", problem, f"Remove train.{key}, or set cp_size to 1.")

    reason = "two rows have other losses and gradients packed than side by side"
    own = base.config._attn_implementation
    for name in [BY_ROW, own] if own == "sdpa" and trainer.args.device.type == "cpu" else [own]:
        base.set_attn_implementation(name)
        try:
            if difference(trainer) <= tolerance(trainer):
                return
        except Exception as error:  # models refuse packs in ways of their own
            reason = first_line(error)
    raise ConfigError(
        f"train.{key}",
        f"{type(base).__name__} with attn_implementation={own} does not keep the rows of a pack apart: {reason}",
        f"Remove train.{key}, or set another model.attn_implementation (none will do where a model carries a state "
        "from token to token).",
    )


def tolerance(trainer: SFTTrainer) -> float:
    """The share that rounding may make of a difference."""
    exact = {weight.dtype for weight in trainer.model.parameters()} == {torch.float32} and not _autocast(trainer)
    # transformers sets train.tf32 through torch's newer interface, after which the older one raises.
    backend = torch.backends.cuda if trainer.args.device.type == "cuda" else torch.backends.mkldnn
    return ROUNDING if exact and backend.matmul.fp32_precision in ("none", "ieee") else COARSE


def difference(trainer: SFTTrainer) -> float:
    """How far the losses of two rows and the gradients of two weights are from those of the rows side by side.

    In evaluation mode, so without dropout; neither weights, their gradients nor random numbers are touched. Side by
    side, not one after the other, because LLM.int8 quantizes by what is in a batch.

    Returns:
        The larger of the differences' norms, as a share of the values' norm.
    """
    model = trainer.model
    base = base_of(model)
    embedding = base.get_input_embeddings().weight
    ids = (torch.arange(1, 1 + 2 * TRIED) * 7919 % embedding.shape[0]).tolist()
    rows = [{"input_ids": part, "labels": part} for part in (ids[:TRIED], ids[TRIED:])]
    pack = {"input_ids": ids, "labels": ids, BOUNDARIES: [TRIED, TRIED]}
    # LoRA's first factor has no gradient while the second is zero.
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight is not embedding][:2]
    training = model.training
    model.eval()
    try:
        pairs = zip(_values(trainer, rows, weights), _values(trainer, [pack], weights), strict=True)
    finally:
        model.train(training)
    shares = [float((one - other).norm() / one.norm().clamp(min=1e-12)) for one, other in pairs if one.isfinite().all()]
    return max((math.inf if math.isnan(share) else share for share in shares), default=0.0)


def _values(trainer: SFTTrainer, rows: list[dict], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The log-probabilities of all labels of a batch, and the gradients of their sum."""
    batch, args = trainer.data_collator(rows), trainer.args
    batch = {name: value.to(args.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, enabled=_autocast(trainer)):
        output = trainer.model(**batch, use_cache=False, fused_lm_head=True)
    values = output.log_probs[output.label_mask]
    gradients = torch.autograd.grad(values.sum(), weights, allow_unused=True, materialize_grads=True)
    return [values.detach().float(), *(gradient.float() for gradient in gradients)]


def _autocast(trainer: SFTTrainer) -> bool:
    """Whether the trial needs a half-precision type: flash attention has no other. Without one, less is rounded."""
    return "flash" in str(trainer.model.config._attn_implementation) and (trainer.args.bf16 or trainer.args.fp16)
