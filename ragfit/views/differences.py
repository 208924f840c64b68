"""Before a run: what its configuration has other than the YAML file."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig

from ragfit.config.save import to_yaml
from ragfit.draw.blocks import Block, Fold, Note, Span, Table
from ragfit.draw.view import View
from ragfit.secrets import MASK, holds_secret, masked


class DifferencesView(View):
    """What a configuration has other than its YAML file, as `ragfit.differences` finds it."""

    def __init__(self, cfg: DictConfig, differences: Iterable[tuple[str, Any, Any]], config_name: str):
        self.title, self.cfg, self.differences = f"What differs from {config_name}", cfg, list(differences)

    def blocks(self) -> list[Block]:
        rows = []
        for key, *values in self.differences:
            shown = (MASK if holds_secret(key, value) else masked(value) for value in values)
            rows.append([Span(key), *(Span("–" if one is None else str(one), "mono") for one in shown)])
        found = Table(["key", "in the file", "this run"], rows, widths=("30%", "30%", "40%")) if rows else None
        whole = Fold("the whole configuration", [Note(Span(to_yaml(self.cfg), "mono"))], in_text=False)
        return [found or Note("Nothing: this run uses the file unchanged."), whole]
