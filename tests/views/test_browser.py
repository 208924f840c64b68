"""The notebooks in JupyterLab, in a real browser: run, look, and read what the page says."""

import re

import pytest
from browser import needs_chromium, place, save_shots
from tiny_runs import notebook_parameters

pytestmark = [needs_chromium, pytest.mark.slow]


def start_all(page, address, name):
    """Open a notebook and choose Run All Cells."""
    from playwright.sync_api import TimeoutError

    page.goto(f"{address}lab/tree/{name}?token=here&reset")
    # Before its session has started JupyterLab asks which kernel to take.
    page.get_by_text(re.compile(r"Python 3 \(ipykernel\) \| Idle")).wait_for(timeout=60_000)
    started = page.locator(".jp-InputArea-prompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(5):  # on a busy machine it may say so before the kernel listens, and forget what it was asked
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            return started.wait_for(timeout=20_000)
        except TimeoutError:
            continue
    raise AssertionError(f"{name} did not start to run")


def run_all(page, address, name, until, timeout=240):
    """Open a notebook, choose Run All Cells, and wait until a cell says `until`."""
    start_all(page, address, name)
    page.get_by_text(until).first.wait_for(timeout=timeout * 1000)


@pytest.fixture
def tiny_parameters(tiny_llama, write_rows, tmp_path):
    rows = [
        {
            "prompt": f"Question: <script>document.title='x'</script> {n}?\n\nDocuments:\n[1] {n}.",
            "answers": [f"number {n} [1]"],
        }
        for n in range(12)
    ]
    return notebook_parameters(tiny_llama, write_rows(rows), tmp_path / "trained")


def test_train_notebook(lab, browser, tiny_parameters):
    address, folder = lab
    place(folder, "train.ipynb", tiny_parameters)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors = []
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.accept()))
    run_all(page, address, "train.ipynb", "adapter_model.safetensors")
    text = page.locator(".jp-Notebook").inner_text()
    for expected in (
        "What differs from training",
        "Rows and tokens",
        "Before the run",
        "Answers on 3 dev rows",
        "done: step 5/5",
    ):
        assert expected in text
    assert "Traceback" not in text
    learned = page.locator(".jp-OutputArea mark").all_inner_texts()
    assert any("number" in mark and "<|im_end|>" in mark for mark in learned)
    assert page.locator(".jp-OutputArea img[src^='data:image/png']").count() == 1  # the curve, updated in place
    save_shots(page, "train")
    # The rows hold a script: it is text on the page, and nothing ran.
    assert "<script>document.title='x'" in text.replace("·", " ") and page.title() != "x" and not errors
    page.close()


# --- The notebooks that only look: their widgets, moved as a reader moves them -------------------------------------------


@pytest.fixture
def looking_parameters(tiny_llama, write_rows):
    rows = [
        {
            "prompt": f"Question: what is {n}?\n\nDocuments:\n[1] {'The middle is folded. ' * 9}deep inside {n}. {'And so on. ' * 12}",
            "answers": [f"number {n} <img src=x onerror=alert(1)>"],
        }
        for n in range(9)
    ]
    return {
        "data_file": str(write_rows(rows)),
        "output_key": "answers",
        "model.model_name_or_path": str(tiny_llama),
        "model.completion_start": "<|im_start|>assistant\n",
        "rows": 1,
    }


def open_looking(page, address, name):
    """Run all cells once the kernel is there, and wait for the widgets."""
    start_all(page, address, name)
    explorer = page.locator(".ragfit-explorer")
    explorer.get_by_text("row 0 of its file").wait_for(timeout=120_000)
    return explorer


def field(explorer, label):
    """The input below a label."""
    return (
        explorer.locator(".widget-vbox", has=explorer.page.get_by_text(label, exact=True))
        .last.locator("input, textarea, select")
        .first
    )


@pytest.mark.parametrize("name, view", [("inspect_prompts.ipynb", "Prompt"), ("loss_mask.ipynb", "Tokens")])
def test_looking_notebook(lab, browser, looking_parameters, name, view):
    address, folder = lab
    place(folder, name, looking_parameters)
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    errors = []
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.accept()))
    page.on("pageerror", lambda error: errors.append(str(error)))
    explorer = open_looking(page, address, name)
    assert f"{view} of train row 0" in page.locator(".jp-Notebook").inner_text()  # static, above the widgets

    # The number of the row, by keyboard.
    number = field(explorer, "row")
    number.press("ArrowUp")
    explorer.get_by_text(f"{view} of train, row 1 of its file").wait_for()
    number.fill("8")
    number.press("Enter")
    explorer.get_by_text(f"{view} of train, row 8 of its file").wait_for()
    explorer.get_by_text("9 of 9 rows").wait_for()

    # A fold.
    if name.startswith("loss"):
        fold = explorer.locator("details").nth(1)  # of the documents; the first is the instruction's
        assert "tokens without loss" in fold.locator("summary").inner_text()
        assert fold.get_attribute("open") is None
        shown = fold.inner_text()
        fold.locator("summary").click()
        assert "deep inside 8" in fold.inner_text().replace("·", " ") and "deep inside 8" not in shown.replace("·", " ")
        assert "<|im_end|>" in explorer.locator("mark").last.inner_text()
    else:
        explorer.get_by_text("deep inside 8").first.wait_for()

    # Another marker: the mask begins elsewhere, and the overrides say so.
    marker = field(explorer, "model.completion_start")
    assert marker.input_value() == "<|im_start|>assistant\\n"
    marker.fill("<|im_start|>")
    marker.press("Enter")
    explorer.get_by_text("Changed: model.completion_start.").wait_for()
    if name.startswith("loss"):
        assert explorer.locator("mark").last.inner_text().replace("⏎", "").startswith("assistant")
    copied = explorer.locator("textarea").last
    assert "model.completion_start='<|im_start|>'" in copied.input_value()
    assert "papermill notebooks/train.ipynb" in copied.input_value()

    # One that is wrong: a message, no traceback, and back again.
    marker.fill("<|im_nope|>")
    marker.press("Enter")
    explorer.get_by_text("'<|im_nope|>' does not occur").wait_for()
    assert copied.input_value() == ""
    marker.fill("<|im_start|>assistant\\n")
    marker.press("Enter")
    explorer.get_by_text("Nothing is changed.").wait_for()

    # A search, and an instruction of the reader's own.
    search = field(explorer, "search")
    search.fill("deep inside 4")
    search.press("Enter")
    explorer.get_by_text(f"{view} of train, row 4 of its file").wait_for()
    explorer.get_by_text("1 of 1 row").wait_for()
    field(explorer, "instruction").fill("Answer in rhymes.")
    explorer.get_by_text("Save the text of instruction as instruction-").wait_for()
    if name.startswith("inspect"):
        explorer.locator("td", has_text="Answer in rhymes.").wait_for()
    text = page.locator(".jp-Notebook").inner_text()
    assert "Traceback" not in text and "Error displaying" not in text and not errors
    save_shots(page, name.removesuffix(".ipynb"))
    page.close()
