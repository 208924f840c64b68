"""The kit's commands: `python -m ragfit COMMAND --help` says what each takes."""

import importlib
import sys

# The module whose `main` is the command, and what it does.
COMMANDS = {
    "look": ("ragfit.views.look", "what the model will read and learn from: report, findings, a row's tokens"),
    "train": ("ragfit.training.__main__", "train, with every override of Hydra's"),
    "evaluate": ("ragfit.training.reload", "base against tuned on a checkpoint of an earlier run"),
    "status": ("ragfit.runs.status", "what became of a run"),
    "runs": ("ragfit.runs.table", "a table of runs"),
    "merge": ("ragfit.runs.merge", "an adapter and its base as one model"),
    "push": ("ragfit.runs.hub", "a checkpoint to the hub, as a private repository"),
}


def main(argv=None):
    """Run a command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv else "--help"
    if name not in COMMANDS:
        lines = [
            "usage: python -m ragfit COMMAND …",
            "",
            *(f"  {key:<10}{about}" for key, (_, about) in COMMANDS.items()),
        ]
        if name in ("--help", "-h"):
            print("\n".join(lines))
            return
        sys.exit("\n".join([*lines, f"error: there is no command {name!r}. Take one of these."]))
    importlib.import_module(COMMANDS[name][0]).main(argv[1:])


if __name__ == "__main__":
    main()
