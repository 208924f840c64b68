"""The command line of a run, with every override of Hydra's.

python -m ragfit.training -cp configs/paper -cn training-asqa data_file=rows.jsonl output_key=answers
"""

import argparse
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ragfit.config.load import OUTPUT_DIR, finish, normalize_overrides, read_config
from ragfit.config.overrides import refuse_secrets
from ragfit.config.paths import CONFIGS, find_path, user_path
from ragfit.config.save import keep_config
from ragfit.draw.progress import print_any_text
from ragfit.errors import Interrupted, RagfitError, for_terminal
from ragfit.runs.records import now
from ragfit.runs.status import RunStatus, read


def main(argv: list[str] | None = None) -> None:
    """Hydra's command line over `run`."""
    import hydra
    from hydra._internal.utils import get_args_parser  # Hydra has no public way to its own options

    print_any_text()
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = get_args_parser().parse_intermixed_args(argv)  # overrides may stand on both sides of an option
        source, options = _config_file(args), _options(args)
        cfg = read_config(source)
        if options or any(word.lstrip("+~").startswith("hydra") for word in args.overrides):
            refuse_secrets(cfg, args.overrides, f"Hydra writes or shows all of {source} with these options")
        overrides = _hydra_defaults(args.overrides) + normalize_overrides(args.overrides)
    except RagfitError as error:
        sys.exit(for_terminal(error))
    sys.argv = [sys.argv[0], *overrides, *options]

    def task(cfg: DictConfig) -> None:
        _task(cfg, source, args.overrides)

    if args.multirun:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what a run raised, and prints no traceback of its own
    try:
        hydra.main(version_base="1.3", config_path=str(source.parent), config_name=source.stem)(task)()
    except RagfitError:
        sys.exit(1)  # it has been said


def _task(composed: DictConfig, source: Path, overrides: list[str]) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_cfg, cfg, is_main, began = HydraConfig.get(), None, os.environ.get("RANK", "0") == "0", now()
    sweep, folder = hydra_cfg.mode == RunMode.MULTIRUN, hydra_cfg.runtime.output_dir
    try:
        cfg = finish(composed, source, overrides)
        if sweep:
            cfg.train.output_dir = folder = str(Path(cfg.train.output_dir, str(hydra_cfg.job.num)))
        from ragfit.training.run import run  # seconds, which a misspelt key need not wait for

        run(cfg)
    except Interrupted as error:
        if is_main:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signal)
    except RagfitError as error:
        if not sweep:
            sys.exit(for_terminal(error))
        print(for_terminal(error, f"run {hydra_cfg.job.num}: "), file=sys.stderr, flush=True)
        if is_main and (read(folder) or {}).get("started", "") < began:  # it has not said so itself
            with RunStatus(folder).kept():  # for the table of runs
                keep_config(composed if cfg is None else cfg, folder)
                raise
        raise  # Hydra goes on with the other runs, and fails at the end


def _config_file(args: argparse.Namespace) -> Path:
    """Hydra takes -cp as relative to this file; a user means the working directory or the project.

    A name such as paper/training-asqa is a file there, not a config group's option, whose keys would go under `paper`.
    """
    name = f"{(args.config_name or 'training').removesuffix('.yaml')}.yaml"
    if args.config_path:
        return find_path(args.config_path, "--config-path").resolve() / name
    if args.config_dir:
        return find_path(args.config_dir, "--config-dir").resolve() / name
    paths = (Path("configs").resolve() / name, CONFIGS / name)
    return next((path for path in paths if user_path(path).is_file()), paths[1])


def _options(args: argparse.Namespace) -> list[str]:
    """The options of a command line as Hydra takes them, without what `_config_file` has read."""
    both = args.config_path and args.config_dir and find_path(args.config_dir, "--config-dir").resolve()
    left = vars(args) | {"overrides": None, "config_name": None, "config_path": None, "config_dir": both}
    words = {f"--{name.replace('_', '-')}": value for name, value in left.items() if value}
    return [name if value is True else f"{name}={value}" for name, value in words.items()]


def _hydra_defaults(overrides: list[str]) -> list[str]:
    """Keep Hydra from filling the working directory, unless the user set its folders."""
    folders = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")
    if any(word.lstrip("+~").startswith(folders) for word in overrides):
        return []

    def output(folder: str | None) -> str:
        return str(Path(folder or OUTPUT_DIR).expanduser())

    OmegaConf.register_new_resolver("ragfit_output", output, replace=True)
    sweep = "hydra.sweep.dir='${ragfit_output:${oc.select:train.output_dir,null}}'"  # multirun.yaml beside the runs
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout", sweep]


if __name__ == "__main__":
    main()
