"""The finished run on disk: `output_dir/checkpoint` with adapter, tokenizer, configuration, instruction and card."""

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING

from ragfit.config.save import save_config
from ragfit.draw.blocks import Block, Callout, Span, Table
from ragfit.draw.progress import say
from ragfit.draw.view import View
from ragfit.errors import RagfitError, first_line
from ragfit.files import next_free, part_of, sync
from ragfit.models.saved import earlier_adapter
from ragfit.runs.card import name_base, write_card
from ragfit.runs.records import CONFIG

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer

_HOLDS = {
    "adapter_model.safetensors": "the trained adapter",
    "adapter_config.json": "its LoRA settings and the base model's name",
    "model.safetensors": "the trained weights",
    "tokenizer.json": "the tokenizer",
    "tokenizer_config.json": "its special tokens",
    "chat_template.jinja": "the chat template",
    "instruction.txt": "the instruction, which inference needs again",
    "config.json": "the model's shape",
    "README.md": "the model card",
    "ragfit.yaml": "the resolved configuration; ragfit.load_config reads it",
    "template.txt": "the custom template, which inference needs again",
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
        weights: a whole state dict of the model, where processes hold parts of it.

    Returns:
        The folder.

    Raises:
        RagfitError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    target = Path(trainer.args.output_dir, "checkpoint")
    try:
        with part_of(target) as part:
            _write(trainer, part, weights)
            sync(part)
            if keep_same and _same_weights(part, target):
                return target
            if target.exists():
                kept = next_free(target.parent, target.name)
                target.rename(kept)
                say(f"Kept the earlier {target} as {kept.name}.")
            part.rename(target)
    except (OSError, SafetensorError) as error:
        newest = trainer.newest_checkpoint
        on = f"go on from {newest} with resume_checkpoint=true" if newest else "train again"
        problem = f"the adapter cannot be saved in {target.parent}: {first_line(error)}"
        raise RagfitError("train.output_dir", problem, f"Free room there, then {on}.") from error
    return target


def _write(trainer: "SFTTrainer", folder: Path, weights: dict | None) -> None:
    cfg, prepared = trainer.cfg, trainer.prepared
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder, state_dict=weights)
    prepared.tokenizer.save_pretrained(folder)
    save_config(cfg, folder / CONFIG)
    (folder / "instruction.txt").write_text(prepared.instruction, encoding="utf-8")
    if prepared.renderer.template is not None:
        (folder / "template.txt").write_text(prepared.renderer.template, encoding="utf-8")
    name_base(folder, cfg)
    write_card(folder, trainer)


def _same_weights(folder: Path, other: Path) -> bool:
    names = {path.name for path in [*folder.glob("*.safetensors"), *other.glob("*.safetensors")]}
    return len(filecmp.cmpfiles(folder, other, names, shallow=False)[0]) == len(names)


class SavedView(View):
    """The files of a folder `checkpoint` that a run left, with their sizes and what they hold."""

    def __init__(self, folder: str | Path):
        self.title, self.folder, self.earlier = f"Saved in {folder}", folder, earlier_adapter(folder)
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
        self.rows = [[Span(file.name, "mono"), _size(file), _HOLDS.get(file.name, "")] for file in files]

    def blocks(self) -> list[Block]:
        on_top = (
            f"This adapter was trained on top of the adapter {self.earlier}, merged into the base model: the base "
            "alone is not what it belongs to. "
            f"python -m ragfit.merge {self.folder} NEW_FOLDER merges both, in that order."
        )
        table = Table(["file", "size", "what it holds"], self.rows, right=(1,))
        return [Callout(on_top), table] if self.earlier else [table]


def _size(file: Path) -> str:
    size = file.stat().st_size
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
