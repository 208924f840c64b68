"""The finished run on disk: `output_dir/checkpoint` with adapter, tokenizer, configuration, instruction and card."""

import filecmp
import shutil
import tempfile
from pathlib import Path

from ragfit.config import save_config
from ragfit.errors import RagfitError, first_line
from ragfit.progress import say


def gathered_weights(trainer):
    """The weights of a model that FSDP or DeepSpeed has sharded, with the help of every process; None where none has."""
    if trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    return trainer.accelerator.get_state_dict(trainer.deepspeed) if trainer.is_deepspeed_enabled else None


def save_checkpoint(trainer, keep_same=False, weights=None):
    """Write `output_dir/checkpoint`, whole or not at all; an earlier one is kept as `checkpoint.1`, `checkpoint.2`, …

    Args:
        keep_same: leave an earlier one as it is where its weights are the same.
        weights: a whole state dict of the model, where processes hold parts of it.
    """
    from ragfit.card import name_base, write_card
    from ragfit.checkpoints import sync

    cfg, prepared = trainer.cfg, trainer.prepared
    output = Path(trainer.args.output_dir)
    target = output / "checkpoint"
    part = Path(tempfile.mkdtemp(prefix="checkpoint.part-", dir=output))
    try:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(part, state_dict=weights)
        prepared.tokenizer.save_pretrained(part)
        save_config(cfg, part / "ragfit.yaml")
        (part / "instruction.txt").write_text(prepared.instruction, encoding="utf-8")
        if prepared.renderer.template is not None:
            (part / "template.txt").write_text(prepared.renderer.template, encoding="utf-8")
        name_base(part, cfg)
        write_card(part, trainer)
        sync(part)
        if keep_same and _same_weights(part, target):
            shutil.rmtree(part)
            return target
        if target.exists():
            number = 1
            while (output / f"checkpoint.{number}").exists():
                number += 1
            target.rename(output / f"checkpoint.{number}")
            say(f"Kept the earlier {target} as checkpoint.{number}.")
        part.chmod(0o755)  # mkdtemp's folders are the owner's alone; a shared cluster needs this one readable
        part.rename(target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):  # safetensors has an error of its own kind
            newest = trainer.newest_checkpoint
            on = f"go on from {newest} with resume_checkpoint=true" if newest else "train again"
            raise RagfitError(f"The adapter cannot be saved in {output}: {first_line(error)}. Free room there, then {on}.") from error
        raise
    return target


def _same_weights(folder, other):
    names = {path.name for path in [*folder.glob("*.safetensors"), *other.glob("*.safetensors")]}
    return all((other / n).is_file() and (folder / n).is_file() and filecmp.cmp(folder / n, other / n, shallow=False) for n in names)
