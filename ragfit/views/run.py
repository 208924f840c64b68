"""Before and after a run: what differs from the YAML, the last look, and what was saved."""

from pathlib import Path

from ragfit.merge import earlier_adapter
from ragfit.secrets import MASK, holds_secret, masked
from ragfit.views import style
from ragfit.views.style import Html, View, escape, flow, plain

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


class DifferencesView(View):
    """What a configuration has other than its YAML file.

    Args:
        cfg: the resolved configuration.
        differences: `(key, value in the file, value)` of `ragfit.config.differences`, or four with why.
        config_name: the configuration's name.
    """

    def __init__(self, cfg, differences, config_name):
        translated = dict((cfg.get("translated") or {}) if hasattr(cfg, "get") else {})
        self.title = f"What differs from {config_name}"
        self.rows = []
        for key, before, after, *why in differences:
            note = why[0] if why else translated.pop(key, "")
            self.rows.append((str(key), _value(key, before), _value(key, after), str(note)))
        self.notes = [f"{key}: {note}" for key, note in translated.items()]
        self.cfg = cfg

    def _yaml(self):
        from ragfit.config import to_yaml

        return to_yaml(self.cfg)

    def html(self):
        if self.rows:
            why = any(row[3] for row in self.rows)
            rows = [
                [Html(f"<b>{escape(key)}</b>"), _mono(before), _mono(after), note] for key, before, after, note in self.rows
            ]
            head = ["key", "in the file", "this run", "why"]
            body = style.table(head, rows) if why else style.table(head[:3], [row[:3] for row in rows])
        else:
            body = style.quiet("Nothing: this run is the file as it stands.")
        notes = "".join(style.quiet(note) for note in self.notes)
        return style.card(self.title, body, Html(notes), style.details("the whole configuration", style.mono(self._yaml())))

    def text(self):
        lines = [f"{self.title}:"] + [
            plain(f"  {key}: {before} -> {after}{f'  ({why})' if why else ''}") for key, before, after, why in self.rows
        ]
        return "\n".join([*(lines if self.rows else [f"{self.title}: nothing"]), *(f"  {note}" for note in self.notes)])


class PreflightView(View):
    """A last look before the run.

    Args:
        items: `(label, value, note)`.
        warnings: sentences.
    """

    title = "Before the run"

    def __init__(self, items, warnings=()):
        self.items = [(str(label), str(value), str(note or "")) for label, value, note in items]
        self.warnings = [str(warning) for warning in warnings]

    def html(self):
        top = "".join(style.callout(flow(warning)) for warning in self.warnings)
        grey = style.colours((style.PAPER[0], style.QUIET[1]))
        rows = [
            [label, Html(f'<b>{flow(value)}</b> <span style="{grey}">{flow(note)}</span>')] for label, value, note in self.items
        ]
        return style.card(self.title, Html(top), style.table(None, rows, widths=("130px",)))

    def text(self):
        width = max((len(label) for label, _, _ in self.items), default=0)
        lines = [f"  {label:<{width}}  {plain(value)}{f'  ({plain(note)})' if note else ''}" for label, value, note in self.items]
        return "\n".join([f"{self.title}:", *(f"  ! {plain(warning)}" for warning in self.warnings), *lines])


class StatusView(View):
    """What became of a run.

    Args:
        folder: its `train.output_dir`.
        facts: of its `status.json`.
        state: running, finished, failed, interrupted, killed or silent (`ragfit.status.verdict`).
        sentence: the state with what is known of it.
    """

    def __init__(self, folder, facts, state, sentence):
        self.title, self.facts, self.state, self.sentence = f"The run in {folder}", dict(facts), state, str(sentence)

    def _items(self):
        facts = self.facts
        earlier = facts.get("earlier") or {}
        items = [
            ("started", f"{facts.get('started')} on {facts.get('host')}, process {facts.get('pid')}"),
            ("last sign of life", facts.get("updated")),
            ("last loss", None if facts.get("loss") is None else f"{facts['loss']:.4f}"),
            ("last checkpoint", facts.get("last_checkpoint")),
            ("went on from", facts.get("resumed_from")),
            ("adapter", facts.get("saved")),
            ("an earlier run", f"finished {earlier['updated']}; its adapter was saved in {earlier['saved']}" if {"updated", "saved"} <= earlier.keys() else None),
        ]
        if self.state in ("failed", "interrupted", "killed"):
            on = "resume_checkpoint=true, with all else as it was"
            items.append(("to go on", on if facts.get("last_checkpoint") else "start it again: there is no checkpoint yet"))
        return [(label, str(value)) for label, value in items if value is not None]

    def html(self):
        good = {"running": style.NOTE, "finished": style.GOOD}
        rows = [[label, Html(f"<b>{flow(value)}</b>")] for label, value in self._items()]
        top = style.callout(flow(self.sentence), good.get(self.state, style.BAD))
        return style.card(self.title, Html(top), style.table(None, rows, widths=("130px",)))

    def text(self):
        return "\n".join([f"{self.title}: {plain(self.sentence)}", *(f"  {label:<17}  {plain(value)}" for label, value in self._items())])


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
            self.rows += [(file.name if alone == path else str(file), _size(file), note or _HOLDS.get(file.name, "")) for file in files]
        on_top = earlier_adapter(alone) if alone else None
        self.note = (
            f"This adapter was trained on top of the adapter {on_top}, merged into the base model: the base model alone is "
            f"not what it belongs to. python -m ragfit.merge {alone} NEW_FOLDER merges both, in that order."
            if on_top else ""
        )  # fmt: skip

    def html(self):
        rows = [[_mono(path), size.replace(" ", "\u00a0"), note] for path, size, note in self.rows]
        note = style.callout(flow(self.note)) if self.note else Html()
        return style.card(self.title, note, style.table(["file", "size", "what it holds"], rows, right=(1,)))

    def text(self):
        width = max((len(path) for path, _, _ in self.rows), default=0)
        lines = [plain(f"  {path:<{width}}  {size:>9}  {note}".rstrip()) for path, size, note in self.rows]
        return "\n".join([f"{self.title}:", *([plain(f"  ! {self.note}")] if self.note else []), *lines])


def _size(path):
    if not path.exists():
        return "not there"
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _value(key, value):
    if holds_secret(key, value):
        return MASK
    return "–" if value is None else repr(value) if isinstance(value, str) and not value.strip() else str(masked(value))


def _mono(text):
    return Html(f'<span style="{style.MONO};font-size:12px"><bdi>{flow(text)}</bdi></span>')
