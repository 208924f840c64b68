"""Texts that try to break a page, and what a page must be like whatever it shows."""

import ast
import re
from html.parser import HTMLParser
from types import SimpleNamespace

HOSTILE = [
    "<script>alert(1)</script> <img src=x onerror=\"alert('1')\">",
    '" onmouseover="alert(1)" x=\'',
    "</bdi></mark></details><details open><style>*{display:none}</style>",
    "שלום \u202eevil\u202c \u2066tail\u2069 end",
    "a\x00b\x07c\x1b[31mred\ttab\u00a0nbsp  two   spaces ",
    "👩‍👩‍👧 日本語 &amp; &#x41; \u2028 \ufeff",
    "carriage\r\nreturn\n\n  indented",
]


class Reader(HTMLParser):
    """What a browser would make of a fragment: its tags, and each token with what it stands in."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.tokens, self.stack, self.folds = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("br", "img", "wbr"):
            self.stack.append(tag)
        title = dict(attrs).get("title") or ""
        if tag == "bdi" and re.match(r"\d+: id", title):
            place, label, text = re.match(r"(\d+: id \d+), (no loss|label -?\d+), (.*)", title, re.DOTALL).groups()
            position, number = map(int, place.split(": id "))
            label = -100 if label == "no loss" else int(label.split()[1])
            self.tokens.append(
                SimpleNamespace(position=position, id=number, label=label, text=text, shown="", inside=list(self.stack))
            )

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1] == "summary":
            self.folds.append(data)
        elif self.tokens and "bdi" in self.stack:
            self.tokens[-1].shown += data

    def decoded(self):
        return "".join(ast.literal_eval(token.text) for token in self.tokens if not token.text.startswith("part "))


def assert_harmless(html):
    page = Reader(html)
    assert not {"script", "style", "svg", "iframe", "link", "input"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert names <= {"style", "class", "title", "open", "alt", "src"}, names
    looks = [value for name, value in page.attributes if name == "style"]
    for look in looks:
        # What follows JupyterLab's theme comes after a plain colour of the same, since the sanitizer drops it.
        theme = r"var\(--jp-[\w-]+,#\w+\)"
        mixed = rf"color-mix\([^()]+{theme}\)"
        look = re.sub(rf"(background|color|border(?:-\w+)?-color):(?:{theme}|{mixed})", r"\1:", look)
        # Light and dark of a picture change places with the theme.
        lightness = r"calc\(var\(--jp-shadow-base-lightness,0\)\*[.\d]+(?:deg)?\)"
        look = re.sub(rf"filter:invert\({lightness}\) hue-rotate\({lightness}\)", "", look)
        # A grey so thin that the text on it needs no colour of its own: a token's stripe, a bar's ground.
        look = re.sub(r"background:#(888[34])(?!\w)", "", look)
        assert not re.search(r"var\(|hsl\(|rgb\(|url\(|expression|isolate", look), look
        if "background:" in look or re.search(r"(?:^|;)color:", look):
            assert "background:#" in look and re.search(r"(?:^|;)color:#", look), look
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200e\u200f]", html)
    return page
