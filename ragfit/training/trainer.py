"""TRL's trainer, given rows that are ready: what is specific to this kit and needs torch."""

import functools
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from omegaconf import DictConfig
from peft.helpers import disable_input_dtype_casting
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import SFTConfig

from ragfit import before_torch
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.models.load import base_of
from ragfit.training.cpu import check_head, project_labelled_only
from ragfit.training.packing import Rows, check_apart, is_packed, token_counts, training_rows
from ragfit.training.survival import SurvivingTrainer


class RagfitTrainer(SurvivingTrainer):
    """`trl.SFTTrainer` over rows of `ragfit.prepare`; `rows` are those of `training_rows`, where they are at hand."""

    def __init__(
        self, cfg: DictConfig, prepared: Prepared, loaded: Any, args: SFTConfig, rows: Rows | None = None, **kwargs
    ):
        self.cfg, self.prepared, tokenizer = cfg, prepared, prepared.tokenizer
        self._sums = torch.zeros(4, dtype=torch.float64)  # of an evaluation: what `prediction_step` adds up
        train, dev = rows or training_rows(cfg, prepared)
        collator = DataCollatorForCompletionOnlyLM(tokenizer=tokenizer, pad_to_multiple_of=args.pad_to_multiple_of)
        super().__init__(
            loaded.model, args, collator, train_dataset=train, eval_dataset=dev, processing_class=tokenizer, **kwargs
        )
        if args.fp16:  # its scaler takes gradients in float32 alone; TRL has quantized weights' adapters in bfloat16
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data
        base, self._on_cpu = base_of(self.model), args.device.type == "cpu"
        self.labelled_head = args.device.type in ("cpu", "cuda")  # on CUDA it is TRL's own doing
        if self._on_cpu:
            project_labelled_only(base)
            before_torch.keep_freed_memory()
        check_head(base)
        if is_packed(train):
            check_apart(self)

    @functools.cached_property
    def lengths(self) -> list[tuple[int, int]]:
        """(tokens without loss, tokens with loss) of each row that is trained on, or of each pack."""
        return list(token_counts(self.train_dataset))

    def train(self, *args, **kwargs) -> TrainOutput:
        # Autocast casts what an adapter's layers read to bfloat16; PEFT would first cast it to the adapter's float32.
        with disable_input_dtype_casting(self.model, self._on_cpu and self.args.bf16):
            trained = super().train(*args, **kwargs)
        before_torch.give_back_memory()
        return trained

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SeededLengthGroupedSampler(seed, group, lengths=list(map(sum, self.lengths)))

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Rows of many lengths leave gaps between what is kept. Now and then, as it costs a fraction of a step.
        if self._on_cpu and self.state.global_step % 16 == 15:
            before_torch.give_back_memory()
        return loss

    # Dev loss: the sum over all tokens with loss, divided by their number.

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Several processes get batches of one size; rows without labels fill the last, which would repeat rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.args.world_size > 1:
            missing = -len(rows) % (self.args.eval_batch_size * self.args.world_size)
            rows = rows.select_columns(["input_ids", "labels"])
            blank = [{"input_ids": [0, 0], "labels": [IGNORE_INDEX] * 2}] * missing
            rows = concatenate_datasets([rows, Dataset.from_list(blank, features=rows.features)])
        return super().get_eval_dataloader(rows)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._sums.zero_()
        # Dropout draws the same whether or not an evaluation came before.
        with torch.random.fork_rng(devices=[]), explained("The evaluation", LESS_TO_EVALUATE):
            loop = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        count, *sums = self.accelerator.reduce(self._sums.to(self.args.device)).tolist()
        for name, total in zip(("loss", "mean_token_accuracy", "entropy"), sums, strict=True):
            loop.metrics[f"{metric_key_prefix}_{name}"] = total / max(count, 1)
        if self.is_in_train:
            self.check_finite("dev loss", sums[0], self.state.global_step)
        return loop

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a batch, and what its labels add to the sums of the evaluation."""
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**self._prepare_inputs(inputs), use_cache=False, fused_lm_head=True)
        parts = (output.label_mask, -output.log_probs, output.is_top1, output.entropy)
        batch = torch.stack([part.float().sum() for part in parts])
        self._sums += batch.cpu()
        return batch[1] / batch[0].clamp(min=1), None, None

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL writes its own card into each checkpoint; a run's card is written from the run at its end."""


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and its number alone, so that a resumed run has it too."""

    def __init__(self, seed: int, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(self.seed + epoch)
