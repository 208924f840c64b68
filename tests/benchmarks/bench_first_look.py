"""How soon there is something to see: `import ragfit`, the first row in a notebook, and what train.ipynb adds to a run.

Each figure is seconds of a fresh process, from before it is started. `first` runs the cells of inspect_prompts.ipynb and
loss_mask.ipynb in a new kernel, as a front end sends them, until the first row of the demo is displayed. `train` runs
papermill and `python -m ragfit.training` in alternating pairs with one configuration.
"""

import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from common import PAIRS, ROOT, measure_pairs, parser, print_versions

NOTEBOOKS = ("inspect_prompts.ipynb", "loss_mask.ipynb")
PARTS = ("import", "first", "train")
# The demo with few rows and steps: what is measured is what stands around the training.
TINY = {"limit": 4, "dev_split": 2, "train.max_steps": 2}


def print_times(name, times, limit=None):
    """Print the median and spread of times in seconds."""
    said = "" if limit is None else f", {'within' if max(times) <= limit else 'NOT within'} {limit:g} s"
    middle, low, high = (f"{function(times):.3f}" for function in (statistics.median, min, max))
    print(f"{name}: {middle} s ({low}..{high}, {len(times)} runs){said}", flush=True)


def import_time():
    """Seconds of `import ragfit` inside a fresh interpreter."""
    code = "import time; begin = time.perf_counter(); import ragfit; print(time.perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def first_row(name):
    """Seconds from starting a kernel to its answer, and then to the end of each cell until the first displayed row."""
    from jupyter_client import KernelManager

    cells = [cell for cell in nbformat.read(ROOT / "notebooks" / name, as_version=4).cells if cell.cell_type == "code"]
    begin = time.perf_counter()
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = kernel.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        places = [time.perf_counter() - begin]
        for cell in cells:
            seen = displayed(client, cell.source, ("Prompt of", "Tokens of"))
            places.append(time.perf_counter() - begin)
            if seen:
                assert displayed(client, "'torch' in __import__('sys').modules", ("False",)), "torch was imported"
                return places
        raise RuntimeError(f"{name} showed no row")
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def displayed(client, code, beginnings):
    """Run a cell; true as soon as it displays a text that begins so."""
    sent = client.execute(code)
    while True:
        try:
            message = client.get_iopub_msg(timeout=120)
        except queue.Empty:
            raise RuntimeError(f"the kernel said nothing for 120 s after\n{code}") from None
        content = message["content"]
        if message["parent_header"].get("msg_id") != sent:
            continue
        if message["msg_type"] == "error":
            raise RuntimeError("\n".join(content["traceback"]))
        if content.get("data", {}).get("text/plain", "").startswith(beginnings):
            return True
        if content.get("execution_state") == "idle":
            return False


def first_rows(args):
    """Both notebooks, several times."""
    for name in NOTEBOOKS:
        runs = [first_row(name) for _ in range(args.pairs + 1)][1:]
        print_times(f"first row of {name}", [places[-1] for places in runs], 6)
        middle = map(statistics.median, zip(*runs, strict=True))
        print("  until: kernel " + ", cell ".join(f"{place:.2f}" for place in middle))


def training(args):
    """train.ipynb, without answers, through papermill less the module, in pairs."""
    with tempfile.TemporaryDirectory() as folder:
        keys, python = TINY | {"train.output_dir": f"{folder}/trained"}, [sys.executable, "-m"]
        module = [*python, "ragfit.training", "-cn", "demo", *(f"{key}={value}" for key, value in keys.items())]
        keys |= {"config": "demo", "answers": 0}
        notebook = [*python, "papermill", "notebooks/train.ipynb", f"{folder}/out.ipynb"]
        notebook += [word for key, value in keys.items() for word in ("-p", key, str(value))]

        def run(command):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])

        figures = measure_pairs(lambda: run(notebook), lambda: run(module), args.pairs)
        cells = nbformat.read(f"{folder}/out.ipynb", 4).cells
    print_times("train.ipynb", [ours for ours, _ in figures])
    print_times("python -m ragfit.training", [theirs for _, theirs in figures])
    print_times("train.ipynb adds", [ours - theirs for ours, theirs in figures], 10)
    spent = {cell.source.splitlines()[0][:60]: cell.metadata.papermill.duration or 0 for cell in cells if cell.source}
    longest = sorted(spent.items(), key=lambda pair: -pair[1])[:7]
    print("  by cell, the last run: " + "; ".join(f"{seconds:.1f} {line}" for line, seconds in longest), flush=True)


def main():
    made = parser(__doc__)
    made.add_argument("what", nargs="*", default=PARTS, help=", ".join(PARTS))
    args = made.parse_args()
    args.pairs = max(args.pairs, PAIRS)
    print_versions()
    # The kernel of this environment, whatever else is installed.
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    if "import" in args.what:
        print_times("import ragfit", [import_time() for _ in range(args.pairs + 1)][1:], 0.1)
    if "first" in args.what:
        first_rows(args)
    if "train" in args.what:
        training(args)


if __name__ == "__main__":
    main()
