"""Hostile text, wherever a user can be handed some, in the notebooks that a run leaves: nothing of it runs in a browser.

The worst case is looked at: output notebooks that JupyterLab trusts, whose HTML it does not sanitize, and nbconvert's page.
"""

import json
import re
import shutil

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
    template = model / "chat_template.jinja"
    # A model's template may say what it likes; what it writes comes into every prompt.
    template.write_text("{{ " + json.dumps(ATTACK).replace("{{7*7}}", "49") + " }}" + template.read_text())
    prompt = f"Question: {ATTACK} %d?\n\nDocuments:\n[1] {ATTACK}\n[2] %d"
    rows = [{"prompt": prompt % (n, n), "answers": [f"{ATTACK} {n}"], ATTACK: ATTACK} for n in range(6)]
    rows[1]["answers"] = [""]
    rows[2]["prompt"] += " <|im_end|>"
    data = "<img src=x onerror=window.pwned=1>&<script>window.pwned=1<|script>.jsonl"  # no / in a file's name
    (tmp_path / data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    instruction = "<b onmouseover=window.pwned=1>.txt"
    (tmp_path / instruction).write_text(f"Answer. {ATTACK}")
    model_keys = {"model_name_or_path": "model", "load_in_8bit": False, "completion_start": MARKER}
    model_keys |= {"max_sequence_len": 4000, "lora.target_modules": ["q_proj"]}
    train_keys = {"optim": "adamw_torch", "logging_steps": 1, "max_steps": 1, "run_name": ATTACK}
    train_keys["output_dir"] = "<svg onload=window.pwned=1>"
    parameters = {"data_file": data, "output_key": "answers", "instruction": instruction, "experiment": ATTACK}
    parameters |= {f"model.{key}": value for key, value in model_keys.items()}
    return tmp_path, parameters | {f"train.{key}": value for key, value in train_keys.items()} | {"dev_split": 2}


def execute(name, folder, parameters, fails):
    """Run a notebook by papermill; the output notebook's path."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out, failed = folder / f"out-{name}", False
    try:
        papermill.execute_notebook(str(NOTEBOOKS / name), str(out), parameters, cwd=str(folder), progress_bar=False)
    except PapermillExecutionError:
        failed = True
    assert failed == fails
    return out


@pytest.fixture
def look(lab, browser):
    """`look(notebook, view, says)`: (the text of its page in JupyterLab or as HTML, what happened there that must not)."""
    address, folder = lab

    def asked(url):
        # nbconvert's page has its own libraries (MathJax, require.js, widgets) from fixed hosts.
        own = rf"{re.escape(address)}|file:|data:|blob:|about:|ws:|https://cdnjs\.cloudflare\.com/|https://unpkg\.com/@jupyter-widgets/"
        return [] if re.match(own, url) and "evil.invalid" not in url else [f"request {url}"]

    def look(path, view, says=""):
        page, happened = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.on("dialog", lambda dialog: (happened.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: happened.extend(asked(request.url)))
        if view == "lab":
            shutil.copy(path, folder / path.name)
            NotebookNotary(data_dir=str(folder / ".data")).sign(nbformat.read(path, as_version=4))  # as `jupyter trust`
            page.goto(f"{address}lab/tree/{path.name}?token=here&reset")
            page.locator(".jp-Notebook .jp-OutputArea-output").first.wait_for(timeout=120_000, state="attached")
            if says:  # a long notebook is drawn bit by bit
                page.get_by_text(says).locator("visible=true").first.wait_for(timeout=120_000)
        else:
            from nbconvert import HTMLExporter

            html = path.with_suffix(".html")
            html.write_text(HTMLExporter().from_filename(str(path))[0], encoding="utf-8")
            page.goto(html.as_uri(), wait_until="domcontentloaded")
        page.wait_for_timeout(2500)
        # JupyterLab makes links of addresses in plain text (an error's), as every terminal does; a view makes none.
        for link in page.locator("a[href^='javascript:'], .jp-RenderedHTMLCommon a[href*='evil.invalid']").all():
            happened.append(f"link {link.get_attribute('href')}")
        inserted = "svg[onload], img[onerror], [onmouseover], iframe[srcdoc*='pwned']"
        happened += ["hostile elements"] * (page.locator(inserted).count() > 0)
        formulas = page.locator(".jp-OutputArea mjx-container, .jp-OutputArea .MathJax").count()
        happened += ["dollar signs became a formula"] * (formulas > 0)
        happened += ["a script ran"] * bool(page.evaluate("window.pwned"))
        text = page.locator("body").inner_text()
        page.close()
        return text, happened

    return look


CASES = {
    "prompts": ("inspect_prompts.ipynb", {}, "Prompt of train row 0"),
    "mask": ("loss_mask.ipynb", {}, "Tokens of train row 0"),
    "train": ("train.ipynb", {}, "adapter_model.safetensors"),
    # A failing run: the message holds the marker and a row's text.
    "wrong marker": ("train.ipynb", {"model.completion_start": ATTACK + "x"}, "An Exception was encountered"),
}


@pytest.mark.parametrize(("name", "change", "says"), CASES.values(), ids=CASES)
def test_nothing_runs(name, change, says, hostile, look):
    folder, parameters = hostile
    out = execute(name, folder, {**parameters, **change}, fails=bool(change))
    for view in ("lab", "html"):
        text, happened = look(out, view, says)
        assert happened == [], view
        assert says in text and "window.pwned" in text.replace("·", " ")  # the text is there to be read


@pytest.mark.parametrize("view", ["lab", "html"])
def test_a_view_that_does_not_escape_is_noticed(look, tmp_path, view):
    """The checks above can fail."""
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", data={"text/html": ATTACK})])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "careless.ipynb")
    _, happened = look(tmp_path / "careless.ipynb", view)
    assert "a script ran" in happened and any(text.startswith("request") for text in happened)
    assert view == "html" or "dollar signs became a formula" in happened
