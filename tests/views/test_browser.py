"""The notebooks in JupyterLab, in a real browser: run, look, and read what the page says."""

import re

import pytest
from browser import needs_chromium, place, save_shots
from tiny_runs import notebook_parameters

pytestmark = [needs_chromium, pytest.mark.slow]
HOSTILE = "<script>document.title='x'</script><img src=x onerror=alert(1)>"
FOLDED = "The middle is folded. " * 9 + "deep inside {0}. " + "And so on. " * 12
ROW = {"prompt": f"Question: {HOSTILE} {{0}}?\n\nDocuments:\n[1] {FOLDED}", "answers": "number {0} [1]"}


@pytest.fixture
def run_all(lab, browser, tiny_llama, write_rows, tmp_path):
    """`run_all(name, parameters, until)`: a notebook in which Run All Cells was chosen and which says `until`."""
    from playwright.sync_api import TimeoutError

    address, folder = lab
    page, errors = browser.new_page(viewport={"width": 1280, "height": 1400}), []
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.accept()))
    page.on("pageerror", lambda error: errors.append(str(error)))

    def run_all(name, until, **parameters):
        rows = [{key: text.format(n) for key, text in ROW.items()} for n in range(12)]
        place(folder, name, notebook_parameters(tiny_llama, write_rows(rows), tmp_path / "trained") | parameters)
        page.goto(f"{address}lab/tree/{name}?token=here&reset")
        # Before its session has started JupyterLab asks which kernel to take.
        page.get_by_text(re.compile(r"Python 3 \(ipykernel\) \| Idle")).wait_for(timeout=60_000)
        started = page.locator(".jp-InputArea-prompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
        for _ in range(5):  # on a busy machine it may say so before the kernel listens, and forget what it was asked
            page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
            page.get_by_text("Run All Cells", exact=True).click()
            try:
                started.wait_for(timeout=20_000)
                break
            except TimeoutError:
                continue
        page.get_by_text(until).first.wait_for(timeout=240_000)
        return page

    yield run_all
    text = page.locator(".jp-Notebook").inner_text()
    # The rows hold a script: it is text on the page, and nothing ran.
    assert "<scri" in text and page.title() != "x" and not errors
    assert "Traceback" not in text and "Error displaying" not in text
    page.close()


def test_train_notebook(run_all):
    page = run_all("train.ipynb", "adapter_model.safetensors")
    text = page.locator(".jp-Notebook").inner_text()
    for expected in ("What differs from training", "Before the run", "Answers on 3 dev rows", "done: step 5/5"):
        assert expected in text
    learned = page.locator(".jp-OutputArea mark").all_inner_texts()
    assert any("number" in mark and "<|im_end|>" in mark for mark in learned)
    assert page.locator(".jp-OutputArea img[src^='data:image/png']").count() == 1  # the curve, updated in place
    save_shots(page, "train")


@pytest.mark.parametrize("name, view", [("inspect_prompts.ipynb", "Prompt"), ("loss_mask.ipynb", "Tokens")])
def test_looking_notebook(run_all, name, view):
    page = run_all(name, "of train, row 0 of its file", rows=1, dev_split=None)
    explorer = page.locator(".ragfit-explorer")

    def field(label):
        """The input below a label."""
        box = explorer.locator(".widget-vbox", has=page.get_by_text(label, exact=True)).last
        return box.locator("input, textarea, select").first

    def fill(label, text, says):
        field(label).fill(text)
        field(label).press("Enter")
        explorer.get_by_text(says).first.wait_for()

    assert f"{view} of train row 0" in page.locator(".jp-Notebook").inner_text()  # static, above the widgets
    field("row").press("ArrowUp")  # the number of the row, by keyboard
    explorer.get_by_text(f"{view} of train, row 1 of its file").wait_for()
    fill("row", "8", f"{view} of train, row 8 of its file")
    explorer.get_by_text("9 of 12 rows").wait_for()
    if view == "Tokens":
        fold = explorer.locator("details").last
        assert "deep inside 8" not in fold.inner_text().replace("·", " ")
        fold.locator("summary").click()
        assert "deep inside 8" in fold.inner_text().replace("·", " ")
    # Another marker: the mask begins elsewhere, and the overrides say so; one that is wrong; and back again.
    copied = explorer.locator("textarea").last
    fill("model.completion_start", "<|im_start|>", "Changed: model.completion_start.")
    assert "model.completion_start='<|im_start|>'" in copied.input_value()
    assert "papermill notebooks/train.ipynb" in copied.input_value()
    if view == "Tokens":
        assert explorer.locator("mark").last.inner_text().replace("⏎", "").startswith("assistant")
    fill("model.completion_start", "<|im_nope|>", "'<|im_nope|>' does not occur")
    assert copied.input_value() == ""
    fill("model.completion_start", "<|im_start|>assistant\\n", "Nothing is changed.")
    # A search, and an instruction of the reader's own.
    fill("search", "deep inside 4", f"{view} of train, row 4 of its file")
    explorer.get_by_text("1 of 1 row").wait_for()
    fill("instruction", "Answer in rhymes.", "Save the text of instruction as instruction-")
    save_shots(page, name.removesuffix(".ipynb"))
