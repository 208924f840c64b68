"""The model card of a run: `README.md` in `checkpoint/`, which the hub shows as the adapter's page.

Texts that come from data, template or configuration stand in code spans and fences longer than any in them, so they
can neither run as HTML nor break the page; the header goes through a YAML writer.
"""

import importlib.metadata
import json
import logging
import re
from pathlib import Path

from ragfit.config.paths import find_existing, is_demo
from ragfit.config.save import without_secrets
from ragfit.draw.text import plain
from ragfit.errors import first_line
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

LONG = 4000  # characters of the instruction; all of it is in instruction.txt
PACKAGES = ("ragfit", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip


def write_card(folder, trainer):
    """Write `README.md` of a trained run, in place of the one that PEFT writes.

    Args:
        folder: the checkpoint's folder.
        trainer: a `RagfitTrainer` that has trained.
    """
    path = Path(folder) / "README.md"
    try:
        path.write_text(model_card(trainer), encoding="utf-8", errors="backslashreplace")
    except Exception as error:  # a trained adapter is not lost for want of its description
        logger.warning(
            "The model card could not be written (%s: %s); write %s yourself.",
            type(error).__name__,
            first_line(error),
            path.name,
        )
        path.unlink(missing_ok=True)


def name_base(folder, cfg):
    """Write the base model into `adapter_config.json` as the configuration names it, not the folder it was loaded from.

    The demo's cache folder means nothing on another machine; a name from the environment is left out.
    """
    path = Path(folder) / "adapter_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = _base(without_secrets(cfg))
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def model_card(trainer):
    """The card's Markdown, with its YAML header."""
    from huggingface_hub import ModelCard, ModelCardData

    cfg, prepared, args = without_secrets(trainer.cfg), trainer.prepared, trainer.args
    base, lora = _base(cfg), cfg["model"].get("lora")
    hub_base = base if _on_hub(base) else None
    data = _file_name(cfg["data_file"])
    on_hub = (
        re.fullmatch(r"([\w.-]+/[\w.-]+)(:[\w.-]+)?", str(cfg["data_file"]))
        if not find_existing(cfg["data_file"])
        else None
    )
    header = ModelCardData(
        base_model=hub_base,
        base_model_relation=("adapter" if lora else "finetune") if hub_base else None,
        datasets=[on_hub[1]] if on_hub else None,
        library_name="peft" if lora else "transformers",
        pipeline_tag="text-generation",
        tags=["ragfit", "trl", "sft", "rag", *(["lora"] if lora else [])],
    )
    what = "LoRA adapter" if lora else "Fine-tuned model"
    blocks = [
        f"# {what} for {code(_base_name(base))}" if lora else f"# {what} of {code(_base_name(base))}",
        f"Trained on {code(data)} for retrieval-augmented generation, with loss on the completion alone (ragfit, TRL's `SFTTrainer`).",
        *([_earlier(cfg)] if cfg["model"].get("trained_adapter") else []),
        "## Use",
        _use(cfg, prepared, base, bool(lora)),
        "## Data",
        table(_data_rows(prepared, data)),
        *_findings(prepared.report),
        "## Training",
        table(_training_rows(trainer, cfg, args)),
        *(["## LoRA", table([(key, value) for key, value in lora.items() if value is not None])] if lora else []),
        "## Versions",
        table(_versions()),
        "The whole configuration is in `ragfit.yaml`.",
    ]
    # `ModelCard` reads it as the hub does, and raises where the header is none.
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(blocks) + "\n").content


# Text that cannot be anything else.


def code(text):
    """A text as a code span on one line, whatever is in it."""
    text = " ".join(plain(text).split()) or " "
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text, language=""):
    """A text as a code block that nothing in it can end."""
    text = plain(str(text).expandtabs(4)).strip("\n")
    ticks = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(rows):
    """A table of two columns; a value is code, and a bar in it ends no cell."""
    lines = [f"| {name} | {code(value).replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


# What is said.


def _base(cfg):
    """The base model as the configuration names it; None where the environment does."""
    name = cfg["model"].get("model_name_or_path")
    return None if not name or "${" in str(name) else str(name)


def _on_hub(name):
    return (
        bool(name)
        and not is_demo(name)
        and not find_existing(name)
        and bool(re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", name))
    )


def _base_name(base):
    """A name without the machine's folders."""
    return "a model of your own" if base is None else base if _on_hub(base) or is_demo(base) else _file_name(base)


def _file_name(path):
    """The last part of a path; a data set's name on the hub stays as it is."""
    text = str(path)
    exists = find_existing(text)
    return (
        text
        if not exists and text.count("/") == 1 and not text.startswith(("/", ".", "~"))
        else Path(text).name or text
    )


def _earlier(cfg):
    return (
        f"It was trained on top of the adapter {code(_file_name(cfg['model']['trained_adapter']))}, merged into the base model: "
        "merge that one first, the base model alone is not what this adapter belongs to."
    )


def _use(cfg, prepared, base, lora):
    renderer = prepared.renderer
    folder = str(cfg["hfhub_tag"]) if cfg.get("hfhub_tag") else None
    imports = ["from pathlib import Path", ""]
    imports += ["from huggingface_hub import snapshot_download"] if folder else []
    imports += ["from peft import PeftModel"] if lora else []
    imports += ["from ragfit.demo import model_folder"] if lora and is_demo(base) else []
    imports += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    place = f"Path(snapshot_download({json.dumps(folder)}))" if folder else 'Path("path/to/checkpoint")  # this folder'
    lines = [*imports, f"folder = {place}"]
    remote = ", trust_remote_code=True" if cfg["model"].get("trust_remote_code") else ""
    if lora:
        if is_demo(base):
            lines += ["base = model_folder()"]
        elif _on_hub(base):
            lines += [f"base = {json.dumps(base)}"]
        else:
            lines += [f"base = {json.dumps(f'path/to/{_base_name(base)}')}  # the base model's folder"]
        revision = f", revision={json.dumps(cfg['model']['revision'])}" if cfg["model"].get("revision") else ""
        lines += [f"model = AutoModelForCausalLM.from_pretrained(base{revision}{remote})"]
        lines += ["# Merge the earlier adapter here, as told above."] if cfg["model"].get("trained_adapter") else []
        lines += ["model = PeftModel.from_pretrained(model, folder)"]
    else:
        lines += [f"model = AutoModelForCausalLM.from_pretrained(folder{remote})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained(folder{remote})", ""]
    lines += ['prompt = "…"  # a question with its documents, as in the training rows']
    asks = renderer.instruction and (renderer.template is None or renderer.system == "prompt")
    if asks:
        lines += ['instruction = (folder / "instruction.txt").read_text(encoding="utf-8")']
    user = 'f"{instruction}\\n{prompt}"' if renderer.in_prompt else "prompt"
    if renderer.template is not None:
        between = ", instruction=instruction" if asks and not renderer.in_prompt else ""
        lines += [
            'template = (folder / "template.txt").read_text(encoding="utf-8")',
            f'text = template.format(query={user}, output="\\0"{between}).partition("\\0")[0]',
        ]
    else:
        system = '{"role": "system", "content": instruction}, ' if asks and not renderer.in_prompt else ""
        lines += [
            f'messages = [{system}{{"role": "user", "content": {user}}}]',
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        ]
    ends = ", ".join(map(str, prepared.report.last_ids))
    lines += [
        f'inputs = tokenizer(text, add_special_tokens={bool(renderer.bos)}, return_tensors="pt")',
        f"output = model.generate(**inputs, max_new_tokens=256, do_sample=False, eos_token_id=[{ends}])",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    said = [fence("\n".join(lines), "python")]
    if renderer.system == "dropped":
        said.append("The template does not write the instruction into the prompt: the model has never read it.")
    if renderer.instruction:
        cut = "" if len(renderer.instruction) <= LONG else f" (its first {LONG:,} characters)"
        said += [f"The instruction, `instruction.txt`{cut}:", fence(mask(renderer.instruction[:LONG]), "text")]
    return "\n\n".join(said)


def _data_rows(prepared, data):
    report = prepared.report
    rows = [("file", data), ("rows in the file", f"{report.in_file:,}")]
    for name in ("train", "dev"):
        part = getattr(report, name)
        if part.rows:
            dropped = "".join(f", {len(numbers):,} dropped ({reason})" for reason, numbers in part.dropped.items())
            cut = f", {len(part.cut):,} cut" if part.cut else ""
            rows.append((f"{name}: rows kept", f"{len(part.kept):,} of {part.rows:,}{dropped}{cut}"))
            rows.append(
                (
                    f"{name}: tokens with loss",
                    f"{part.loss_tokens:,} of {part.tokens:,} ({part.loss_tokens / max(part.tokens, 1):.1%})",
                )
            )
    if prepared.renderer.marker:
        rows.append(("loss begins after", repr(prepared.renderer.marker)))
    return rows


def _findings(report):
    """What looked wrong in the rows; what was seen in them is left out."""
    if not report.findings:
        return ["No findings: every check on every row passed."]
    lines = [
        f"- {finding.severity}: **{finding.kind}**, {f'{len(finding.rows):,} rows' if finding.rows else 'all rows'}. {finding.meaning}"
        for finding in report.findings
    ]
    return ["What was found in the rows:", "\n".join(lines)]


def _training_rows(trainer, cfg, args):
    state = trainer.state
    logged = {key: [entry[key] for entry in state.log_history if key in entry] for key in ("loss", "eval_loss")}
    rows = [("steps", f"{state.global_step:,} ({state.epoch or 0:.2f} epochs)")]
    if logged["loss"]:
        rows.append(("training loss", _first_and_last(logged["loss"])))
    if logged["eval_loss"]:
        rows.append(("dev loss", _first_and_last(logged["eval_loss"])))
    quantized = next(
        (name for name in ("load_in_8bit", "load_in_4bit", "quantization_config") if cfg["model"].get(name)), None
    )
    rows += (
        [("base model quantized", {"load_in_8bit": "8 bits", "load_in_4bit": "4 bits"}.get(quantized, "as configured"))]
        if quantized
        else []
    )
    rows += [("max_sequence_len", cfg["model"]["max_sequence_len"])] if cfg["model"].get("max_sequence_len") else []
    values = ((name, getattr(args, name, None)) for name in ARGUMENTS)
    rows += [
        (name, getattr(value, "value", value)) for name, value in values if value is not None and value is not False
    ]
    return rows


def _first_and_last(values):
    return (f"{values[0]:.4f} at first, " if len(values) > 1 else "") + f"{values[-1]:.4f} at the end"


def _versions():
    found = []
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            pass
    return found
