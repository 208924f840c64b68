"""The finished run on disk: `output_dir/checkpoint` with adapter, tokenizer, configuration, instruction and card."""

import filecmp
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.config.save import save_config
from ragfit.draw.progress import say
from ragfit.errors import RagfitError
from ragfit.files import next_free, part_of, sync
from ragfit.runs.card import write_card
from ragfit.runs.records import CONFIG

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer

logger = logging.getLogger(__name__)


def gathered_weights(trainer: "SFTTrainer") -> dict[str, "torch.Tensor"] | None:
    """The weights of a model that FSDP or DeepSpeed has sharded, from all processes; None where none has."""
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    return trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else None


def save_checkpoint(trainer: "SFTTrainer", keep_same: bool = False, weights: dict | None = None) -> Path:
    """Write `output_dir/checkpoint`, whole or not at all; an earlier one is kept as `checkpoint.1`, `checkpoint.2`, …

    With `keep_same` it stays as it is where its weights are the same. No process can measure the fingerprint of a model
    with `gathered_weights`, so it has none.
    """
    model, target = trainer.accelerator.unwrap_model(trainer.model), Path(trainer.args.output_dir, "checkpoint")
    trained = weights or {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if broken := next((name for name, weight in trained.items() if not weight.isfinite().all()), None):
        problem = f"the training has diverged ({broken} holds NaN or infinity), so nothing is saved as {target}"
        raise RagfitError("train.learning_rate", problem, "Lower it; a checkpoint-N of an earlier step may be sound.")
    prepared = trainer.prepared
    with part_of(target) as part:
        model.save_pretrained(part, state_dict=weights)
        prepared.tokenizer.save_pretrained(part)
        save_config(trainer.cfg, part / CONFIG)
        (part / "instruction.txt").write_text(prepared.instruction, encoding="utf-8")
        if prepared.renderer.template is not None:
            (part / "template.txt").write_text(prepared.renderer.template, encoding="utf-8")
        for write in (write_card, write_fingerprint) if weights is None else (write_card,):
            try:
                write(trainer, part)
            except Exception as error:  # a trained adapter is not lost for want of its description
                what = write.__name__.removeprefix("write_")
                logger.warning("The %s could not be written (%s: %s).", what, type(error).__name__, error)
        sync(part)
        names = [path.name for path in part.glob("*.safetensors")]
        if keep_same and filecmp.cmpfiles(part, target, names, shallow=False)[0] == names:
            return target
        if target.exists():
            kept = next_free(target.parent, target.name)
            target.rename(kept)
            say(f"Kept the earlier {target} as {kept.name}.")
        part.rename(target)
    return target


def write_fingerprint(trainer: "SFTTrainer", folder: Path) -> None:
    """What base and tuned model make of a few tokens, for whoever puts the two together again."""
    from ragfit.models import fingerprint

    prepared, tokenizer = trainer.prepared, trainer.prepared.tokenizer
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}  # a word ends no other answer
    ends = [number for number in prepared.report.last_ids if number in marks]
    fingerprint.write(folder, trainer.accelerator.unwrap_model(trainer.model), fingerprint.rows_for(prepared), ends)
