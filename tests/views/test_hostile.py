"""Hostile text, wherever a user can be handed some, in the notebooks that a run leaves: nothing of it runs in a browser.

The worst case is looked at: output notebooks that JupyterLab trusts, whose HTML it does not sanitize, and nbconvert's page.
"""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import NOTEBOOKS, needs_chromium
from nbformat.sign import NotebookNotary
from tiny_runs import MARKER

pytestmark = [needs_chromium, pytest.mark.slow]

# What would run if a view put it into a page as it stands: each sets the flag, asks the user, or asks the network.
ATTACK = (
    "<script>window.pwned=1;alert(1)</script><img src=x onerror=\"window.pwned=1\"><img src='http://evil.invalid/p.png'>"
    "</style></pre></td></table></details></mark></textarea></title></script><svg/onload=window.pwned=1>"
    '"\'><iframe srcdoc="<script>parent.pwned=1</script>"></iframe><a href="javascript:window.pwned=1">link</a>'
    "[md](javascript:window.pwned=1) ![i](http://evil.invalid/i.png) {{7*7}} ${7*7} $\\href{javascript:window.pwned=1}{x}$ "
    "\x1b[2J\x1b]8;;http://evil.invalid\x07link\x1b]8;;\x07 \u202egnp.exe\u2066 zero\u200bwidth"
)


@pytest.fixture
def hostile(tiny_llama, tmp_path):
    """A folder in which every text that a notebook shows is hostile: (folder, papermill parameters)."""
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    template = (model / "chat_template.jinja").read_text()
    # A model's template may say what it likes; what it writes comes into every prompt.
    written = json.dumps(ATTACK).replace("{{7*7}}", "49")
    (model / "chat_template.jinja").write_text("{{ " + written + " }}" + template)
    rows = [
        {
            "prompt": f"Question: {ATTACK} {n}?\n\nDocuments:\n[1] {ATTACK}\n[2] {n}",
            "answers": [f"{ATTACK} {n}"],
            ATTACK: ATTACK,
        }
        for n in range(6)
    ]
    rows[1]["answers"] = [""]
    rows[2]["prompt"] += " <|im_end|>"
    name = "<img src=x onerror=window.pwned=1>&<script>window.pwned=1<|script>.jsonl"  # no / in a file's name
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "<b onmouseover=window.pwned=1>.txt").write_text(f"Answer. {ATTACK}")
    parameters = {
        "data_file": name,
        "output_key": "answers",
        "instruction": "<b onmouseover=window.pwned=1>.txt",
        "experiment": ATTACK,
        "dev_split": 2,
        "model.model_name_or_path": "model",
        "model.load_in_8bit": False,
        "model.completion_start": MARKER,
        "model.max_sequence_len": 4000,
        "model.lora.target_modules": ["q_proj"],
        "train.optim": "adamw_torch",
        "train.output_dir": "<svg onload=window.pwned=1>",
        "train.run_name": ATTACK,
        "train.logging_steps": 1,
        "train.max_steps": 1,
    }
    return tmp_path, parameters


def execute(name, folder, parameters, fails=False):
    """Run a notebook by papermill; the output notebook's path."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out = folder / f"out-{name}"
    try:
        papermill.execute_notebook(str(NOTEBOOKS / name), str(out), parameters, cwd=str(folder), progress_bar=False)
        assert not fails
    except PapermillExecutionError:
        assert fails
    return out


def to_html(path):
    from nbconvert import HTMLExporter

    page = path.with_suffix(".html")
    page.write_text(HTMLExporter().from_filename(str(path))[0], encoding="utf-8")
    return page


class Watch:
    """A page, and what happened in it that must not."""

    def __init__(self, browser, own):
        self.page, self.happened = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        self.page.on("dialog", lambda dialog: (self.happened.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url, own))

    def _asked(self, url, own):
        # nbconvert's page has its own libraries (MathJax, require.js, widgets) from fixed hosts.
        if "evil.invalid" in url or not re.match(
            rf"{re.escape(own)}|file:|data:|blob:|about:|ws:|https://cdnjs\.cloudflare\.com/|https://unpkg\.com/@jupyter-widgets/",
            url,
        ):
            self.happened.append(f"request {url}")

    def look(self):
        """Hover and click where a trap could be, then report."""
        page = self.page
        page.wait_for_timeout(500)
        # JupyterLab makes links of addresses in plain text (an error's), as every terminal does; a view makes none.
        for link in page.locator("a[href^='javascript:'], .jp-RenderedHTMLCommon a[href*='evil.invalid']").all():
            self.happened.append(f"link {link.get_attribute('href')}")
        inserted = page.evaluate(
            "document.querySelectorAll(\"svg[onload], img[onerror], [onmouseover], iframe[srcdoc*='pwned']\").length"
        )
        if inserted:
            self.happened.append(f"{inserted} hostile elements")
        if page.locator(".jp-OutputArea mjx-container, .jp-OutputArea .MathJax").count():
            self.happened.append("dollar signs became a formula")
        if page.evaluate("window.pwned"):
            self.happened.append("a script ran")
        return self.happened


def open_trusted(watch, lab, path):
    address, folder = lab
    shutil.copy(path, folder / path.name)
    NotebookNotary(data_dir=str(folder / ".data")).sign(nbformat.read(path, as_version=4))  # as `jupyter trust`
    watch.page.goto(f"{address}lab/tree/{path.name}?token=here&reset")
    watch.page.locator(".jp-Notebook .jp-OutputArea-output").first.wait_for(timeout=60_000, state="attached")
    watch.page.wait_for_timeout(2000)


CASES = [
    ("inspect_prompts.ipynb", {}, "Prompt of train row 0"),
    ("loss_mask.ipynb", {}, "Tokens of train row 0"),
    ("train.ipynb", {}, "adapter_model.safetensors"),
    # A failing run: the message holds the hostile name, the keys of a row, and the marker.
    ("train.ipynb", {"output_key": ATTACK + "x"}, "An Exception was encountered"),
    ("train.ipynb", {"model.completion_start": ATTACK + "x"}, "An Exception was encountered"),
]


@pytest.mark.parametrize(
    ("name", "change", "says"), CASES, ids=["prompts", "mask", "train", "wrong key", "wrong marker"]
)
def test_nothing_runs(name, change, says, hostile, lab, browser):
    folder, parameters = hostile
    out = execute(name, folder, {**parameters, **change}, fails=bool(change))
    for view in ("lab", "html"):
        watch = Watch(browser, lab[0])
        if view == "lab":
            open_trusted(watch, lab, out)
        else:
            watch.page.goto(to_html(out).as_uri(), wait_until="domcontentloaded")
        if view == "lab":  # which draws a long notebook bit by bit
            watch.page.get_by_text(says).first.wait_for(timeout=60_000)
        text = watch.page.locator("body").inner_text()
        assert says in text, text[:3000]
        assert "window.pwned" in text.replace("·", " ")  # the text is there to be read
        if os.environ.get("RAGFIT_SHOTS"):
            watch.page.screenshot(
                path=str(Path(os.environ["RAGFIT_SHOTS"], f"hostile-{name}-{view}-{'-'.join(change)}.png"))
            )
        assert watch.look() == [], (name, view)
        watch.page.close()


def test_a_view_that_does_not_escape_is_noticed(hostile, lab, browser, tmp_path):
    """The checks above can fail."""
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", data={"text/html": ATTACK})])
    path = tmp_path / "careless.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    for view in ("lab", "html"):
        watch = Watch(browser, lab[0])
        open_trusted(watch, lab, path) if view == "lab" else watch.page.goto(
            to_html(path).as_uri(), wait_until="domcontentloaded"
        )
        happened = watch.look()
        assert (
            "a script ran" in happened
            and (view == "html" or "dollar signs became a formula" in happened)
            and any(text.startswith("request") for text in happened)
        ), (view, happened)
        watch.page.close()
