"""Experiment tracking: transformers' callbacks tell Weights & Biases, TensorBoard, MLflow or trackio of a run.

They get the arguments and the configuration without secrets (`Arguments.to_dict`), and write into `train.output_dir`
unless the user's own settings of a service say otherwise. A tracker that cannot start ends the run at its start.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_reporting_integration_callbacks,
)

from ragfit.config.save import without_secrets
from ragfit.draw.progress import say

if TYPE_CHECKING:
    from ragfit.training.arguments import Arguments
    from ragfit.training.trainer import RagfitTrainer


def check_trackers(args: "Arguments") -> None:
    """Before the model is loaded: the packages of `train.report_to` are there, else transformers says which is not."""
    if "trackio" in args.report_to:  # it reads this when it is imported
        os.environ.setdefault("TRACKIO_DIR", str(Path(args.output_dir, "trackio").absolute()))
    for make in get_reporting_integration_callbacks(args.report_to):
        make()


@contextlib.contextmanager
def tracked(trainer: "RagfitTrainer") -> Iterator[None]:
    """A context around training in which the trackers of `report_to` and `use_wandb` write where this run does."""
    args, cfg, out = trainer.args, without_secrets(trainer.cfg), Path(trainer.args.output_dir).absolute()
    project, experiment = cfg["train"].get("project"), cfg.get("experiment")
    defaults = {
        "WANDB_DIR": out, "MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}",
        "WANDB_PROJECT": "ragfit", "WANDB_ENTITY": cfg.get("wandb_entity"), "WANDB_RUN_GROUP": experiment,
        "MLFLOW_EXPERIMENT_NAME": experiment or "ragfit",
        # Git's remote may hold a token, the command line an override with one, the console whatever is printed.
        "WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true", "WANDB__DISABLE_META": "true",
        "WANDB_CONSOLE": "off", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    settings = {name: str(value) for name, value in defaults.items() if value and name not in os.environ}
    settings |= {"WANDB_PROJECT": project} if project else {}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    own_wandb = "wandb" in args.report_to and trainer.is_world_process_zero() and _starts_wandb(args.run_name)
    failed = True
    try:
        yield
        failed = False
    finally:
        if own_wandb:
            sys.modules["wandb"].finish(exit_code=int(failed))
            sys.modules["wandb"].teardown()  # another run of this process reads its own settings
        if failed and "mlflow" in args.report_to and "mlflow" in sys.modules:
            sys.modules["mlflow"].end_run("FAILED")
        for name in args.report_to:  # an evaluation after the run has nobody to tell
            trainer.remove_callback(INTEGRATION_TO_CALLBACK[name])
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def _starts_wandb(run_name: str | None) -> bool:
    """Whether the run there will be ours; a headless run must not wait for a login that nobody types."""
    import wandb

    if wandb.run is None and "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
        say("use_wandb: not logged in, so the run is kept offline. Send it later with `wandb sync`.")
        wandb.init(mode="offline", project=os.environ["WANDB_PROJECT"], name=run_name)  # else transformers does
        return True
    return wandb.run is None
