"""The notebooks in JupyterLab, in a real browser: run, look, and read what the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs it")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab server on loopback over an empty folder: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    # All cells stay in the page, and nothing asks for attention.
    for plugin, settings in (
        ("notebook-extension/tracker", {"windowingMode": "none"}),
        ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
    ):
        path = folder / ".config" / "lab" / "user-settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
        "--IdentityProvider.token=here", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_DATA_DIR": str(folder / ".data"), "HF_HUB_OFFLINE": "1"}
    log = open(folder / "lab.log", "w+")
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        for _ in range(240):
            found = re.search(r"http://127\.0\.0\.1:\d+/", Path(log.name).read_text())
            if found:
                break
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.25)
        yield found.group(), folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


def place(folder, name, parameters):
    """Copy a notebook into the server's folder with its parameters cell as a user would have changed it."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    nbformat.write(notebook, folder / name)


def run_all(page, address, name, until, timeout=240):
    """Open a notebook, choose Run All Cells, wait until a cell says `until`, and save it."""
    page.goto(f"{address}lab/tree/{name}?token=here&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector(".jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.get_by_text(until).first.wait_for(timeout=timeout * 1000)


def save_shots(page, name):
    """Keep pictures of the notebook from top to bottom where RAGFIT_SHOTS names a folder."""
    if not os.environ.get("RAGFIT_SHOTS"):
        return
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    for number in range(cells.count()):
        cells.nth(number).scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        page.screenshot(path=str(Path(os.environ["RAGFIT_SHOTS"], f"{name}-{number:02}.png")))


@pytest.fixture
def tiny_parameters(tiny_llama, write_rows, tmp_path):
    rows = [
        {"prompt": f"Question: <script>document.title='x'</script> {n}?\n\nDocuments:\n[1] {n}.", "answers": [f"number {n} [1]"]}
        for n in range(12)
    ]
    return {
        "data_file": str(write_rows(rows)),
        "output_key": "answers",
        "dev_split": 0.25,
        "model.model_name_or_path": str(tiny_llama),
        "model.load_in_8bit": False,
        "model.completion_start": "<|im_start|>assistant\n",
        "model.lora.target_modules": ["q_proj"],
        "train.optim": "adamw_torch",
        "train.output_dir": str(tmp_path / "trained"),
        "train.logging_steps": 1,
    }


def test_train_notebook(lab, browser, tiny_parameters):
    address, folder = lab
    plain = {key: value for key, value in tiny_parameters.items()}
    place(folder, "train.ipynb", plain)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    errors = []
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.accept()))
    run_all(page, address, "train.ipynb", "adapter_model.safetensors")
    text = page.locator(".jp-Notebook").inner_text()
    for expected in ("What differs from training", "Rows and tokens", "Before the run", "Answers on 3 dev rows", "done: step 5/5"):
        assert expected in text
    assert "Traceback" not in text
    learned = page.locator(".jp-OutputArea mark").all_inner_texts()
    assert any("number" in mark and "<|im_end|>" in mark for mark in learned)
    assert page.locator(".jp-OutputArea img[src^='data:image/png']").count() == 1  # the curve, updated in place
    save_shots(page, "train")
    # The rows hold a script: it is text on the page, and nothing ran.
    assert "<script>document.title='x'" in text.replace("·", " ") and page.title() != "x" and not errors
    page.close()
