"""The model card of a run: `README.md` in `checkpoint/`, which the hub shows as the adapter's page.

What it says stands in `card.md.jinja`. Texts that come from data, template or configuration stand there in code spans
and fences longer than any in them, or as literals within the example, so they can neither run nor break the page; the
header goes through a YAML writer.
"""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.config.paths import find_existing, is_demo
from ragfit.config.save import without_secrets
from ragfit.draw.text import plain
from ragfit.files import write_whole
from ragfit.secrets import mask

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from trl import SFTTrainer

TEMPLATE = Path(__file__).with_name("card.md.jinja")
LONG = 4000  # characters of the instruction; all of it is in instruction.txt
PACKAGES = ("ragfit", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
MODEL_KEYS = ("load_in_8bit", "load_in_4bit", "quantization_config", "max_sequence_len", "chat_template_kwargs")
ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
    "bf16", "fp16", "seed",
)  # fmt: skip
GROUNDING = (
    ("depends most on a supporting document, share of rows", "top_is_supporting"),
    ("loss increase without a supporting document, in nats", "rise_supporting"),
    ("loss increase without another document, in nats", "rise_others"),
    ("loss of the answer with all documents, in nats", "loss_all"),
    ("loss of the answer without documents, in nats", "loss_none"),
)


def write_card(folder: Path, trainer: "SFTTrainer") -> None:
    """Write `README.md` of a trained run into a folder."""
    (folder / "README.md").write_text(model_card(trainer), encoding="utf-8", errors="backslashreplace")


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

    cfg, prepared = without_secrets(trainer.cfg), trainer.prepared
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
        hub_folder=cfg.get("hfhub_tag"),
        model=model,
        template_keys=repr(keys) if (keys := model.get("chat_template_kwargs")) else "",
        renderer=prepared.renderer,
        instruction=prepared.renderer.instruction[:LONG],
        report=prepared.report,
        data_rows=_data_rows(trainer, data),
        training_rows=_training_rows(trainer, model),
        versions=package_versions(),
        **{function.__name__: function for function in (code, fence, mask, table)},
    ).content


def tell_grounding(checkpoint: Path, summary: Mapping[str, Any]) -> None:
    """Put what a run's grounding came to into its card, in place of what was measured before; no card, no word.

    Args:
        checkpoint: the run's folder `checkpoint`.
        summary: `grounding.json`.
    """
    path = checkpoint / "README.md"
    if not path.is_file():
        return
    rows = []
    for name, measure in GROUNDING:
        found = summary.get(measure) or {}
        means = [f"{model} {found[model]['mean']:.2f}" for model in ("base", "tuned") if found.get(model)]
        rows += [(name, ", ".join(means))] if means else []
    section = f"## Grounding\n\nOn {summary['rows']:,} {summary['part']} rows.\n\n{table(rows)}\n\n"
    # The last headings are the card's own; an instruction may have any text.
    before, versions, rest = path.read_text(encoding="utf-8").rpartition("## Versions\n")
    own, training, after = before.rpartition("\n## Training\n")
    after = after.partition("## Grounding\n")[0]
    if versions and training:
        write_whole(path, own + training + after + section + versions + rest)


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


def package_versions() -> dict[str, str]:
    """The versions of the packages that a run's outcome depends on; those that are not installed are left out."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


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


def _data_rows(trainer: "SFTTrainer", data: str) -> list[tuple[str, Any]]:
    report = trainer.prepared.report
    rows = [("file", data), ("rows in the file", f"{report.in_file:,}")]
    for name in ("train", "dev"):
        part = report.part(name)
        if part.rows:
            dropped = "".join(f", {len(numbers):,} dropped ({reason})" for reason, numbers in part.dropped.items())
            cut = f", {len(part.cut):,} cut" if part.cut else ""
            rows.append((f"{name}: rows kept", f"{len(part.kept):,} of {part.rows:,}{dropped}{cut}"))
            share = f"{part.loss_tokens:,} of {part.tokens:,} ({part.loss_share:.1%})"
            rows.append((f"{name}: tokens with loss", share))
    if trainer.prepared.renderer.marker:
        rows.append(("loss begins after", repr(trainer.prepared.renderer.marker)))
    if trainer.cfg.train.get("packing"):
        packs = f"{len(report.train.kept):,} rows in {len(trainer.train_dataset):,} packs"
        rows.append(("packing", f"{packs}, kept apart by their positions"))
    return rows


def _training_rows(trainer: "SFTTrainer", model: dict) -> list[tuple[str, Any]]:
    """What was set and what came of it, of the weights that are saved."""
    state, arguments = trainer.state, trainer.args.to_dict()
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    saved = state.best_global_step if best else state.global_step
    rows = [("steps", f"{state.global_step:,} ({state.epoch or 0:.2f} epochs)")]
    if best:
        measure = f"by {trainer.args.metric_for_best_model}, {state.best_metric:.4f}"
        rows.append(("saved weights", f"those of step {saved:,}, the best {measure}"))
    for name, key in (("training loss", "loss"), ("dev loss", "eval_loss")):
        logged = [(entry["step"], entry[key]) for entry in state.log_history if key in entry and entry["step"] <= saved]
        ends = [logged[0], logged[-1]] if len(logged) > 1 else logged
        rows += [(name, ", ".join(f"{loss:.4f} at step {step:,}" for step, loss in ends))] if logged else []
    rows += [(key, model[key]) for key in MODEL_KEYS if model.get(key)]
    changed = getattr(trainer, "changed", {})  # of a run that went on with other values
    settings = {name: arguments[name] for name in ARGUMENTS if arguments[name] is not None}
    for key, values in changed.items():
        told = ", ".join(f"{value} from step {step:,} on" for step, value in values)
        settings[key.removeprefix("train.")] = told
    return [*rows, *settings.items()]
