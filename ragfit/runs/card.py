"""The model card of a run: `README.md` in `checkpoint/`, which the hub shows as the adapter's page.

What it says stands in `card.md.jinja`. Texts that come from data, template or configuration stand there in code spans
and fences longer than any in them, or as literals within the example, so they can neither run nor break the page; the
header goes through a YAML writer.
"""

import importlib.metadata
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.config.paths import find_existing, is_demo
from ragfit.config.save import without_secrets
from ragfit.draw.text import plain
from ragfit.secrets import mask

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from trl import SFTTrainer

TEMPLATE = Path(__file__).with_name("card.md.jinja")
PACKAGES = ("ragfit", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
MODEL_KEYS = ("load_in_8bit", "load_in_4bit", "quantization_config", "max_sequence_len", "chat_template_kwargs")
ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
    "bf16", "fp16", "seed",
)  # fmt: skip


def name_base(folder: Path, cfg: "DictConfig") -> None:
    """Write the base model into `adapter_config.json` as the configuration names it, not this machine's folder."""
    path = folder / "adapter_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = _base(without_secrets(cfg)["model"])
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def model_card(trainer: "SFTTrainer") -> str:
    """The card's Markdown, with its YAML header.

    Raises:
        ValueError: the hub would not read the header.
    """
    from huggingface_hub import ModelCard, ModelCardData

    cfg, prepared, report = without_secrets(trainer.cfg), trainer.prepared, trainer.prepared.report
    model, data = cfg["model"], str(cfg["data_file"])
    base, lora = _base(model), {key: value for key, value in (model.get("lora") or {}).items() if value is not None}
    hub_base, hub_data = _on_hub(base), _on_hub(data) if "/" in data else None
    header = ModelCardData(
        base_model=hub_base,
        base_model_relation=("adapter" if lora else "finetune") if hub_base else None,
        datasets=[hub_data] if hub_data else None,
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        tags=["ragfit", "trl", "sft", "rag", *(["lora"] if lora else [])],
    )
    data, earlier = data if hub_data else Path(data).name, model.get("trained_adapter")
    return ModelCard.from_template(
        header,
        str(TEMPLATE),
        base_name=_without_folders(base) if base else "a model of your own",
        hub_base=hub_base,
        demo=is_demo(base),
        lora=lora,
        data=data,
        earlier=_without_folders(earlier) if earlier else None,
        model=model,
        template_keys=repr(keys) if (keys := model.get("chat_template_kwargs")) else "",
        renderer=prepared.renderer,
        report=report,
        data_rows=[("file", data), ("rows in the file", f"{report.in_file:,}"), *_data_rows(trainer)],
        training_rows=_training_rows(trainer, model),
        versions=_versions(),
        **{function.__name__: function for function in (code, fence, mask, table)},
    ).content


# Text that cannot be anything else.


def code(text: Any) -> str:
    """A text as a code span on one line, whatever is in it."""
    text = " ".join(plain(text).split()) or " "
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "") -> str:
    """A text as a code block that nothing in it can end."""
    text = plain(text.expandtabs(4)).strip("\n")
    ticks = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """A table of two columns; a value is code, and a bar in it ends no cell."""
    lines = [f"| {name} | {code(value).replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


# What is said.


def _versions() -> list[tuple[str, str]]:
    """Of the packages that a run's outcome depends on; those that are not installed are left out."""
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return [(name, installed[name]) for name in PACKAGES if name in installed]


def _base(model: dict) -> str | None:
    """The base model as the configuration names it; None where the environment does."""
    name = model.get("model_name_or_path")
    return None if not name or "${" in str(name) else str(name)


def _on_hub(name: str | None) -> str | None:
    """The repository that a name means on the hub (`org/data` of `org/data:split`); None for a path and the demo."""
    found = re.fullmatch(r"(\w[\w.-]*(?:/[\w.-]+)?)(?::[\w.-]+)*", name or "")
    return found[1] if found and not is_demo(name) and not find_existing(name) else None


def _without_folders(name: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    return name if is_demo(name) or _on_hub(name) else Path(name).name


def _data_rows(trainer: "SFTTrainer") -> list[tuple[str, Any]]:
    report, rows = trainer.prepared.report, []
    for name in ("train", "dev"):
        part = report.part(name)
        if part.rows:
            dropped = "".join(f", {len(numbers):,} dropped ({reason})" for reason, numbers in part.dropped.items())
            cut = f", {len(part.cut):,} cut" if part.cut else ""
            share = f"{part.loss_tokens:,} of {part.tokens:,} ({part.loss_share:.1%})"
            rows.append((f"{name}: rows kept", f"{len(part.kept):,} of {part.rows:,}{dropped}{cut}"))
            rows.append((f"{name}: tokens with loss", share))
    if trainer.prepared.renderer.marker:
        rows.append(("loss begins after", repr(trainer.prepared.renderer.marker)))
    if trainer.cfg.train.get("packing"):
        rows.append(("packing", f"{len(report.train.kept):,} rows in {len(trainer.train_dataset):,} packs"))
    return rows


def _training_rows(trainer: "SFTTrainer", model: dict) -> list[tuple[str, Any]]:
    """What was set and what came of it, of the weights that are saved."""
    state, step = trainer.state, trainer.weights_step
    rows = [("steps", f"{state.global_step:,} ({state.epoch or 0:.2f} epochs)")]
    if step != state.global_step:
        rows.append(("saved weights", f"those of step {step:,}, the best by {trainer.args.metric_for_best_model}"))
    for name, key in (("training loss", "loss"), ("dev loss", "eval_loss")):
        logged = [one for one in state.log_history if key in one and one["step"] <= step]
        rows += [(name, f"{one[key]:.4f} at step {one['step']:,}") for one in logged[-1:]]
    rows += [(key, model[key]) for key in MODEL_KEYS if model.get(key)]
    arguments = trainer.args.to_dict()
    settings = {name: arguments[name] for name in ARGUMENTS if arguments[name] is not None}
    for key, values in trainer.changed.items():  # of a run that went on with other values
        told = ", ".join(f"{value} from step {step:,} on" for step, value in values)
        settings[key.removeprefix("train.")] = told
    return [*rows, *settings.items()]
