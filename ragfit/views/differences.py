"""Before and after a run: what differs from the YAML, the last look, and what was saved."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ragfit.draw.blocks import Block, Fold, Note, Source, Span, Table
from ragfit.draw.view import View
from ragfit.secrets import MASK, holds_secret, masked

if TYPE_CHECKING:
    from omegaconf import DictConfig


class DifferencesView(View):
    """What a configuration has other than its YAML file.

    Args:
        cfg: the resolved configuration.
        differences: `(key, value in the file, value)` of `ragfit.config.load.differences`.
        config_name: the configuration's name.
    """

    def __init__(self, cfg: "DictConfig", differences: Iterable[tuple[str, Any, Any]], config_name: str):
        translated = dict(cfg.get("translated") or {})
        self.title = f"What differs from {config_name}"
        self.rows = [(key, _value(key, a), _value(key, b), translated.pop(key, "")) for key, a, b in differences]
        self.notes = [f"{key}: {note}" for key, note in translated.items()]
        self.cfg = cfg

    def blocks(self) -> list[Block]:
        from ragfit.config.save import to_yaml

        rows = [[Span(key), Span(before, "mono"), Span(after, "mono"), why] for key, before, after, why in self.rows]
        head, widths = ["key", "in the file", "this run", "translated"], ("30%", "18%", "32%", "20%")
        if not any(why for *_, why in self.rows):
            rows, head, widths = [row[:3] for row in rows], head[:3], ("30%", "30%", "40%")
        found = Table(head, rows, widths=widths) if rows else Note("Nothing: this run uses the file unchanged.")
        return [
            found,
            *map(Note, self.notes),
            Fold("the whole configuration", [Source(to_yaml(self.cfg))], in_text=False),
        ]


def _value(key: str, value: Any) -> str:
    if holds_secret(key, value):
        return MASK
    return "–" if value is None else repr(value) if isinstance(value, str) and not value.strip() else str(masked(value))
