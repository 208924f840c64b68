"""The kit's commands: `python -m ragfit COMMAND --help` says what each takes.

A command is a function below: the first line of its docstring says what it does, and what it returns is the exit code.
"""

import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragfit.draw.progress import print_any_text
from ragfit.errors import ConfigError, RagfitError, for_terminal

# What the commands take.
ARGUMENTS = {
    "overrides": {"nargs": "*", "help": "overrides, such as data_file=rows.jsonl model.load_in_8bit=false"},
    "checkpoint": {"help": "the folder checkpoint of a run's train.output_dir"},
    "folders": {"nargs": "+", "help": "a run's train.output_dir, or a folder that holds some"},
    "folder": {"help": "the run's train.output_dir"},
    "repository": {"help": "its name on the hub, such as org/name"},
    "out_folder": {"help": "a new folder for the merged model"},
    "--config|-cn|--config-name": {"help": "a name under configs/ or a YAML file; the demo, with a data_file training"},
    "--row": {"type": int, "default": 0, "help": "which of the prepared rows to show; the first by default"},
    "--part": {"choices": ("train", "dev"), "default": "train"},
    "--json": {"action": "store_true", "help": "all that was found, and the row token by token, as JSON"},
    "--data": {"help": "rows to take; the run's own dev set by default"},
    "--out": {"help": "folder for what is found; the run's own, with --data a folder evaluation-NAME in it"},
    "--rows": {"type": int, "help": "take so many rows; by default all to evaluate, 30 for grounding"},
    "--marker": {"help": "compare only what follows this text in an answer, such as '<ANSWER>:'"},
    "--base": {"help": "the base model's folder or name, where it has moved"},
    "--dtype": {"help": "the type of the merged weights, such as bfloat16; the base's own by default"},
    "--trust-remote-code": {"action": "store_true", "help": "run code that comes with the base model"},
}


def look(args: Namespace) -> None:
    """What the model will read and learn from: report, findings, a row's tokens."""
    from ragfit.config.notebook import from_parameters
    from ragfit.data.prepare import prepare
    from ragfit.views.look import audit
    from ragfit.views.tokens import TokenView

    chosen = from_parameters({"config": args.config, "overrides": args.overrides})
    if not args.json:
        print(f"Reading {chosen.cfg.data_file}, configuration: {chosen.config}", flush=True)
    prepared = prepare(chosen.cfg)
    if args.json:
        print(json.dumps(audit(prepared, args.row, args.part), ensure_ascii=False, indent=1))
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(prepared.report, TokenView(prepared, args.row, args.part).terminal(colour), sep="\n\n")


def train(words: list[str]) -> None:
    """Train, with every override of Hydra's."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")  # a name or a file, as the other commands take it
    given, words = parser.parse_known_args(words)
    from ragfit.config.load import find_config
    from ragfit.training.__main__ import main

    if given.config:
        path = find_config(given.config).resolve()
        words = [f"--config-path={path.parent}", f"--config-name={path.stem}", *words]
    main(words)


def evaluate(args: Namespace) -> None:
    """Base against tuned on a checkpoint of an earlier run."""
    trainer, out = _of_checkpoint(args)
    from ragfit.evaluation.evaluate import evaluate as compare

    print(compare(trainer, args.rows, args.marker, save=out))


def grounding(args: Namespace) -> None:
    """Which documents the answers come from, base against tuned, on a checkpoint of an earlier run."""
    trainer, out = _of_checkpoint(args)
    from ragfit.evaluation.grounding import grounding as ask

    print(ask(trainer, 30 if args.rows is None else args.rows, save=out))


def _of_checkpoint(args: Namespace) -> tuple[Any, Path]:
    """The trainer of a finished run, and the folder for what is found."""
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # fails before hours of work
    from ragfit.training.reload import load_checkpoint

    trainer = load_checkpoint(args.checkpoint, args.data, args.overrides)
    run, name = Path(trainer.args.output_dir), Path(args.data or "").name.partition(".")[0]
    return trainer, Path(args.out) if args.out else run / f"evaluation-{name}" if name else run


def status(args: Namespace) -> int:
    """What became of a run; the exit code is 0 where it goes on or is finished, 1 where it ended otherwise."""
    from ragfit.runs.status import run_status

    view = run_status(args.folder)
    print(view)
    return 0 if view.state in ("running", "finished") else 1


def runs(args: Namespace) -> None:
    """A table of runs."""
    from ragfit.runs.table import table_of_runs
    from ragfit.views import RunsView

    print(RunsView(table_of_runs(*args.folders)))


def merge(args: Namespace) -> None:
    """An adapter and its base as one model."""
    from ragfit.runs.merge import merge_checkpoint

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is half written is removed
    out = merge_checkpoint(args.checkpoint, args.out_folder, args.base, args.dtype, args.trust_remote_code)
    print(f"saved {out}; it loads with AutoModelForCausalLM.from_pretrained")


def push(args: Namespace) -> int:
    """A checkpoint to the hub, as a private repository."""
    from ragfit.runs import hub

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hub.check_tag(args.repository)
    folder = Path(args.checkpoint).expanduser()
    if not any(folder.glob("*.safetensors")):
        fix = "Name the folder checkpoint of a run's train.output_dir."
        raise ConfigError("checkpoint", f"{folder} holds no adapter and no model", fix)
    return 0 if hub.push(folder, args.repository) else 1


# Each command with what it takes of `ARGUMENTS`.
COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "look": (look, "overrides --config|-cn|--config-name --row --part --json"),
    "train": (train, ""),
    "evaluate": (evaluate, "checkpoint overrides --data --out --rows --marker"),
    "grounding": (grounding, "checkpoint overrides --data --out --rows"),
    "status": (status, "folder"),
    "runs": (runs, "folders"),
    "merge": (merge, "checkpoint out_folder --base --dtype --trust-remote-code"),
    "push": (push, "checkpoint repository"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a command; an error of the kit's is said in one line, and the exit code is then 1."""
    print_any_text()
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name not in COMMANDS:
        about = [f"  {key:<10}{command.__doc__.splitlines()[0]}" for key, (command, _) in COMMANDS.items()]
        usage = "\n".join(["usage: python -m ragfit COMMAND …", "", *about])
        if name not in ("--help", "-h"):
            sys.exit(f"{usage}\nerror: there is no command {name!r}. Take one of these.")
        print(usage)
        return
    command, names = COMMANDS[name]
    parser = ArgumentParser(f"python -m ragfit {name}", description=command.__doc__)
    for argument in names.split():
        parser.add_argument(*argument.split("|"), **ARGUMENTS[argument])
    try:
        code = command(parser.parse_intermixed_args(words) if names else words)
    except RagfitError as error:
        sys.exit(for_terminal(error))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
