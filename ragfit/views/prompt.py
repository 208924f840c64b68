"""One row as text, part by part: what the template, the instruction and the row each bring."""

import bisect
import difflib
import re

from ragfit.data.findings import became
from ragfit.data.mask import IGNORE_INDEX
from ragfit.draw import html as style
from ragfit.draw.html import Html, colours, html_lines
from ragfit.draw.text import visible
from ragfit.draw.view import View
from ragfit.views.token_text import token_texts

_LOOK = {
    "template": style.SPECIAL,
    "instruction": style.NOTE,
    "prompt": style.QUIET,
    "marker": style.MARKER,
    "output": style.LOSS,
    "end of turn": style.LOSS,
}
_SOFT_LOSS = "background:#1a7f4522"  # thin, so that it suits any paper
AROUND = 60  # characters shown before and after a difference
MOST = 12  # differences shown


class PromptView(View):
    """The training text of one row by parts, and how it compares with the prompt at inference.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
    """

    def __init__(self, prepared, index=0, part="train"):
        self.rendered = row = prepared.rendered(index, part)
        self.title = f"Prompt of {part} row {index}"
        self.system = prepared.renderer.system
        ids, labels = (list(getattr(prepared, part)[index][column]) for column in ("input_ids", "labels"))
        loss = [label != IGNORE_INDEX for label in labels]
        _, spans, _ = token_texts(prepared.tokenizer, ids, row.text, prepared.encoder)
        regions = _regions(row, prepared.instruction if self.system in ("kept", "prompt") else "")
        self.parts = _count(regions, spans, loss, row.text)
        self.tokens, self.loss_tokens = len(ids), sum(loss)
        cut = getattr(prepared.report, part).cut.get(getattr(prepared.report, part).kept[index])
        self.cut = f"{cut.start:,} characters cut from its start, {cut.length - cut.stop:,} from its end" if cut else ""
        self.comparison, self.differences = _compare(row)

    def _notes(self):
        if self.system == "dropped":
            yield "The instruction is not in the prompt: the template drops it. Set model.instruction_in_prompt=true."
        if self.cut:
            yield f"The row's prompt was cut to fit model.max_sequence_len: {self.cut}."
        if self.rendered.changed:
            yield f"The template changed the output: {became(*self.rendered.changed)}. What it writes is what is learned."

    def html(self):
        rows = []
        for name, text, tokens, loss in self.parts:
            pair = _LOOK[name]
            count = "" if tokens is None else f"{tokens:,} token{'s' * (tokens != 1)}"
            learned = "" if not loss else f"<br><u>{'all' if loss == tokens else f'{loss:,}'} with loss</u>"
            look = f"padding:6px 10px;border:0;{style.border('bottom')};vertical-align:top;text-align:left"
            rows.append(
                f'<tr><td style="{look};{colours(style.PAPER)};border-left:4px solid {pair[1]};width:112px;font-size:12px">'
                f"{style.badge(name, pair)}<br>{count}{learned}</td>"
                f'<td style="{look};{_SOFT_LOSS if loss else colours(style.PAPER)};padding:0">{style.mono(text)}</td></tr>'
            )
        body = (
            f'<table style="width:100%;border-collapse:collapse;{style.border()};margin:8px 0;table-layout:auto">'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
        pair = style.GOOD if not self.differences else style.WARNING
        same = style.callout(Html(f"<b>Inference prompt and training text:</b> {html_lines(self.comparison)}"), pair)
        shown = "".join(
            f'<div style="{style.MONO};font-size:12px;padding:3px 10px;white-space:pre-wrap;overflow-wrap:break-word;'
            f'{colours(style.PAPER)}"><bdi>{"…" if before else ""}{html_lines(before)}</bdi>'
            + (f'<del style="{colours(style.BAD)}">{html_lines(old)}</del>' if old else "")
            + (f'<ins style="{colours(style.GOOD)}">{html_lines(new)}</ins>' if new else "")
            + f"<bdi>{html_lines(after)}…</bdi></div>"
            for before, old, new, after in self.differences[:MOST]
        )
        more = len(self.differences) - MOST
        shown += str(style.small_text(f"and {more} more differences")) if more > 0 else ""
        if self.differences:
            shown = style.small_text(Html("<del>only at inference</del>, <ins>only in training</ins>")) + shown
        notes = "".join(style.callout(note) for note in self._notes())
        aside = f"{self.tokens:,} tokens, {self.loss_tokens:,} with loss"
        return style.card(self.title, Html(notes), Html(body), same, Html(shown), aside=aside)

    def text(self):
        lines = [f"{self.title}: {self.tokens:,} tokens, {self.loss_tokens:,} with loss"]
        lines += [f"  ! {note}" for note in self._notes()]
        for name, text, tokens, loss in self.parts:
            count = "" if tokens is None else f" ({tokens:,} tokens{f', {loss:,} with loss' if loss else ''})"
            lines += [f"--- {name}{count}", visible(text)]
        lines.append(f"--- inference prompt and training text: {visible(self.comparison)}")
        lines += [
            f"  …{visible(before)}[-{visible(old)}-]{{+{visible(new)}+}}{visible(after)}…"
            for before, old, new, after in self.differences[:MOST]
        ]
        return "\n".join(lines)


def _regions(row, instruction):
    """(name, start, end): the text from its first to its last character, without gaps."""
    text, (start, end) = row.text, row.output
    known = []
    before = row.user[0] if row.user else start
    for variant in (instruction, instruction.strip()):
        at = text.find(variant, 0, before) if variant else -1
        if at >= 0:
            known.append(("instruction", at, at + len(variant)))
            break
    if row.user:
        known.append(("prompt", *row.user))
    if row.marker and row.marker[0] >= (row.user[1] if row.user else 0):
        known.append(("marker", *row.marker))
    known += [("output", start, end), ("end of turn", end, row.end_char)]
    regions, at = [], 0
    for name, left, right in known:
        if left > at:
            regions.append(("template" if row.user or name == "output" else "prompt", at, left))
        regions.append((name, max(left, at), right))
        at = right
    regions.append(("template", at, len(text)))
    return [region for region in regions if region[2] > region[1]]


def _count(regions, spans, loss, text):
    """(name, text, tokens, tokens with loss) of each region; a token counts where it begins."""
    tokens, learned = [0] * len(regions), [0] * len(regions)
    if spans is None:
        return [(name, text[left:right], None, None) for name, left, right in regions]
    ends = [right for _, _, right in regions]
    for (start, _), with_loss in zip(spans, loss, strict=True):
        region = min(bisect.bisect_right(ends, start), len(regions) - 1)
        tokens[region] += 1
        learned[region] += with_loss
    counts = zip(regions, tokens, learned, strict=True)
    return [(name, text[left:right], count, with_loss) for (name, left, right), count, with_loss in counts]


def _compare(row):
    """(sentence, differences): differences are (before, only at inference, only in training, after)."""
    if row.matches:
        if len(row.prompt) == row.completion_char:
            end = row.prompt[-24:]
            return f"identical up to the completion ({len(row.prompt):,} characters, ending in {end!r}).", []
        more = row.text[len(row.prompt) : row.output[0]]
        if more:
            which = "with loss" if row.completion_char <= len(row.prompt) else "without loss"
            return f"identical, then the training text has {more!r} before the output, {which}.", []
        where = f"loss begins at character {row.completion_char:,}"
        return f"identical up to the output ({len(row.prompt):,} characters); {where}.", []
    old, new = row.prompt, row.text[: row.output[0]]
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    old_words, new_words = _words(old[first:]), _words(new[first:])
    found = []
    codes = [("replace", 0, len(old_words), 0, len(new_words))]
    if len(old_words) * len(new_words) < 4_000_000:  # a second or so
        codes = difflib.SequenceMatcher(None, old_words, new_words, autojunk=False).get_opcodes()
    for tag, a, b, c, d in codes:
        if tag != "equal":
            before = new[: first + len("".join(new_words[:c]))][-AROUND:]
            after = "".join(new_words[d : d + 8])[:AROUND]
            found.append((before, "".join(old_words[a:b])[:2000], "".join(new_words[c:d])[:2000], after))
    return f"they differ from character {first:,}: the model learns to continue another text than it is given.", found


def _words(text):
    return re.findall(r"\w+|\s+|[^\w\s]", text)
