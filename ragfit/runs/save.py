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
    "training_args.bin": "the arguments of the trainer",
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


def _write(trainer: "SFTTrainer", folder: Path, weights: dict | None):
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
    return all(
        (other / n).is_file() and (folder / n).is_file() and filecmp.cmp(folder / n, other / n, shallow=False)
        for n in names
    )


class SavedView(View):
    """What a run left behind.

    Args:
        paths: files and folders, or pairs of one and what it holds; a folder's files are listed.
    """

    def __init__(self, paths):
        self.rows = []
        alone = Path(paths) if isinstance(paths, str | Path) else None
        self.title = f"Saved in {alone}" if alone and alone.is_dir() else "Saved"
        for entry in [paths] if isinstance(paths, str | Path) else paths:
            path, note = entry if isinstance(entry, tuple) else (entry, None)
            path = Path(path)
            files = [path]
            if path.is_dir() and note is None:
                files = sorted(child for child in path.iterdir() if child.is_file())
            self.rows += [
                (file.name if alone == path else str(file), _size(file), note or _HOLDS.get(file.name, ""))
                for file in files
            ]
        on_top = earlier_adapter(alone) if alone else None
        self.note = (
            f"This adapter was trained on top of the adapter {on_top}, merged into the base model: the base alone "
            f"is not what it belongs to. python -m ragfit.merge {alone} NEW_FOLDER merges both, in that order."
            if on_top else ""
        )  # fmt: skip

    def blocks(self) -> list[Block]:
        files = [[Span(path, "mono"), size, note] for path, size, note in self.rows]
        note = [Callout(self.note)] if self.note else []
        return [*note, Table(["file", "size", "what it holds"], files, right=(1,))]


def _size(path):
    if not path.exists():
        return "not there"
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
