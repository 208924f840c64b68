"""For the merge: goes with runs/table.py."""

from pathlib import Path

from omegaconf import OmegaConf

from ragfit.config.load import read_yaml


def load_yaml(path: Path) -> dict:
    return OmegaConf.to_container(read_yaml(path), resolve=False)
