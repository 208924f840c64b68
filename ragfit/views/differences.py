"""Before and after a run: what differs from the YAML, the last look, and what was saved."""

from ragfit.draw import html as style
from ragfit.draw.html import Html, View, escape, plain
from ragfit.secrets import MASK, holds_secret, masked


class DifferencesView(View):
    """What a configuration has other than its YAML file.

    Args:
        cfg: the resolved configuration.
        differences: `(key, value in the file, value)` of `ragfit.config.load.differences`, or four with why.
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
        from ragfit.config.save import to_yaml

        return to_yaml(self.cfg)

    def html(self):
        if self.rows:
            why = any(row[3] for row in self.rows)
            rows = [
                [Html(f"<b>{escape(key)}</b>"), style.small_mono(before), style.small_mono(after), note]
                for key, before, after, note in self.rows
            ]
            head = ["key", "in the file", "this run", "why"]
            # Widths for all, so that long names and paths break instead of leaving the card.
            wide, narrow = ("30%", "18%", "32%", "20%"), ("30%", "30%", "40%")
            body = (
                style.table(head, rows, widths=wide)
                if why
                else style.table(head[:3], [row[:3] for row in rows], widths=narrow)
            )
        else:
            body = style.small_text("Nothing: this run is the file as it stands.")
        notes = "".join(style.small_text(note) for note in self.notes)
        return style.card(
            self.title, body, Html(notes), style.details("the whole configuration", style.mono(self._yaml()))
        )

    def text(self):
        lines = [f"{self.title}:"] + [
            plain(f"  {key}: {before} -> {after}{f'  ({why})' if why else ''}") for key, before, after, why in self.rows
        ]
        return "\n".join([*(lines if self.rows else [f"{self.title}: nothing"]), *(f"  {note}" for note in self.notes)])


def _value(key, value):
    if holds_secret(key, value):
        return MASK
    return "–" if value is None else repr(value) if isinstance(value, str) and not value.strip() else str(masked(value))
