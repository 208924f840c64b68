"""The tokens of one row, drawn from the ids and labels that the trainer gets."""

from ragfit.data.mask import IGNORE_INDEX, Encoder
from ragfit.draw import html as style
from ragfit.draw.html import Html, attribute, colours, escape, html_lines
from ragfit.draw.text import short, visible
from ragfit.draw.view import View
from ragfit.views.token_text import token_texts

CONTEXT = 30  # tokens without loss left visible on each side of a fold
FOLD = 60  # the fewest tokens worth folding
PAD_CONTEXT, PAD_FOLD = 2, 6
LARGE = 320_000  # bytes of HTML, estimated

_ODD = ' style="background:#8882"'  # so thin that it shows on any paper
_ODD_LOSS = f' style="{colours(style.LOSS_STRIPE)}"'
_LOSS = f'<mark style="{colours(style.LOSS)};border-bottom:2px solid {style.LOSS_EDGE};padding:1px 0">'
_LOSS_BOXES = f'<mark style="{colours((style.PAPER[0], style.LOSS[1]))}">'
# The tags say without colour what a token is.
_INNER = {
    "special": (f'<b style="{colours(style.SPECIAL)};font-weight:600">', "</b>"),
    "marker": (f'<i style="{colours(style.MARKER)};font-style:normal">', "</i>"),
    "marker special": (f'<b style="{colours(style.MARKER)};font-weight:600"><i style="font-style:normal">', "</i></b>"),
    "boundary": (f'<em style="{colours(style.BOUNDARY)};border:1px dashed {style.BOUNDARY[1]}">', "</em>"),
    "padding": (f'<small style="{colours(style.PADDING)};font-size:11px">', "</small>"),
}


class TokenView(View):
    """One row, token by token: what is read, and what is learned from.

    Hover over a token for its position, id, label and text. Long stretches without loss are folded.

    Args:
        prepared: of `ragfit.prepare`.
        index: the row's index in `prepared.train` or `prepared.dev`.
        part: "train" or "dev".
        batch: a batch of the collator that holds the row: ids, labels and padding are then those of the batch.
        losses: what each token costs, in nats: a list with a number or None per token, or several by name, such as
            `{"base": […], "tuned": […]}`; tokens are shaded by the last.
    """

    def __init__(self, prepared, index=0, part="train", batch=None, losses=None):
        row, rendered = getattr(prepared, part)[index], prepared.rendered(index, part)
        ids, labels, mask = list(row["input_ids"]), list(row["labels"]), None
        if batch is not None:
            ids, labels, mask = _of_batch(batch, ids)
        number = getattr(prepared.report, part).kept[index]
        self._set(prepared.tokenizer, ids, labels, mask, losses, rendered.text, prepared.encoder)
        self._places(rendered)
        self.name = f"{part} row {index}" + (f", row {number} of its file" if number != index else "")
        self.findings = [
            (finding, bool(finding.rows)) for finding in prepared.report.findings
            if not finding.rows or (part, number) in finding.rows
        ]  # fmt: skip

    @classmethod
    def from_ids(
        cls,
        tokenizer,
        input_ids,
        labels,
        attention_mask=None,
        text=None,
        name="row",
        losses=None,
        ignore_index=IGNORE_INDEX,
    ):
        """A view of ids that may come from anywhere, a padded row of a batch included.

        Args:
            tokenizer: the `transformers` tokenizer of the ids.
            input_ids, labels, attention_mask: lists or tensors of one dimension; 0 in the mask is padding.
            text: the text the ids were made from, where it is known.
            name: what to call the row.
            ignore_index: the label of tokens without loss.
        """
        view = cls.__new__(cls)
        mask = None if attention_mask is None else _list(attention_mask)
        view._set(tokenizer, _list(input_ids), _list(labels), mask, losses, text, Encoder(tokenizer), ignore_index)
        view.name, view.findings = name, []
        return view

    def _set(self, tokenizer, ids, labels, mask, losses, text, encoder, ignore_index=IGNORE_INDEX):
        if len(ids) != len(labels) or (mask is not None and len(mask) != len(ids)):
            raise ValueError(
                f"A row has {len(ids)} input_ids and {len(labels)} labels. Give one label (and mask) for each id."
            )
        self.ids, self.labels = ids, labels
        self.padding = [mask is not None and not kept for kept in mask or [1] * len(ids)]
        self.loss = [label != ignore_index for label in labels]
        losses = losses if isinstance(losses, dict) or losses is None else {"loss": losses}
        self.losses = {name: _list(values) for name, values in (losses or {}).items()}
        for name, values in self.losses.items():
            if len(values) != len(ids):
                raise ValueError(
                    f"losses: {name} has {len(values)} values for {len(ids)} tokens. Give a number or None for each."
                )
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if str(token).strip())}
        self.marker, self.boundary = range(0), None
        real = [i for i, padded in enumerate(self.padding) if not padded]
        texts, self.spans, self.dropped = token_texts(tokenizer, [ids[i] for i in real], text, encoder)
        self.texts = [""] * len(ids)
        for i, piece in zip(real, texts, strict=True):
            self.texts[i] = piece
        self.real = real
        for i, padded in enumerate(self.padding):
            if padded:
                self.texts[i] = tokenizer.decode([ids[i]])

    def _places(self, rendered):
        """Which tokens hold the marker, and which one spans the boundary."""
        if self.spans is None:
            return
        if rendered.marker:
            left, right = rendered.marker
            inside = [i for i, span in zip(self.real, self.spans, strict=True) if span[0] < right and span[1] > left]
            self.marker = range(inside[0], inside[-1] + 1) if inside else range(0)
        for i, (left, right) in zip(self.real, self.spans, strict=True):
            if left < rendered.completion_char < right and not self.loss[i]:
                self.boundary = i

    @property
    def title(self):
        return f"Tokens of {self.name}"

    def _counts(self):
        total, loss = len(self.real), sum(self.loss)
        share = loss / max(total, 1)
        return total, loss, share, sum(self.padding)

    # HTML.

    def html(self):
        total, loss, share, padding = self._counts()
        counts = f"<b>{total:,}</b> tokens &nbsp;{style.bar(share)}&nbsp; <b>{loss:,}</b> with loss ({share:.1%})" + (
            f" &nbsp;+ <b>{padding:,}</b> padding" if padding else ""
        )
        found = "".join(
            f"<div>{style.badge(f.severity, style.WARNING if f.severity == 'warning' else style.NOTE)} "
            f"<b>{escape(f.kind)}</b>{'' if mine else ' (all rows)'}: {escape(f.meaning)}</div>"
            for f, mine in self.findings
        )
        # One cue per token kind, in the order in which they usually come.
        legend = [("no loss", ("", ""))]
        if any(i in self.special for i in self.ids):
            legend.append(("special", _INNER["special"]))
        if self.marker:
            legend.append(("marker", _INNER["marker"]))
        if self.boundary is not None:
            legend.append((f"spans the boundary, no loss: {self.texts[self.boundary]!r}", _INNER["boundary"]))
        legend.append(("with loss", (_LOSS, "</mark>")))
        if padding:
            legend.append(("padding", _INNER["padding"]))
        words = " &ensp; ".join(f"{left}{escape(visible(word))}{right}" for word, (left, right) in legend)
        if self.losses:
            words += f" &ensp; below a token: its loss in nats ({', then '.join(map(escape, self.losses))})"
        hint = (
            "Hover over a token for its position, id, label (no loss: -100) and text. "
            "⏎ newline, → tab, · a space that could be overlooked, ⋯ rest of a character."
        )
        body = (
            f'<div style="{style.MONO};font-size:13px;line-height:1.9;white-space:pre-wrap;overflow-wrap:break-word;'
            f'margin:8px 0;padding:8px 12px;{style.border()};border-radius:6px;{colours(style.PAPER)}">'
            f"{''.join(self._stretches())}</div>"
        )
        return style.card(self.title, Html(f"<div>{counts}</div>"), Html(found), Html(f'<div style="margin:4px 0">{words}</div>'),
                          Html(body), style.small_text(hint))  # fmt: skip

    def _stretches(self):
        # Stripes show where a token ends; in folds of very long rows they would cost more bytes than the tokens.
        stripes = sum(70 + 2 * len(text.encode(errors="replace")) for text in self.texts) < LARGE
        for start, stop, kind in self._runs():
            if kind == "loss":
                yield f"{_LOSS_BOXES if self.losses else _LOSS}{self._tokens(start, stop)}</mark>"
                continue
            context, fewest = (PAD_CONTEXT, PAD_FOLD) if kind == "padding" else (CONTEXT, FOLD)
            left = start + context
            right = stop - context
            if right - left < fewest:
                yield self._tokens(start, stop)
                continue
            yield self._tokens(start, left)
            yield str(
                style.details(
                    self._summary(left, right, kind), Html(f"<div>{self._tokens(left, right, stripes)}</div>")
                )
            )
            yield self._tokens(right, stop)

    def _runs(self):
        """(start, stop, kind): stretches of one kind: "loss", "prompt" or "padding"."""
        kinds = [
            "padding" if pad else "loss" if loss else "prompt"
            for pad, loss in zip(self.padding, self.loss, strict=True)
        ]
        start = 0
        for i in range(1, len(kinds) + 1):
            if i == len(kinds) or kinds[i] != kinds[start]:
                yield start, i, kinds[start]
                start = i

    def _summary(self, left, right, kind):
        if kind == "padding":
            return f"{right - left:,} more padding tokens"
        first = short("".join(self.texts[left : min(left + 10, right)]), 36).rstrip("…")
        last = short("".join(self.texts[max(right - 10, left) : right])[-36:], 36).rstrip("…")
        return Html(f"{right - left:,} tokens without loss: <bdi>{escape(first)}</bdi> … <bdi>{escape(last)}</bdi>")

    def _tokens(self, start, stop, stripes=True):
        parts = []
        for i in range(start, stop):
            text, kind = self.texts[i], self._kind(i)
            label = f"label {self.labels[i]}" if self.loss[i] else "no loss"
            shown = "⋯" if not text else "·" * len(text) if text.isspace() and not text.strip(" ") else html_lines(text)
            told = repr(text) if text else f"part {self.tokenizer.convert_ids_to_tokens(self.ids[i])!r}"
            left, right = _INNER.get(kind, ("", ""))
            look = (_ODD_LOSS if self.loss[i] else _ODD) if stripes and i % 2 and not kind else ""
            costs = [values[i] for values in self.losses.values()]
            extra = ""
            if any(cost is not None for cost in costs):
                numbers = ["–" if cost is None else f"{cost:.2f}" for cost in costs]
                look, told = _heat(costs[-1]), f"loss {' → '.join(numbers)}, {told}"
                extra = "<br>" if shown.endswith("<br>") else ""
                shown = shown.removesuffix("<br>")
                shown = "·" + shown[1:] if shown[:1] == " " else shown  # a box of its own would lose it
                right += f'<br><small style="font-size:10px">{"<br>".join(numbers)}</small>'
            if i in self.dropped:
                parts.append(
                    f'<s title="{attribute(repr(self.dropped[i]))}: the tokenizer drops it">{html_lines(self.dropped[i])}</s>'
                )
            parts.append(
                f'<bdi title="{i}: id {self.ids[i]}, {label}, {attribute(told)}"{look}>{left}{shown}{right}</bdi>{extra}'
            )
        return "".join(parts)

    def _kind(self, i):
        if self.padding[i]:
            return "padding"
        if i == self.boundary:
            return "boundary"
        special = self.ids[i] in self.special
        if i in self.marker:
            return "marker special" if special else "marker"
        return "special" if special else ""

    # Text.

    def terminal(self, colour: bool = True) -> str:
        """The row as it runs on: ▶ what has loss ◀, in a terminal green and the rest dim; long stretches without loss cut."""
        dim, green, plain = ("\x1b[2m", "\x1b[32m", "\x1b[0m") if colour else ("", "", "")
        total, loss, share, padding = self._counts()
        parts = []
        for start, stop, kind in self._runs():
            texts = [visible(text) for text in self.texts[start:stop]]
            if kind == "loss":
                parts.append(f"{plain}{green}▶{''.join(texts)}◀{plain}")
                continue
            if stop - start > 2 * CONTEXT:
                texts = [*texts[:CONTEXT], f"\n[… {stop - start - 2 * CONTEXT:,} tokens …]\n", *texts[-CONTEXT:]]
            parts.append(f"{dim}{''.join(texts)}{plain}")
        head = f"{self.title}: {total:,} tokens, {loss:,} with loss ({share:.1%}), between ▶ and ◀"
        return "\n".join([head, *(f"  {finding}" for finding, mine in self.findings if mine), "".join(parts)])

    def text(self):
        total, loss, share, padding = self._counts()
        lines = [
            f"{self.title}: {total:,} tokens, {loss:,} with loss ({share:.1%})"
            + (f", {padding:,} padding" if padding else "")
        ]
        lines += [
            f"  {finding}" if mine else f"  (all rows) {finding.kind}: {finding.meaning}"
            for finding, mine in self.findings
        ]
        if self.boundary is not None:
            lines.append(f"  token {self.boundary} {self.texts[self.boundary]!r} spans the boundary and has no loss")
        for start, stop, kind in self._runs():
            name = {"loss": "WITH LOSS", "prompt": "no loss", "padding": "padding"}[kind]
            texts = self.texts[start:stop]
            if kind != "loss" and stop - start > 2 * CONTEXT:
                texts = [*texts[:CONTEXT], f" [… {stop - start - 2 * CONTEXT:,} tokens …] ", *texts[-CONTEXT:]]
            lines.append(f"--- {name}, tokens {start} to {stop - 1}")
            lines.append("".join(visible(text) for text in texts))
            for name, values in self.losses.items() if kind == "loss" else ():
                costs = ["–" if cost is None else f"{cost:.2f}" for cost in values[start:stop]]
                lines.append(f"  loss, {name}: {' '.join(costs[:CONTEXT])}{' …' if len(costs) > CONTEXT else ''}")
        return "\n".join(lines)


def _of_batch(batch, ids):
    for row, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        row, mask = _list(row), _list(mask)
        if [i for i, kept in zip(row, mask, strict=True) if kept] == ids:
            return row, _list(labels), mask
    raise ValueError("The batch does not hold this row. Give a batch of the collator that was made from it.")


def _list(values):
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _heat(cost):
    pair = next((pair for limit, pair in style.HEAT if cost is not None and cost <= limit), style.PADDING)
    box = "display:inline-block;vertical-align:top;text-align:center;line-height:1.35;margin:0 1px 4px;padding:1px 3px"
    return f' style="{box};border-radius:3px;{colours(pair)}"'
