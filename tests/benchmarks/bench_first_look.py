"""How soon there is something to see: `import ragfit`, and the first row in a notebook.

Each figure is seconds of a fresh process, from before it is started. The cells of inspect_prompts.ipynb and
loss_mask.ipynb run in a new kernel, as a front end sends them, until the first row of the demo is displayed.
"""

import os
import queue
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from common import PAIRS, ROOT, parser, print_versions

NOTEBOOKS = ("inspect_prompts.ipynb", "loss_mask.ipynb")


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
    """Seconds from starting a kernel to the end of the cell that displays the first row."""
    from jupyter_client import KernelManager

    cells = [cell for cell in nbformat.read(ROOT / "notebooks" / name, as_version=4).cells if cell.cell_type == "code"]
    begin = time.perf_counter()
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = kernel.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        for cell in cells:
            if displayed(client, cell.source, ("Prompt of", "Tokens of")):
                seconds = time.perf_counter() - begin
                assert displayed(client, "'torch' in __import__('sys').modules", ("False",)), "torch was imported"
                return seconds
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
        print_times(f"first row of {name}", [first_row(name) for _ in range(args.pairs + 1)][1:], 6)


def main():
    made = parser(__doc__)
    args = made.parse_args()
    args.pairs = max(args.pairs, PAIRS)
    print_versions()
    # The kernel of this environment, whatever else is installed.
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    print_times("import ragfit", [import_time() for _ in range(args.pairs + 1)][1:], 0.1)
    first_rows(args)


if __name__ == "__main__":
    main()
