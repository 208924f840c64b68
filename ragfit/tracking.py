"""Experiment tracking with Weights & Biases; other services go through `train.report_to` alone."""

import contextlib
import logging
import os

logger = logging.getLogger(__name__)

PROJECT = "ragfit"


def tracked(cfg, trainer):
    """A context for training: a wandb run where one is asked for, nothing otherwise.

    The run gets the resolved configuration, never an environment variable. `experiment` is its group and
    `wandb_entity` its entity; the project is `train.project` or "ragfit".
    """
    wanted = cfg.get("use_wandb") or "wandb" in (trainer.args.report_to or [])
    if not wanted or not trainer.is_world_process_zero():
        return contextlib.nullcontext()
    return _wandb_run(cfg, trainer)


@contextlib.contextmanager
def _wandb_run(cfg, trainer):
    import wandb
    from omegaconf import OmegaConf

    if wandb.run is not None:  # the user's own run in a notebook
        yield wandb.run
        return
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.login(prompt=False, verify=False):
        # A headless run must not wait for a login that nobody types.
        logger.warning("use_wandb: not logged in to wandb, so the run is kept offline. Send it later with `wandb sync`.")
        mode = "offline"
    config = OmegaConf.to_container(cfg)
    config["train"].pop("hub_token", None)
    project = cfg.train.get("project") or os.environ.get("WANDB_PROJECT")
    run = wandb.init(
        project=project if project and project != "huggingface" else PROJECT,
        entity=cfg.get("wandb_entity"),
        group=cfg.get("experiment"),
        job_type="train",
        tags=["train"],
        config=config,
        dir=trainer.args.output_dir,
        mode=mode,
    )
    report = trainer.prepared.report
    run.summary["rows"] = len(report.train.kept)
    run.summary["loss_tokens"] = report.train.loss_tokens
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
