"""What the documents point to is there."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "configs/README.md", "tests/benchmarks/README.md"]


def anchors(path):
    """What a link into a Markdown file may name."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", path.read_text(encoding="utf-8"))
    for target, anchor in links:
        found = (path.parent / target) if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found / "README.md" if found.is_dir() else found), (target, anchor)


def test_every_key_of_the_default_configuration_is_explained():
    text = (ROOT / "configs/README.md").read_text(encoding="utf-8")
    explained = {part for code in re.findall(r"`([\w.]+)`", text) for part in code.split(".")}
    cfg = OmegaConf.load(ROOT / "configs/training.yaml")
    keys = {*cfg, *cfg.model, *cfg.model.lora, *cfg.train}
    assert keys - explained == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_of_the_repository_are_there(document):
    named = re.findall(r"(?:tests|configs|notebooks)/[\w/.-]+\.(?:py|ipynb|yaml)", (ROOT / document).read_text("utf-8"))
    assert all((ROOT / name).is_file() for name in named), named
