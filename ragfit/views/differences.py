"""Before a run: what its configuration has other than the YAML file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ragfit.draw.blocks import Block, Fold, Note, Span, Table
from ragfit.draw.view import View
from ragfit.secrets import MASK, holds_secret, masked

if TYPE_CHECKING:
    from omegaconf import DictConfig


class DifferencesView(View):
    """What a configuration has other than its YAML file.

    Args:
        cfg: the configuration.
        differences: `(key, value in the file, value)` of `ragfit.config.load.differences`.
        config_name: the configuration's name.
    """

    def __init__(self, cfg: "DictConfig", differences: Iterable[tuple[str, Any, Any]], config_name: str):
        self.title, self.cfg = f"What differs from {config_name}", cfg
        self.rows = [(key, _value(key, before), _value(key, after)) for key, before, after in differences]

    def blocks(self) -> list[Block]:
        from ragfit.config.save import to_yaml

        rows = [[Span(key), Span(before, "mono"), Span(after, "mono")] for key, before, after in self.rows]
        found = Table(["key", "in the file", "this run"], rows, widths=("30%", "30%", "40%"))
        whole = Fold("the whole configuration", [Note(Span(to_yaml(self.cfg), "mono"))], in_text=False)
        return [found if rows else Note("Nothing: this run uses the file unchanged."), whole]


def _value(key: str, value: Any) -> str:
    if holds_secret(key, value):
        return MASK
    return "–" if value is None else repr(value) if isinstance(value, str) and not value.strip() else str(masked(value))
