"""TRL's trainer, given rows that are ready: what is specific to this kit and needs torch."""

from trl import SFTTrainer

from ragfit import before_torch
from ragfit.collator import DataCollatorForCompletionOnlyLM
from ragfit.config.save import without_secrets
from ragfit.training.cpu import check_head, keep_attention, project_labelled_only
from ragfit.training.resume import Resumable


class RagfitTrainer(Resumable, SFTTrainer):
    """`trl.SFTTrainer` over rows of `ragfit.prepare`.

    Attributes:
        prepared: the `Prepared` that the rows come from.
        cfg: the resolved configuration.
        labelled_head: whether the LM head is applied only where there are labels.
    """

    _steps_kept = 0  # batches that this trainer has trained on

    def __init__(self, cfg, prepared, loaded, args, **kwargs):
        self.cfg, self.prepared = cfg, prepared
        super().__init__(
            model=loaded.model,
            args=args,
            processing_class=prepared.tokenizer,
            data_collator=DataCollatorForCompletionOnlyLM(
                tokenizer=prepared.tokenizer, pad_to_multiple_of=args.pad_to_multiple_of
            ),
            train_dataset=prepared.train,
            eval_dataset=prepared.dev,
            **kwargs,
        )
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.labelled_head = args.device.type in ("cpu", "cuda")  # on CUDA it is TRL's own doing
        if args.device.type == "cpu":
            project_labelled_only(base)
            before_torch.keep_freed_memory()
        check_head(base)
        if "${" in str(without_secrets(cfg)["model"].get("model_name_or_path")):
            # From the environment: checkpoints and trackers would be told what it holds.
            base.config.name_or_path = base.name_or_path = ""
            for settings in self.model.peft_config.values() if base is not self.model else ():
                settings.base_model_name_or_path = None

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.args.device.type == "cpu":
                before_torch.give_back_memory()

    def begin_training(self):
        if self.args.device.type == "cpu":
            keep_attention(self.model)  # transformers has just turned checkpointing on
        super().begin_training()

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        # Rows of many lengths leave gaps between what is kept. Now and then, as it costs a fraction of a step.
        self._steps_kept += 1
        if self.args.device.type == "cpu" and self._steps_kept % 16 == 0:
            before_torch.give_back_memory()
        return loss

    def create_model_card(self, *args, **kwargs):
        """TRL writes its own card into each checkpoint; a run's card is written from the run at its end."""
