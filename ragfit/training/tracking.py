"""Experiment tracking: transformers' callbacks tell Weights & Biases, TensorBoard, MLflow or trackio of a run.

They get the arguments and the configuration without secrets (`Arguments.to_dict`). A tracker that cannot start ends
the run at its start.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

if TYPE_CHECKING:
    from ragfit.training.trainer import RagfitTrainer


@contextlib.contextmanager
def tracked(trainer: "RagfitTrainer") -> Iterator[None]:
    """A context around training in which trackers run, W&B's in the run's own folder."""
    args, run = trainer.args, contextlib.nullcontext()
    if "wandb" in args.report_to and trainer.is_world_process_zero():
        import wandb

        if wandb.run is None:  # else a run of the user's own is used and left open
            run = wandb.init(
                entity=args.told.get("wandb_entity"),
                project=os.environ.get("WANDB_PROJECT", args.project),
                dir=args.output_dir,
                name=args.run_name,
                group=args.told.get("experiment"),
                # Git's remote may hold a token, the command line an override with one, the console what is printed.
                settings=wandb.Settings(disable_git=True, disable_code=True, x_disable_meta=True, console="off"),
            )
    try:
        with run:
            yield
    finally:
        for name in args.report_to:  # an evaluation after the run has nobody to tell
            trainer.remove_callback(INTEGRATION_TO_CALLBACK[name])
