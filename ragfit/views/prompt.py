"""One row as text, part by part: what the template, the instruction and the row each bring."""

from collections.abc import Iterator

from ragfit.data.mask import IGNORE_INDEX
from ragfit.data.prompt import Rendered
from ragfit.data.report import Prepared
from ragfit.draw import html as style
from ragfit.draw.blocks import Block, Drawn
from ragfit.draw.text import counted, visible
from ragfit.draw.view import View
from ragfit.views.shown import ShownRow
from ragfit.views.token_text import token_texts

_LOOK = {"template": style.SPECIAL, "instruction": style.NOTE, "prompt": style.QUIET, "marker": style.MARKER}
_LOOK |= {"output": style.LOSS, "end of turn": style.LOSS}


class PromptView(View):
    """The training text of one row by parts, and how it compares with the prompt at inference.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
        row: another row than the prepared one (`ragfit.views.row`).

    Attributes:
        parts: (name, text, tokens, tokens with loss) in their order; the counts are None where the row's text gives
            other tokens than the row has.
        findings: what was found in this row and in all rows.
    """

    def __init__(self, prepared: Prepared, index: int = 0, part: str = "train", row: ShownRow | None = None):
        self.row, self.encoder = row or ShownRow.of(prepared, index, part), prepared.encoder
        row, text, self.findings = self.row, self.row.rendered.text, self.row.findings
        loss = [label != IGNORE_INDEX for label in row.labels]
        self.title, self.aside = f"Prompt of {part} row {index}", f"{len(row.ids):,} tokens, {sum(loss):,} with loss"
        _, spans = token_texts(row.ids, text, self.encoder)
        # A token counts where it begins; one without characters may stand behind the last of them.
        begins = [min(start, len(text) - 1) for start, _ in spans or ()]
        self.parts = []
        for name, left, right in regions(row.rendered, row.instruction):
            inside = [learned for at, learned in zip(begins, loss, strict=False) if left <= at < right]
            self.parts.append((name, text[left:right], *((len(inside), sum(inside)) if spans else (None, None))))

    def blocks(self) -> list[Block]:
        return [*self.row.found(), Drawn(self._page, self._log), *self.row.comparison(self.encoder)]

    def _page(self) -> str:
        rows = ""
        look = f"border:0;{style.border('-bottom')};vertical-align:top;line-height:1.6;text-align:left"
        for name, text, tokens, loss in self.parts:
            learned = f"<br><u>{'all' if loss == tokens else f'{loss:,}'} with loss</u>" if loss else ""
            side = f"{look};padding:6px 10px;border-left:4px solid {_LOOK[name].line};width:112px;font-size:12px"
            paper = f"{look};padding:0;{style.colours(style.LOSS if loss else style.PAPER)}"
            rows += f'<tr><td style="{side};{style.colours(style.PAPER)}">{style.badge(name, _LOOK[name])}<br>'
            rows += f'{_count_of(tokens)}{learned}</td><td style="{paper}">{style.mono(text)}</td></tr>'
        look = f"width:100%;border-collapse:collapse;{style.border()};margin:8px 0;table-layout:fixed"
        return f'<table style="{look}"><tbody>{rows}</tbody></table>'

    def _log(self) -> Iterator[str]:
        for name, text, tokens, loss in self.parts:
            yield f"--- {name} ({_count_of(tokens)}{f', {loss:,} with loss' if loss else ''})"
            yield visible(text).removesuffix("\n")


def _count_of(tokens: int | None) -> str:
    return {None: "not counted", 0: "in the token before"}.get(tokens) or counted(tokens, "token")


def regions(row: Rendered, instruction: str) -> list[tuple[str, int, int]]:
    """(name, first character, one past the last) of each part of a row's text, without gaps."""
    known, before = [], row.user[0] if row.user else row.output[0]
    said = instruction if instruction in row.text[:before] else instruction.strip()
    at = row.text.find(said, 0, before)
    known += [("instruction", at, at + len(said))] if said and at >= 0 else []
    known += [("prompt", *row.user)] if row.user else []
    if row.marker and row.marker[0] >= (row.user or (0, 0))[1]:
        known.append(("marker", *row.marker))
    known += [("output", *row.output), ("end of turn", row.output[1], row.end_char)]
    found, at = [], 0
    for name, left, right in [*known, ("", len(row.text), len(row.text))]:
        # Where the row's prompt can't be told from the template, the text before the output is called the prompt.
        between = "template" if row.user or name in ("output", "") else "prompt"
        found += [(between, at, left), (name, max(left, at), right)]
        at = max(at, right)
    return [region for region in found if region[1] < region[2]]
