"""The kit's commands: each is a function, whose docstring says what it does, and which returns the exit code."""

import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import ragfit
from ragfit.draw.progress import print_any_text
from ragfit.errors import ConfigError, RagfitError, for_terminal

ARGUMENTS: dict[str, dict[str, object]] = {
    "overrides": {"nargs": "*", "help": "overrides, such as data_file=rows.jsonl model.load_in_8bit=false"},
    "checkpoint": {"help": "the folder checkpoint of a run's train.output_dir"},
    "folders": {"nargs": "+", "help": "a run's train.output_dir, or a folder that holds some"},
    "--config|-cn|--config-name": {"help": "a name under configs/ or a YAML file; the demo, with a data_file training"},
    "--row": {"type": int, "default": 0, "help": "which of the prepared rows to show; the first by default"},
    "--part": {"choices": ("train", "dev"), "default": "train"},
    "--json": {"action": "store_true", "help": "all that was found, and the row token by token, as JSON"},
    "--data": {"help": "rows to take; the run's own dev set by default"},
    "--out": {"help": "folder for what is found; the run's own, with --data a folder evaluation-NAME in it"},
    "--rows": {"type": int, "help": "take so many rows; by default all to evaluate, 30 for grounding"},
    "--marker": {"help": "compare only what follows this text in an answer, such as '<ANSWER>:'"},
    "--trust-remote-code": {"action": "store_true", "help": "run code that comes with the base model"},
}


def look(args: Namespace) -> None:
    """What the model will read and learn from: report, findings, a row's tokens."""
    from ragfit.views.look import audit

    chosen = ragfit.from_parameters({"config": args.config, "overrides": args.overrides})
    if args.json:
        print(json.dumps(audit(ragfit.prepare(chosen.cfg), args.row, args.part), ensure_ascii=False, indent=1))
        return
    print(f"Reading {chosen.cfg.data_file}, configuration: {chosen.config}", flush=True)
    prepared, colour = ragfit.prepare(chosen.cfg), sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(prepared.report, ragfit.views.TokenView(prepared, args.row, args.part).terminal(colour), sep="\n\n")


def evaluate(args: Namespace) -> None:
    """Base against tuned on a checkpoint of an earlier run."""
    trainer, out = _of_checkpoint(args)
    print(ragfit.evaluate(trainer, args.rows, args.marker, save=out))


def grounding(args: Namespace) -> None:
    """Which documents the answers come from, base against tuned, on a checkpoint of an earlier run."""
    trainer, out = _of_checkpoint(args)
    print(ragfit.grounding(trainer, 30 if args.rows is None else args.rows, save=out))


def _of_checkpoint(args: Namespace) -> tuple[object, Path]:
    """The trainer of a finished run, and the folder for what is found."""
    trainer = ragfit.load_checkpoint(args.checkpoint, args.data, args.overrides)
    run, name = Path(trainer.args.output_dir), Path(args.data or "").name.partition(".")[0]
    folder = Path(args.out) if args.out else run / f"evaluation-{name}" if name else run
    folder.mkdir(parents=True, exist_ok=True)  # fails before hours of work
    return trainer, folder


def status(args: Namespace) -> int:
    """What became of a run; the exit code is 0 where it goes on or is finished, 1 where it ended otherwise."""
    print(view := ragfit.run_status(args.folder))
    return 0 if view.state in ("running", "finished") else 1


def runs(args: Namespace) -> None:
    """A table of runs."""
    print(ragfit.views.RunsView(ragfit.table_of_runs(*args.folders)))


def merge(args: Namespace) -> None:
    """An adapter and its base as one model."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is half written is removed
    out = ragfit.merge_checkpoint(args.checkpoint, args.out_folder, args.base, args.dtype, args.trust_remote_code)
    print(f"saved {out}; it loads with AutoModelForCausalLM.from_pretrained")


def push(args: Namespace) -> int:
    """A checkpoint to the hub, as a private repository such as org/name."""
    from ragfit.runs import hub

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hub.check_tag(args.repository)
    folder = Path(args.checkpoint).expanduser()
    if not any(folder.glob("*.safetensors")):
        problem = f"{folder} holds no adapter and no model"
        raise ConfigError("checkpoint", problem, "Name the folder checkpoint of a run.")
    return 0 if hub.push(folder, args.repository) else 1


COMMANDS = {
    "look": (look, "overrides --config|-cn|--config-name --row --part --json"),
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
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["train"]:
        from ragfit.training.__main__ import main as train  # whose arguments Hydra reads

        return train(words[1:])
    parser = ArgumentParser("python -m ragfit")
    parser.add_argument("command", choices=["train", *COMMANDS], help="--help behind it says what it takes")
    command, arguments = COMMANDS[parser.parse_args(words[:1]).command]
    parser = ArgumentParser(f"python -m ragfit {words[0]}", description=command.__doc__)
    for argument in arguments.split():
        parser.add_argument(*argument.split("|"), **ARGUMENTS.get(argument, {}))
    try:
        code = command(parser.parse_intermixed_args(words[1:]))
    except RagfitError as error:
        code = for_terminal(error)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
