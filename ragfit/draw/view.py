"""What all views are: something to look at in a notebook, in a log and on a page of its own."""

from pathlib import Path

from ragfit.draw.blocks import Block, Line
from ragfit.draw.html import block, card, escape
from ragfit.draw.text import line, lines, plain


class View:
    """Something to look at: HTML for notebooks and text for logs, of the same blocks under a title and an aside."""

    title: str = "ragfit"
    aside: Line = ""

    def blocks(self) -> list[Block]:
        return []

    def html(self) -> str:
        return card(self.title, self.aside, "".join(map(block, self.blocks())))

    def head(self) -> str:
        """The first line in a log."""
        return f"{plain(self.title)}: {line(self.aside)}".rstrip()

    def text(self) -> str:
        return "\n".join([self.head(), *lines(self.blocks())])

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return self.text()

    def save_html(self, path: str | Path) -> Path:
        """Write the view as a whole page that needs nothing from elsewhere, and would run no script."""
        path, policy = Path(path), "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        head += f"<title>{escape(self.title)}</title><style>{_PAGE}</style>"
        page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{self.html()}</body></html>\n'
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
        return path


# What JupyterLab's themes define, for a reader whose system is dark.
_PAGE = (
    "body{margin:24px auto;max-width:1040px;padding:0 16px;background:#f3f5f7}"
    "@media(prefers-color-scheme:dark){body{background:#14181d;--jp-layout-color1:#1b2026;--jp-layout-color2:#272e36;"
    "--jp-content-font-color1:#e6e9ec;--jp-content-font-color2:#a9b2bb;--jp-border-color2:#3a424b;"
    "--jp-shadow-base-lightness:32}}"
)
