"""Experiment tracking: what Weights & Biases, TensorBoard, MLflow or trackio are told of a run.

transformers' callbacks log the metrics. Here the services get the configuration without secrets and the report on the
data and, where they show HTML, the loss mask of a few rows. All of it stays in `train.output_dir` unless the user's own
settings of a service say otherwise, nobody is asked to log in, and a tracker that fails never ends a run.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ragfit.config.save import to_yaml, without_secrets
from ragfit.draw.view import page
from ragfit.errors import ConfigError, Interrupted, first_line
from ragfit.secrets import mask

if TYPE_CHECKING:
    import wandb

    from ragfit.data.report import Report
    from ragfit.training.trainer import RagfitTrainer

logger = logging.getLogger(__name__)

PROJECT = "ragfit"
ROWS = 3  # shown with their loss mask
EXTRAS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "mlflow": ("mlflow",)}


def prepare_trackers(args: TrainingArguments) -> None:
    """Before the model is loaded: are the packages of `train.report_to` there, and where do they write?

    Raises:
        ConfigError: a package is not installed.
    """
    for name in args.report_to:
        if name in EXTRAS and not any(importlib.util.find_spec(package) for package in EXTRAS[name]):
            problem = f"{name} needs the package {name}, which is not installed"
            raise ConfigError("train.report_to", problem, f"Install it with: pip install 'ragfit[{name}]'")
    # Read by the packages when they are imported; what the user has set stays.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if "trackio" in args.report_to:
        os.environ.setdefault("TRACKIO_DIR", str(Path(args.output_dir, "trackio").absolute()))


@contextlib.contextmanager
def tracked(trainer: "RagfitTrainer") -> Iterator[None]:
    """A context around training and saving in which the trackers of `report_to` and `use_wandb` are told of it."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    trackers = []
    for name in trainer.args.report_to:
        callback = trainer.pop_callback(INTEGRATION_TO_CALLBACK[name])
        trackers.append(TRACKERS.get(name, Tracker)(name, callback, trainer))
        trainer.add_callback(trackers[-1])
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except (Interrupted, KeyboardInterrupt):
        outcome = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.lost = False  # what can be closed is closed
            tracker.attempt(tracker.finish, outcome)
            trainer.remove_callback(tracker)  # an evaluation after the run has nobody to tell


class Tracker:
    """Stands in for transformers' callback of a service, whose errors are told once and end nothing but itself.

    The subclasses add what this kit tells. They act in the first of several processes alone.
    """

    def __init__(self, name: str, callback: TrainerCallback, trainer: "RagfitTrainer"):
        self.name, self.callback, self.trainer, self.cfg = name, callback, trainer, trainer.cfg
        self.lost = False

    def start(self) -> None:
        """Before transformers' callback sets itself up."""

    def tell(self) -> None:
        """When it has done so."""

    def finish(self, outcome: str) -> None:
        """When the run is over: "finished", "interrupted" or "failed"."""

    def attempt(self, do: Callable, *args, **kwargs) -> None:
        if self.lost:
            return
        try:
            do(*args, **kwargs)
        except Exception as error:  # a full disk, a broken login, a network that is down: the services' own errors
            self.lost = True
            reason = mask(f"{type(error).__name__}: {first_line(error)}")
            logger.warning("%s failed (%s). The run goes on without it.", self.name, reason)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            self.attempt(self.start)
        self.attempt(self.callback.on_train_begin, args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.attempt(self.tell)

    def __getattr__(self, event: str) -> Callable:
        """All other events go to transformers' callback."""
        return functools.partial(self.attempt, getattr(self.callback, event))

    # What there is to tell.

    def config(self) -> dict[str, Any]:
        return without_secrets(self.cfg)

    def report(self) -> "Report":
        """The report on the data, its file named as the configuration may tell."""
        return dataclasses.replace(self.trainer.prepared.report, data_file=str(self.config()["data_file"]))

    def pages(self) -> dict[str, str]:
        """The report and the loss mask of the first rows as pages of HTML, by name."""
        from ragfit.views import ReportView, TokenView

        prepared = self.trainer.prepared
        rows = [TokenView(prepared, index) for index in range(min(ROWS, len(prepared.train)))]
        return {
            "report": clean(page("Data", [ReportView(self.report())])),
            "loss_mask": clean(page("What is learned", rows)),
        }


def clean(text: str) -> str:
    """A text without tokens of known services, and with half characters as escapes."""
    return mask(text).encode("utf-8", "backslashreplace").decode("utf-8")


class Wandb(Tracker):
    """A run of its own, unless the user has one open; the code, the command line and the environment stay here."""

    run = None  # where it is not the user's own

    def start(self) -> None:
        import wandb

        if wandb.run is not None:
            return
        mode = os.environ.get("WANDB_MODE")
        try:
            # A headless run must not wait for a login that nobody types.
            if mode is None and not wandb.login(prompt=False, verify=False):
                raise wandb.errors.UsageError("not logged in to wandb")
            self.run = self._init(mode)
        except wandb.errors.Error as error:
            reason = mask(first_line(error))
            logger.warning("use_wandb: %s, so the run is kept offline. Send it later with `wandb sync`.", reason)
            self.run = self._init("offline")

    def _init(self, mode: str | None) -> "wandb.Run":
        import wandb

        config, args = self.config(), self.trainer.args
        # Git's remote may hold a token, the command line an override with one, the console whatever is printed.
        settings = wandb.Settings(
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            console=os.environ.get("WANDB_CONSOLE", "off"),
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 600)),  # seconds to send what is left
        )
        return wandb.init(
            project=self.cfg.train.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=self.cfg.get("wandb_entity"),
            group=config.get("experiment"),
            name=args.to_dict().get("run_name"),
            job_type="train",
            config=config,
            dir=args.output_dir,
            mode=mode,
            settings=settings,
        )

    def tell(self) -> None:
        import wandb

        show = functools.partial(wandb.Html, inject=False, data_is_not_path=True)
        wandb.run.log({f"data/{name}": show(text) for name, text in self.pages().items()})

    def finish(self, outcome: str) -> None:
        if self.run:
            self.run.finish(exit_code={"finished": 0, "interrupted": 255}.get(outcome, 1))


class Mlflow(Tracker):
    """A run in `output_dir/mlflow.db`, or wherever the user's own settings of MLflow say."""

    own = default_place = False

    def start(self) -> None:
        import mlflow

        self.own, self.default_place = mlflow.active_run() is None, not mlflow.is_tracking_uri_set()
        if not (self.own and self.default_place):
            return
        place = Path(self.trainer.args.output_dir).absolute()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.config().get("experiment") or PROJECT
        place.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        known = mlflow.get_experiment_by_name(name)
        # By default MLflow would put the pages into the working directory.
        number = known.experiment_id if known else mlflow.create_experiment(name, (place / "mlruns").as_uri())
        mlflow.start_run(experiment_id=number, run_name=self.trainer.args.to_dict().get("run_name"))

    def tell(self) -> None:
        import mlflow

        mlflow.log_text(to_yaml(self.cfg), "ragfit.yaml")
        for name, text in self.pages().items():
            mlflow.log_text(text, f"{name}.html")

    def finish(self, outcome: str) -> None:
        import mlflow

        if self.own and mlflow.active_run():
            mlflow.end_run({"finished": "FINISHED", "interrupted": "KILLED"}.get(outcome, "FAILED"))
        if self.default_place:
            mlflow.set_tracking_uri(None)


class TensorBoard(Tracker):
    """Event files in `output_dir/runs`, or in TENSORBOARD_LOGGING_DIR."""

    def tell(self) -> None:
        for name, text in (("configuration", to_yaml(self.cfg)), ("data", str(self.report()))):
            self.callback.tb_writer.add_text(name, textwrap.indent(clean(text), "    "))  # Markdown's way to quote


class Trackio(Tracker):
    """A project in `output_dir/trackio`, or in TRACKIO_DIR."""

    def tell(self) -> None:
        import trackio

        trackio.config.update({"ragfit": self.config()})
        trackio.log({f"data/{name}": trackio.Html(text) for name, text in self.pages().items()})


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow, "tensorboard": TensorBoard, "trackio": Trackio}
