"""The model card of a run: `README.md` in `checkpoint/`, which the hub shows as the adapter's page.

What it says stands in `card.md.jinja`. Texts of any origin stand there as code within more backticks than they have, or
as literals within the example, so they can neither run nor break the page; the header goes through a YAML writer.
"""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ragfit.config.paths import find_existing
from ragfit.config.save import without_secrets
from ragfit.draw.text import plain
from ragfit.runs.records import CONFIG

if TYPE_CHECKING:
    from trl import SFTTrainer

TEMPLATE = Path(__file__).with_name("card.md.jinja")
PACKAGES = ("ragfit", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def write_card(trainer: "SFTTrainer", folder: Path) -> None:
    """Write the card of a checkpoint that is being saved, and the base model's name as the configuration has it.

    PEFT has written a card and a name of its own, with folders of this machine.
    """
    from huggingface_hub import ModelCard, ModelCardData

    cfg, adapter, path = without_secrets(trainer.cfg), folder / "adapter_config.json", folder / "README.md"
    base, lora, named = cfg["model"].get("model_name_or_path"), adapter.is_file(), _without_folders(cfg)
    path.unlink(missing_ok=True)
    if lora:
        settings = json.loads(adapter.read_text("utf-8")) | {"base_model_name_or_path": base}
        adapter.write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
    hub_base = base if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", base or "") and not find_existing(base) else None
    kinds = ("peft", ["lora"]) if lora else ("transformers", [])
    tags = ["ragfit", "trl", "sft", "rag", *kinds[1]]
    header = ModelCardData(base_model=hub_base, library_name=kinds[0], pipeline_tag="text-generation", tags=tags)
    digests = re.findall(r"^# \w+ sha256 \w+$", (folder / CONFIG).read_text("utf-8"), re.MULTILINE)
    versions = [f"# {one.name} {one.version}" for one in importlib.metadata.distributions() if one.name in PACKAGES]
    yaml = plain("\n".join([OmegaConf.to_yaml(OmegaConf.create(named)), *digests, *versions]))
    fence = ticks(f"{yaml} ``")
    said = {"figures": _figures(trainer), "config": f"{fence}yaml\n{yaml}\n{fence}", "code": code}
    said |= {"trainer": trainer, "lora": lora, "hub_base": hub_base, **named}
    path.write_text(ModelCard.from_template(header, str(TEMPLATE), **said).content, "utf-8", "backslashreplace")


def _figures(trainer: "SFTTrainer") -> list[str]:
    """What is told of the weights that are saved, of the settings that were changed on the way, and of the rows."""
    told, report = [], trainer.prepared.report
    for name, key in (("training loss", "loss"), ("dev loss", "eval_loss")):
        logged = [one for one in trainer.state.log_history if key in one and one["step"] <= trainer.weights_step]
        told += [f"{name}: {one[key]:.4f} at step {one['step']}" for one in logged[-1:]]
    for key, values in trainer.changed.items():
        told.append(f"{key}: {', '.join(f'{code(value)} from step {step} on' for step, value in values)}")
    for name, part in (("train", report.train), ("dev", report.dev)):
        dropped = "".join(f", {len(rows)} dropped ({reason})" for reason, rows in part.dropped.items())
        loss = f"loss on {part.loss_tokens} of {part.tokens} tokens"
        told.append(f"{name}: {len(part.kept)} of {part.rows} rows kept{dropped}, {len(part.cut)} cut; {loss}")
    return told


def ticks(text: str) -> str:
    """More backticks than there are side by side in a text."""
    return "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)


def code(text: Any) -> str:
    """A text as code on one line, whatever is in it."""
    text = " ".join(plain(text).split())
    return f"{ticks(text)} {text} {ticks(text)}"


def _without_folders(tree: Any) -> Any:
    """The configuration without what is not set, and paths without the folders they lie in on this machine."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items() if value is not None}
    return Path(tree).name if isinstance(tree, str) and find_existing(tree) else tree
