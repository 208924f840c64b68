"""JupyterLab and a Chromium for the tests that look at notebooks as their readers do. Both are started once."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs it")


@pytest.fixture(scope="session")
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
    env = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "JUPYTER_DATA_DIR": str(folder / ".data"),
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    try:
        for _ in range(240):
            found = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
            if found:
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        yield found.group(), folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


def place(folder, name, parameters):
    """Copy a notebook into the server's folder with its parameters cell as a user would have changed it."""
    import nbformat  # which a machine with a GPU may lack

    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    nbformat.write(notebook, folder / name)


def save_shots(page, name):
    """Keep pictures of the notebook from top to bottom where RAGFIT_SHOTS names a folder."""
    if not os.environ.get("RAGFIT_SHOTS"):
        return
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    for number in range(cells.count()):
        cells.nth(number).scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        page.screenshot(path=str(Path(os.environ["RAGFIT_SHOTS"], f"{name}-{number:02}.png")))
