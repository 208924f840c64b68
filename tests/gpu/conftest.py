"""Where the tests of this folder run, and the small models that they share."""

import json
from pathlib import Path

import pytest
from tiny_runs import question_rows

from gpu.on_device import ON_CPU, documented, make_phi3


def pytest_collection_modifyitems(items):
    """Skip what is in this folder where there is no GPU, before any fixture is made."""
    import torch

    reason = (
        "no CUDA; `pytest tests/gpu`, by itself, sees a GPU where there is one (RAGFIT_GPU_TESTS_ON=cpu goes without)"
    )
    for item in items:
        if Path(__file__).parent in item.path.parents and not ON_CPU and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def phi3(tmp_path_factory):
    """A folder with a Phi-3 of four layers in bfloat16, and a tokenizer with Phi-3's own template."""
    return make_phi3(tmp_path_factory.mktemp("phi3"))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """Twelve rows of different lengths, whose answers have something to learn in common."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in question_rows(12)))
    return path


@pytest.fixture
def config(phi3, rows_file, tmp_path):
    """`config(*overrides, model=phi3)`: as `gpu.on_device.documented`."""
    return lambda *overrides, model=phi3: documented(model, rows_file, tmp_path / "out", *overrides)
