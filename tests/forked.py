"""The kit's commands in processes of their own that need no ten seconds for the imports.

They are forked from a server that has imported everything. What is read when a library is imported (`HF_ENDPOINT`,
what `python -m` itself does) needs a real process.
"""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from killed_runs import process


def command(module, *words, cwd=None, **environment):
    """`python -m MODULE WORDS`, as `subprocess.run` would have it with its output captured as text.

    Args:
        cwd: its working directory; by default this process's.
        environment: variables that it gets besides this process's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        run = process(_main, module, words, str(cwd or Path.cwd()), {**os.environ, **environment}, out, err)
        run.join(300)
        if run.is_alive():
            run.kill()
            raise TimeoutError(f"{module} {words} after 300 s: {err.read_text()}")
        return subprocess.CompletedProcess(words, run.exitcode, out.read_text(), err.read_text())


def _main(module, words, cwd, environment, out, err):
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR is read again
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
