"""TRL's trainer, given rows that are ready: what is specific to this kit and needs torch."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from peft.helpers import disable_input_dtype_casting
from trl import SFTTrainer

from ragfit import before_torch
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.config.save import without_secrets
from ragfit.data.report import Prepared
from ragfit.errors import ConfigError
from ragfit.models.load import base_of
from ragfit.training.cpu import check_head, keep_attention, project_labelled_only
from ragfit.training.packing import Rows, check_apart, is_packed, token_counts, training_rows
from ragfit.training.resume import Resumable

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput

    from ragfit.training.arguments import Arguments


class RagfitTrainer(Resumable, SFTTrainer):
    """`trl.SFTTrainer` over rows of `ragfit.prepare`.

    Attributes:
        prepared: the `Prepared` that the rows come from; `train_dataset` and `eval_dataset` are these or packs of them.
        cfg: the resolved configuration.
        labelled_head: whether the LM head is applied only where there are labels.
    """

    _batches = 0  # that this trainer has trained on

    def __init__(
        self, cfg: DictConfig, prepared: Prepared, loaded: Any, args: "Arguments", rows: Rows | None = None, **kwargs
    ):
        check_vocabulary(loaded.model, prepared)
        self.cfg, self.prepared = cfg, prepared
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
        if is_packed(train) or is_packed(dev):
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

    def begin_training(self) -> None:
        if self.args.device.type == "cpu" and self.args.activation_checkpointing:
            keep_attention(self.model, self.args.activation_checkpointing_kwargs)
        super().begin_training()

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Rows of many lengths leave gaps between what is kept. Now and then, as it costs a fraction of a step.
        self._batches += 1
        if self.args.device.type == "cpu" and self._batches % 16 == 0:
            before_torch.give_back_memory()
        return loss

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL writes its own card into each checkpoint; a run's card is written from the run at its end."""


def check_vocabulary(model: torch.nn.Module, prepared: Prepared) -> None:
    """Ids beyond the embedding would crash in the middle of a run (on CUDA without a readable message)."""
    size = model.get_input_embeddings().weight.shape[0]  # PEFT may have wrapped the embedding
    if len(prepared.tokenizer) > size:
        parts = [part for part in (prepared.train, prepared.dev) if part is not None]
        highest = max(max(ids) for part in parts for ids in part["input_ids"])
        if highest >= size:
            problem = f"the rows hold the token id {highest}, but the model's embedding has {size} rows"
            raise ConfigError(
                "model.model_name_or_path", problem, "Set it so that tokenizer and model belong together."
            )
