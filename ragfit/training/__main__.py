"""The command line of a run, with every override of Hydra's: `python -m ragfit.training -cn demo train.seed=1`."""

import os
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser  # Hydra has no public way to its own options
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ragfit.config.load import OUTPUT_DIR, find_config, finish, normalize_overrides, read_config
from ragfit.config.overrides import refuse_secrets
from ragfit.config.paths import find_path
from ragfit.draw.progress import print_any_text
from ragfit.errors import Interrupted, RagfitError, for_terminal

# Hydra would fill the working directory, and put a sweep's multirun.yaml elsewhere than its runs.
OmegaConf.register_new_resolver("ragfit_home", os.path.expanduser, replace=True)
SWEEP = f"hydra.sweep.dir='${{ragfit_home:${{oc.select:train.output_dir,{OUTPUT_DIR}}}}}'"
QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout", SWEEP]


def main(argv: list[str] | None = None) -> None:
    """Hydra's command line over `run`: an error of the kit's is one line, and the exit code 1."""

    def task(composed: DictConfig) -> None:
        try:
            cfg = finish(composed, source, args.overrides)
            if args.multirun:
                cfg.train.output_dir = str(Path(cfg.train.output_dir, str(HydraConfig.get().job.num)))
            from ragfit.training.run import run  # seconds, which a misspelt key need not wait for

            run(cfg)
        except RagfitError as error:
            said = for_terminal(error, f"run {HydraConfig.get().job.num}: " if args.multirun else "")
            if not args.multirun and not isinstance(error, Interrupted):
                sys.exit(said)
            print(said, file=sys.stderr)
            if isinstance(error, Interrupted):
                sys.exit(128 + error.signal)
            raise  # Hydra goes on with the other runs, and fails at the end

    print_any_text()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what a run raised is raised on
    args = get_args_parser().parse_intermixed_args(argv)  # overrides may stand on both sides of an option
    try:
        name = (args.config_name or "training").removesuffix(".yaml")  # as a path, Hydra's is relative to this file
        folder = args.config_path and find_path(args.config_path, "--config-path")
        source = find_config(folder / f"{name}.yaml" if folder else name)
        cfg, known = read_config(source), ("overrides", "config_name", "config_path")
        options = {key: value for key, value in vars(args).items() if value and key not in known}
        if options or any(word.lstrip("+~").startswith("hydra") for word in args.overrides):
            refuse_secrets(cfg, args.overrides, f"Hydra writes or shows all of {source} with these options")
        words = [f"--{key.replace('_', '-')}" + f"={value}" * (value is not True) for key, value in options.items()]
        sys.argv[1:] = [*QUIET, *normalize_overrides(args.overrides), *words]
        hydra.main(version_base="1.3", config_path=str(source.resolve().parent), config_name=source.stem)(task)()
    except RagfitError as error:
        sys.exit(for_terminal(error))


if __name__ == "__main__":
    main()
