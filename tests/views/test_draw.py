"""Blocks as pages and as lines, hostile text in all; news and bars."""

import itertools
import re
import sys
import types

import pytest
from harmless import HOSTILE, assert_harmless

from ragfit.draw import html as style
from ragfit.draw.blocks import Badge, Bar, Callout, Drawn, Facts, Fold, Heading, Long, Note, Picture, Span, Table
from ragfit.draw.figure import count_on, figure, finish, legend_below
from ragfit.draw.progress import progress_bar, say, weights_bar
from ragfit.draw.text import in_one_line, plain, visible
from ragfit.draw.view import View


def drawn(places=(1,)):
    axes = (picture := figure(1.8)).subplots()
    axes.plot(places, [1] * len(places), marker="o", label="rows")
    axes.set_xlim(0.4, max(places) + 0.6)
    finish(axes, "title")
    count_on(axes)
    legend_below(picture)
    return picture


class Every(View):
    """A view of all blocks, with one text wherever text may be."""

    def __init__(self, text):
        self.title = self.aside = self.said = text

    def blocks(self):
        text = self.said
        line = (
            text,
            "\n",
            Span(text),
            Span(text, "quiet"),
            Span(text, "mono"),
            Badge(text, "bad"),
            Bar(0.5),
            Long(text),
        )
        return [
            Facts([(text, text, text)]),
            Table([text, "b"], [[line, Long(text * 30)]], right=[1], widths=["20%"]),
            Table(["a.key", "two_words"], [[text, ""]], wide=True),
            Callout(line),
            Note(line),
            Heading(text),
            Picture(drawn, text, text),
            Fold(text, [Note(text)]),
            Drawn(lambda: style.mono(text * 300), lambda: [visible(text).replace("\n", "")]),
        ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_block(text, tmp_path):
    view = Every(text)
    assert {"table", "details", "img"} <= set(assert_harmless(view._repr_html_()).tags)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", repr(view).replace("\t", ""))
    whole = view.save_html(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert whole.startswith("<!doctype html>") and whole.rstrip().endswith("</html>")
    assert "://" not in whole and "<script" not in whole and "default-src 'none'" in whole


def test_a_log_says_what_a_page_says():
    class Small(View):
        title, aside = "Answers", (Badge("running", "note"), Bar(0.5), "3 of 6")

        def blocks(self):
            cells = [["who", (Badge("cites otherwise"), "Giverny [1]")], ["where", ("two", "\n", "lines")]]
            return [
                Callout("Look here.", "bad"),
                Facts([("device", "cpu", "none other")]),
                Table(["question", "answer"], cells),
                Table(["key", "text"], [["a", "word " * 50]]),
                Heading("Why?"),
                Picture(drawn, "what it shows", "1: 100%"),
                Fold("more", [Note("inside")], in_text=False),
            ]

    assert repr(Small()).splitlines() == [
        "Answers: running 3 of 6",
        "  ! Look here.",
        "  device  cpu  (none other)",
        "  question  answer",
        "  who       cites otherwise Giverny [1]",  # a label is not glued to what it says something of
        "  where     two lines",
        "  key: a",
        "    text: " + " ".join(["word"] * 50),
        "  Why?",
        "  1: 100%",
    ]
    assert all(part in Small().html() for part in ("inside", "two<br>lines", 'alt="what it shows"'))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb", "a⏎\nb"),
        ("\x00\x1b\x7f", "␀␛␡"),
        ("\u202ex\u2066\u200b\ufeff", "⟨RLO⟩x⟨U+2066⟩⟨ZWSP⟩⟨BOM⟩"),
        ("a b  c   d\u00a0e", "a b··c···d⍽e"),
        ("\ud800\U000e0041", "⟨U+D800⟩⟨U+E0041⟩"),
    ],
)
def test_every_character_is_shown(text, seen):
    assert visible(text) == seen and plain(text).replace("  ", "··").replace("· ", "··") == seen.replace("⏎", "")
    assert in_one_line("\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\r\nend") == "red link end"
    assert in_one_line("x" * 20, 5) == "xxxx…"


def test_palette_has_contrast():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    pairs = [value for value in vars(style).values() if isinstance(value, style.Pair)]
    for pair in [*pairs, *(pair for _, pair in style.HEAT)]:
        low, high = sorted((luminance(pair.paper), luminance(pair.ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


@pytest.mark.parametrize("places", [(1,), (1, 2), (3,), (1, 40)])
def test_counts_have_ticks_at_whole_numbers_and_whole_points(places):
    picture = drawn(places)
    picture.canvas.draw()
    axes = picture.axes[0]
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert ticks and all(tick == int(tick) for tick in ticks)
    assert not any(line.get_clip_on() for line in axes.lines)  # the last point is not cut in half


@pytest.mark.parametrize("notebook", [False, True])
def test_news_and_bars_are_text_where_news_go(notebook, monkeypatch, capsys):
    import ipykernel  # noqa: F401  (that it is imported does not make this a notebook)
    from transformers.utils import logging

    if notebook:
        shell = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
        monkeypatch.setitem(sys.modules, "IPython", shell)
    with weights_bar():
        assert list(progress_bar(range(4))) == [0, 1, 2, 3]
    assert capsys.readouterr() == ("", "")  # what is done at once shows no bar
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)  # each look at the clock takes a second
    say("Kept checkpoint-5.")
    assert list(progress_bar(range(4), desc="counting")) == [0, 1, 2, 3]
    with pytest.raises(RuntimeError), weights_bar():
        list(logging.tqdm(range(4), desc="Loading weights"))
        raise RuntimeError
    assert logging.set_tqdm_hook(None) is None  # transformers' own bar again
    said, elsewhere = capsys.readouterr() if notebook else reversed(capsys.readouterr())
    assert said.startswith("Kept checkpoint-5.\n") and elsewhere == ""
    assert re.search(r"counting: 100%.* 4/4 ", said) and re.search(r"Loading weights: 100%.* 4/4 ", said)
