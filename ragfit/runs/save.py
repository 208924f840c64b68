"""The finished run on disk: `output_dir/checkpoint` with adapter, tokenizer, configuration, instruction and card."""

import filecmp
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.config.save import save_config
from ragfit.draw.blocks import Block, Span, Table
from ragfit.draw.progress import say
from ragfit.draw.view import View
from ragfit.errors import RagfitError
from ragfit.files import next_free, part_of, sync
from ragfit.runs.card import model_card, name_base
from ragfit.runs.records import CONFIG

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer

logger = logging.getLogger(__name__)
HOLDS = {
    "adapter_model.safetensors": "the trained adapter",
    "adapter_config.json": "its LoRA settings and the base model's name",
    "model.safetensors": "the trained weights",
    "tokenizer.json": "the tokenizer",
    "chat_template.jinja": "the chat template",
    "instruction.txt": "the instruction, which inference needs again",
    "template.txt": "the custom template, which inference needs again",
    "fingerprint.json": "what base and tuned model make of the ends of two rows, compared where they are loaded again",
    "README.md": "the model card",
    "ragfit.yaml": "the configuration; ragfit.load_config reads it",
}


def gathered_weights(trainer: "SFTTrainer") -> dict[str, "torch.Tensor"] | None:
    """The weights of a model that FSDP or DeepSpeed has sharded, from all processes; None where none has."""
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    return trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else None


def save_checkpoint(trainer: "SFTTrainer", keep_same: bool = False, weights: dict | None = None) -> Path:
    """Write `output_dir/checkpoint`, whole or not at all; an earlier one is kept as `checkpoint.1`, `checkpoint.2`, …

    Args:
        keep_same: leave an earlier one as it is where its weights are the same.
        weights: a whole state dict of the model, where processes hold parts of it. Then there is no fingerprint.

    Raises:
        RagfitError: a trained weight is not a finite number.
        OSError: the disk is full, or the folder cannot be written.
    """
    model, target = trainer.accelerator.unwrap_model(trainer.model), Path(trainer.args.output_dir, "checkpoint")
    trained = weights or {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if broken := next((name for name, weight in trained.items() if not weight.isfinite().all()), None):
        problem = f"the training has diverged ({broken} holds NaN or infinity), so nothing is saved as {target}"
        fix = "Lower train.learning_rate or train.max_grad_norm; a checkpoint-N of an earlier step may be sound."
        raise RagfitError("train.learning_rate", problem, fix)
    cfg, prepared = trainer.cfg, trainer.prepared
    with part_of(target) as part:
        model.save_pretrained(part, state_dict=weights)
        prepared.tokenizer.save_pretrained(part)
        save_config(cfg, part / CONFIG)
        (part / "instruction.txt").write_text(prepared.instruction, encoding="utf-8")
        if prepared.renderer.template is not None:
            (part / "template.txt").write_text(prepared.renderer.template, encoding="utf-8")
        name_base(part, cfg)
        (part / "README.md").unlink(missing_ok=True)  # PEFT's own
        _try(part / "README.md", lambda path: path.write_text(model_card(trainer), "utf-8", "backslashreplace"))
        if weights is None:
            _try(part / "fingerprint.json", lambda path: write_fingerprint(trainer, path.parent))
        else:
            say("Of a model in parts (FSDP, DeepSpeed) no fingerprint.json is written.")
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
    """What base and tuned model make of a few tokens, for whoever puts the two together again.

    Raises:
        ValueError: a log-probability is not finite.
    """
    from ragfit.models import fingerprint

    prepared, tokenizer = trainer.prepared, trainer.prepared.tokenizer
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}  # a word ends no other answer
    ends = [number for number in prepared.report.last_ids if number in marks]
    fingerprint.write(folder, trainer.accelerator.unwrap_model(trainer.model), fingerprint.rows_for(prepared), ends)


def _try(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that describes a trained adapter, which is not lost where the description has a fault."""
    try:
        write(path)
    except Exception as error:
        logger.warning("%s could not be written (%s: %s).", path.name, type(error).__name__, error)


class SavedView(View):
    """The files of a folder `checkpoint` that a run left, with their sizes and what they hold."""

    def __init__(self, folder: str | Path):
        self.title = f"Saved in {folder}"
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
        self.rows = [
            [Span(file.name, "mono"), f"{file.stat().st_size / 1000:,.1f} kB", HOLDS.get(file.name, "")]
            for file in files
        ]

    def blocks(self) -> list[Block]:
        return [Table(["file", "size", "what it holds"], self.rows, right=(1,))]
