"""TRL's trainer, given rows that are ready: what is specific to this kit and needs torch."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, concatenate_datasets
from omegaconf import DictConfig
from peft.helpers import disable_input_dtype_casting
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from ragfit import before_torch
from ragfit.collator import BOUNDARIES, DataCollatorForCompletionOnlyLM
from ragfit.config.explain import LESS_TO_EVALUATE, explained
from ragfit.config.save import without_secrets
from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.report import Prepared
from ragfit.models.load import base_of
from ragfit.training.cpu import check_head, project_labelled_only
from ragfit.training.packing import Rows, check_apart, is_packed, token_counts, training_rows
from ragfit.training.survival import SurvivingTrainer

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput

    from ragfit.training.arguments import Arguments


class RagfitTrainer(SurvivingTrainer):
    """`trl.SFTTrainer` over rows of `ragfit.prepare`.

    Args:
        cfg: the configuration.
        prepared: the `Prepared` that the rows come from; `train_dataset` and `eval_dataset` are these or packs of them.
        loaded: what holds the model, as `ragfit.models.hf.HFTrain` does.
        args: of `training_arguments`.
        rows: of `training_rows`.
        resume_from: the checkpoint that `ragfit.train` goes on from.
        kwargs: of `SFTTrainer`.

    Attributes:
        labelled_head: whether the LM head is applied only where there are labels.
    """

    def __init__(
        self, cfg: DictConfig, prepared: Prepared, loaded: Any, args: "Arguments", rows: Rows | None = None,
        resume_from: str | None = None, **kwargs,
    ):  # fmt: skip
        self.cfg, self.prepared, self.resume_from = cfg, prepared, resume_from
        self._batches, self._sums = 0, [0.0] * 4  # of an evaluation: tokens with loss, their losses, top-1s, entropies
        tokenizer, (train, dev) = prepared.tokenizer, rows or training_rows(cfg, prepared)
        super().__init__(
            model=loaded.model,
            args=args,
            processing_class=tokenizer,
            data_collator=DataCollatorForCompletionOnlyLM(
                tokenizer=tokenizer, pad_to_multiple_of=args.pad_to_multiple_of
            ),
            train_dataset=train,
            eval_dataset=dev,
            **kwargs,
        )
        if args.fp16:  # its scaler takes gradients in float32 alone; TRL has quantized weights' adapters in bfloat16
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data
        base = base_of(self.model)
        self.labelled_head = args.device.type in ("cpu", "cuda")  # on CUDA it is TRL's own doing
        if args.device.type == "cpu":
            project_labelled_only(base)
            before_torch.keep_freed_memory()
        check_head(base)
        if is_packed(train):
            check_apart(self)
        if "${" in str(without_secrets(cfg)["model"].get("model_name_or_path")):
            # From the environment: checkpoints and trackers would be told what it holds.
            base.config.name_or_path = base.name_or_path = ""
            for settings in self.model.peft_config.values() if base is not self.model else ():
                settings.base_model_name_or_path = None

    @functools.cached_property
    def lengths(self) -> list[tuple[int, int]]:
        """(tokens without loss, tokens with loss) of each row that is trained on, or of each pack."""
        packs = self.cfg.train.get("packing")
        return list(token_counts(self.train_dataset)) if packs else self.prepared.report.train.lengths

    def train(self, *args, **kwargs) -> "TrainOutput":
        # Autocast casts what an adapter's layers read to bfloat16; PEFT would first cast it to the adapter's float32.
        casts = self.args.device.type == "cpu" and self.args.bf16
        try:
            with disable_input_dtype_casting(self.model, casts):
                return super().train(*args, **kwargs)
        finally:
            if self.args.device.type == "cpu":
                before_torch.give_back_memory()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # transformers would read every row for its length.
        lengths, seed = [sum(pair) for pair in self.prepared.report.train.lengths], self.args.data_seed
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SeededLengthGroupedSampler(group, lengths, self.args.seed if seed is None else seed)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Rows of many lengths leave gaps between what is kept. Now and then, as it costs a fraction of a step.
        self._batches += 1
        if self.args.device.type == "cpu" and self._batches % 16 == 0:
            before_torch.give_back_memory()
        return loss

    # Dev loss: the sum over all tokens with loss, divided by their number.

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Several processes get batches of one size; rows without labels fill the last, which would repeat rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        missing = -len(rows) % (self.args.eval_batch_size * self.args.world_size) if self.args.world_size > 1 else 0
        if missing:
            blank = {"input_ids": [0, 0], "labels": [IGNORE_INDEX] * 2, BOUNDARIES: [2]}
            rows = rows.select_columns([name for name in blank if name in rows.column_names])
            more = [{name: blank[name] for name in rows.column_names}] * missing
            rows = concatenate_datasets([rows, Dataset.from_list(more, features=rows.features)])
        return super().get_eval_dataloader(rows)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._sums = [0.0] * 4
        # Dropout draws the same whether or not an evaluation came before.
        with torch.random.fork_rng(devices=[]), explained("The evaluation", LESS_TO_EVALUATE):
            loop = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self._sums
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(torch.tensor(sums, device=self.args.device)).tolist()
        if sums[0]:
            means = zip(("loss", "mean_token_accuracy", "entropy"), sums[1:], strict=True)
            loop.metrics.update({f"{metric_key_prefix}_{name}": total / sums[0] for name, total in means})
        if self.is_in_train:
            self.check_finite("dev loss", sums[1], self.state.global_step)
        return loop

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a batch, and what its labels add to the sums of the evaluation."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, use_cache=False, fused_lm_head=True)
        parts = (output.label_mask, -output.log_probs, output.is_top1, output.entropy)
        batch = torch.stack([part.float().sum() for part in parts])
        self._sums = [total + part for total, part in zip(self._sums, batch.tolist(), strict=True)]
        return batch[1] / batch[0].clamp(min=1), None, None

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL writes its own card into each checkpoint; a run's card is written from the run at its end."""


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and its number alone, so that a resumed run has it too."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()
