"""How torch's threads wait, as OpenMP's own runtime says when it is loaded: in a process, and in a notebook's kernel."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SHORTLY, PASSIVE, ACTIVE = (f"GOMP_SPINCOUNT = '{looks}'" for looks in (10_000, 0, 30_000_000_000))


def told(*words, policy=None):
    """What a command prints of the settings that libgomp has read."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": policy} if policy else {})}
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    if "OPENMP DISPLAY ENVIRONMENT" not in result.stderr + result.stdout:
        pytest.skip("torch's OpenMP is not libgomp here")
    return result.stderr + result.stdout


@pytest.mark.parametrize(("policy", "expected"), [(None, SHORTLY), ("passive", PASSIVE), ("active", ACTIVE)])
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(policy, expected):
    assert expected in told("-c", "import ragfit, torch", policy=policy)


def test_without_the_kit_they_spin():
    """What the first above would say if nothing were set."""
    assert SHORTLY not in told("-c", "import torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "grounding", "loss_mask"])
def test_threads_soon_sleep_in_a_kernel(name, tmp_path):
    """The notebook's own first cell, then torch."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells = [first, nbformat.v4.new_code_cell("import torch")]
    nbformat.write(notebook, tmp_path / "in.ipynb")
    assert SHORTLY in told("-m", "papermill", tmp_path / "in.ipynb", tmp_path / "out.ipynb", "--log-output")
