"""Experiment tracking: what a run tells Weights & Biases, TensorBoard, MLflow or trackio, and what it keeps to itself.

transformers' callbacks log the metrics; here they get the configuration without secrets, the report on the data, a few
rows as they are learned, and where the adapter is. Everything stays in `train.output_dir` unless the user's own
settings of a service say otherwise, nobody is asked to log in, and a tracker that fails never ends a run.
"""

import contextlib
import dataclasses
import html
import importlib.util
import logging
import os
from pathlib import Path

from transformers import TrainerCallback

from ragfit.config.save import to_yaml, without_secrets
from ragfit.errors import ConfigError, Interrupted, first_line
from ragfit.runs.card import fence, package_versions
from ragfit.secrets import mask

logger = logging.getLogger(__name__)

PROJECT = "ragfit"
ROWS = 3  # shown as they are learned
FINISH = 600.0  # seconds for wandb to send what is left when the run is over
EXTRAS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "mlflow": ("mlflow",)}


def prepare_trackers(args):
    """Before the model is loaded: are the packages there, and where do they write?

    Args:
        args: `transformers.TrainingArguments`; what they leave open of trackio's is set.

    Raises:
        ConfigError: a service of `train.report_to` whose package is not installed.
    """
    for name in args.report_to:
        if name in EXTRAS and not any(importlib.util.find_spec(package) for package in EXTRAS[name]):
            raise ConfigError(
                f"train.report_to={name} needs the package {name}, which is not installed. "
                f"Install it with: pip install 'ragfit[{name}]'"
            )
    # Read by the packages when they are imported; what the user has set stays.
    if "wandb" in args.report_to:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if "mlflow" in args.report_to:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if "trackio" in args.report_to:
        os.environ.setdefault("TRACKIO_DIR", str(Path(args.output_dir, "trackio").absolute()))
        if args.project == "huggingface":
            args.project = PROJECT
        if args.trackio_static_space_id is None:
            args.trackio_static_space_id = False  # else a push of checkpoints makes a Space


@contextlib.contextmanager
def tracked(cfg, trainer):
    """A context around training and saving, in which `report_to` and `use_wandb` are served.

    Args:
        cfg: the resolved configuration; `experiment` is the run's group, `wandb_entity` its entity at wandb.
        trainer: a `RagfitTrainer`.

    Yields:
        Tracking; with nothing to serve it does nothing.
    """
    tracking, outcome = Tracking(cfg, trainer), "failed"
    tracking.start()
    try:
        yield tracking
        outcome = "finished"
    except (Interrupted, KeyboardInterrupt):
        outcome = "interrupted"
        raise
    finally:
        tracking.finish(outcome)


class Tracking:
    """All services of one run, each kept from ending it."""

    def __init__(self, cfg, trainer):
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        self.cfg, self.trainer = cfg, trainer
        self.prepared, self.args = trainer.prepared, trainer.args
        names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
        self.services = []
        for place, callback in enumerate(trainer.callback_handler.callbacks):
            if name := names.get(type(callback)):
                guarded = trainer.callback_handler.callbacks[place] = Guarded(callback, name)
                if trainer.is_world_process_zero():
                    self.services.append(SERVICES.get(name, Service)(self, guarded))

    def start(self):
        for service in self.services:
            service.attempt("start")
        if self.services:
            self.trainer.add_callback(Began(self))

    def began(self):
        for service in self.services:
            service.attempt("began")

    def saved(self, folder, address=None):
        """The adapter is on disk and, where `address` is given, on the hub."""
        for service in self.services:
            service.attempt("saved", str(folder), address)

    def finish(self, outcome):
        for service in self.services:
            service.guarded.lost = False  # what can be closed is closed
            service.attempt("finish", outcome)
        callbacks = self.trainer.callback_handler.callbacks  # an evaluation after the run has nobody to tell
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, Guarded | Began)]

    # What there is to tell.

    def config(self):
        """The configuration without secrets and the packages' versions, as plain values."""
        return without_secrets(self.cfg) | {"versions": package_versions()}

    def yaml(self):
        return to_yaml(self.cfg)

    def counts(self):
        """Rows, tokens and findings as numbers with flat names."""
        counts = {}
        for name in ("train", "dev"):
            part = getattr(self.prepared.report, name)
            if part.rows:
                dropped = sum(map(len, part.dropped.values()))
                counts |= {
                    f"{name}_rows": len(part.kept),
                    f"{name}_rows_dropped": dropped,
                    f"{name}_rows_cut": len(part.cut),
                }
                counts |= {f"{name}_tokens": part.tokens, f"{name}_loss_tokens": part.loss_tokens}
        return counts | {"findings": len(self.prepared.report.findings)}

    def rows(self):
        """`TokenView`s of the first rows: what of them is learned."""
        from ragfit.views import TokenView

        return [TokenView(self.prepared, index) for index in range(min(ROWS, len(self.prepared.train)))]

    def report(self):
        """The report on the data, its file named as the configuration may tell."""
        return dataclasses.replace(self.prepared.report, data_file=str(self.config()["data_file"]))

    def report_page(self):
        from ragfit.views import ReportView

        return page("Data", [ReportView(self.report())])

    def rows_page(self):
        return page("What is learned", self.rows())


def page(title, views):
    """Views as one page of HTML; should a text get past their escaping, no script in it would run."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title></head><body>{''.join(str(view.html()) for view in views)}</body></html>\n"
    )
    return mask(text).encode("utf-8", "backslashreplace").decode("utf-8")


class Guarded(TrainerCallback):
    """A service's callback, whose errors are told once and end nothing but itself."""

    def __init__(self, callback, name):
        self.callback, self.name, self.lost = callback, name, False

    def attempt(self, do, *args, **kwargs):
        if self.lost:
            return None
        try:
            return do(*args, **kwargs)
        except Exception as error:  # a full disk, a broken login, a network that is down: the services' own errors
            self.lost = True
            reason = mask(f"{type(error).__name__}: {first_line(error)}")
            logger.warning("%s failed (%s). The run goes on without it.", self.name, reason)
            return None


def _guard(event):
    def call(self, args, state, control, **kwargs):
        return self.attempt(getattr(self.callback, event), args, state, control, **kwargs)

    return call


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(Guarded, _event, _guard(_event))


class Began(TrainerCallback):
    """Comes after the services' callbacks have set themselves up."""

    def __init__(self, tracking):
        self.tracking = tracking

    def on_train_begin(self, args, state, control, **kwargs):
        self.tracking.began()


class Service:
    """A service that gets the metrics of transformers' callback and nothing else."""

    def __init__(self, tracking, guarded):
        self.tracking, self.guarded = tracking, guarded

    def attempt(self, step, *args):
        self.guarded.attempt(getattr(self, step), *args)

    def start(self):
        """Before training; the callback has not set itself up."""

    def began(self):
        """Training begins; the callback has."""

    def saved(self, folder, address):
        """The adapter is saved."""

    def finish(self, outcome):
        """The run is over: "finished", "interrupted" or "failed"."""


class Wandb(Service):
    """A run of its own, unless the user has one open; the code, the command line and the environment stay here."""

    def __init__(self, *args):
        super().__init__(*args)
        self.run, self.own = None, False

    def start(self):
        import wandb

        if wandb.run is not None:  # the user's own run in a notebook
            self.run = wandb.run
            return
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not self._logged_in():
            mode = "offline"
        try:
            self.run = self._init(mode)
        except wandb.errors.Error as error:
            if mode in ("offline", "disabled"):
                raise
            self._offline(f"wandb cannot be reached ({mask(first_line(error))})")
            self.run = self._init("offline")
        self.own = True

    def _logged_in(self):
        import wandb

        try:
            # A headless run must not wait for a login that nobody types.
            if wandb.login(prompt=False, verify=False):
                return True
            self._offline("not logged in to wandb")
        except wandb.errors.Error as error:
            self._offline(f"the login at wandb does not work ({mask(first_line(error))})")
        return False

    def _offline(self, reason):
        logger.warning("use_wandb: %s, so the run is kept offline. Send it later with `wandb sync`.", reason)

    def _init(self, mode):
        import wandb

        cfg, config = self.tracking.cfg, self.tracking.config()
        project = cfg.train.get("project") or os.environ.get("WANDB_PROJECT")
        # Git's remote may hold a token, the command line an override with one, the console whatever is printed.
        settings = {"disable_git": True, "disable_code": True, "save_code": False, "x_disable_meta": True}
        if "WANDB_CONSOLE" not in os.environ:
            settings["console"] = "off"
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings["finish_timeout"] = FINISH
        return wandb.init(
            project=project if project and project != "huggingface" else PROJECT,
            entity=cfg.get("wandb_entity"),
            group=config.get("experiment"),
            name=self.tracking.args.to_dict().get("run_name"),
            job_type="train",
            tags=["train"],
            config=config,
            dir=self.tracking.args.output_dir,
            mode=mode,
            settings=wandb.Settings(**settings),
        )

    def began(self):
        import wandb

        tracking = self.tracking
        train = tracking.prepared.report.train
        self.run.summary.update({"rows": len(train.kept), "loss_tokens": train.loss_tokens, "data": tracking.counts()})
        findings = [
            [
                f.severity,
                f.kind,
                len(f.rows) or None,
                f.meaning,
                mask(f.detail).encode("utf-8", "backslashreplace").decode(),
                f.fix,
            ]
            for f in tracking.prepared.report.findings
        ]
        self.run.log({
            "data/report": wandb.Html(tracking.report_page(), inject=False, data_is_not_path=True),
            "data/loss_mask": wandb.Html(tracking.rows_page(), inject=False, data_is_not_path=True),
            "data/findings": wandb.Table(["severity", "finding", "rows", "meaning", "seen", "what to do"], findings),
        })  # fmt: skip

    def saved(self, folder, address):
        if self.run:
            self.run.summary.update({"checkpoint": folder} | ({"hub": address} if address else {}))

    def finish(self, outcome):
        if self.own:
            self.run.summary["outcome"] = outcome
            self.run.finish(exit_code={"finished": 0, "interrupted": 255}.get(outcome, 1))


class Mlflow(Service):
    """A run in `output_dir/mlflow.db`, or wherever the user's own settings of MLflow say."""

    def __init__(self, *args):
        super().__init__(*args)
        self.run_id, self.own, self.default_place = None, False, False

    def start(self):
        import mlflow

        self.default_place = not mlflow.is_tracking_uri_set()
        if self.default_place:
            place = Path(self.tracking.args.output_dir).absolute()
            place.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        if mlflow.active_run() or any(
            os.environ.get(f"MLFLOW_{name}") for name in ("RUN_ID", "NESTED_RUN", "EXPERIMENT_ID")
        ):
            return  # the callback knows what to do with them
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.tracking.config().get("experiment") or PROJECT
        found = mlflow.get_experiment_by_name(name)
        artifacts = (place / "mlruns").as_uri() if self.default_place else None
        experiment = found.experiment_id if found else mlflow.create_experiment(name, artifacts)
        mlflow.start_run(experiment_id=experiment, run_name=self.tracking.args.to_dict().get("run_name"))
        self.own = True

    def began(self):
        import mlflow

        self.run_id = mlflow.active_run().info.run_id
        mlflow.log_text(self.tracking.yaml(), "ragfit.yaml")
        mlflow.log_text(self.tracking.report_page(), "data_report.html")
        mlflow.log_text(self.tracking.rows_page(), "loss_mask.html")
        mlflow.log_params({f"data/{name}": value for name, value in self.tracking.counts().items()})

    def saved(self, folder, address):
        import mlflow

        for name, value in (("checkpoint", folder), ("hub", address)):
            if value and self.run_id:
                mlflow.MlflowClient().set_tag(self.run_id, name, value)

    def finish(self, outcome):
        import mlflow

        if self.own and mlflow.active_run():
            mlflow.end_run({"finished": "FINISHED", "interrupted": "KILLED"}.get(outcome, "FAILED"))
        if self.default_place:
            mlflow.set_tracking_uri(None)


class TensorBoard(Service):
    """Event files in `output_dir/runs`, or in TENSORBOARD_LOGGING_DIR."""

    def began(self):
        writer = self.guarded.callback.tb_writer
        for name, text in (
            ("configuration", self.tracking.yaml()),
            ("data", str(self.tracking.report())),
            ("loss mask", "\n\n".join(view.text() for view in self.tracking.rows())),
        ):
            writer.add_text(name, fence(mask(text).encode("utf-8", "backslashreplace").decode()))


class Trackio(Service):
    """A project in `output_dir/trackio`, or in TRACKIO_DIR."""

    def began(self):
        import trackio

        trackio.config.update({"ragfit": self.tracking.config()})
        pages = {"data/report": self.tracking.report_page(), "data/loss_mask": self.tracking.rows_page()}
        trackio.log({name: trackio.Html(text) for name, text in pages.items()} | {"data": self.tracking.counts()})


SERVICES = {"wandb": Wandb, "mlflow": Mlflow, "tensorboard": TensorBoard, "trackio": Trackio}
