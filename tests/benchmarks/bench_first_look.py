"""How soon there is something to see: `import ragfit`, the first row in a notebook, and what train.ipynb adds to a run.

Each figure is seconds of a fresh process, from before it is started. `first` runs the cells of inspect_prompts.ipynb and
loss_mask.ipynb in a new kernel, as a front end sends them, until the first row is displayed. `train` runs papermill and
`python -m ragfit.training` in alternating pairs with one configuration; `answers` does so with the answers of base and
tuned model that train.ipynb gives and the module does not.
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

PACKAGES = (
    "ragfit", "datasets", "hydra-core", "ipykernel", "ipywidgets", "jupyter-client", "omegaconf", "papermill", "pyarrow",
    "tokenizers", "torch", "transformers", "trl",
)  # fmt: skip
NOTEBOOKS = ("inspect_prompts.ipynb", "loss_mask.ipynb")
FILES = {  # data file: output key
    "asqa-prefix-train.jsonl": "answers",
    "asqa-raft-cot-train.jsonl": "generated_answer",
    "pubmed-rag-train.jsonl": "answers",
}
PARTS = ("import", "first", "train", "answers")
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


def first_row(name, parameters):
    """Seconds from starting a kernel to its answer, and then to the end of each cell until the first displayed row.

    Args:
        parameters: of the notebook, written behind its parameters cell as papermill writes them.
    """
    from jupyter_client import KernelManager

    cells = [cell for cell in nbformat.read(ROOT / "notebooks" / name, as_version=4).cells if cell.cell_type == "code"]
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    begin = time.perf_counter()
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = kernel.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        places = [time.perf_counter() - begin]
        for cell in cells:
            code = f"{cell.source}\n{given}" if "parameters" in cell.metadata.get("tags", ()) else cell.source
            seen = displayed(client, code, ("Prompt of", "Tokens of"))
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
    """The demo several times; each real tokenizer with each data file once, where there are any."""
    for name in NOTEBOOKS:
        runs = [first_row(name, {}) for _ in range(args.pairs + 1)][1:]
        print_times(f"first row of {name}, the demo", [places[-1] for places in runs], 6)
        middle = map(statistics.median, zip(*runs, strict=True))
        print("  until: kernel " + ", cell ".join(f"{place:.2f}" for place in middle))
    tokenizers = sorted(Path(os.environ.get("RAGFIT_TOKENIZERS", "nowhere")).glob("*/tokenizer.json"))
    if not tokenizers or not args.data.is_dir():
        return print("RAGFIT_TOKENIZERS or --data names no folder: no real tokenizers and rows.")
    for name in NOTEBOOKS:
        found = {}
        for folder in (path.parent for path in tokenizers):
            for file, key in FILES.items():
                overrides = [
                    f"model.model_name_or_path={folder}", "model.completion_start=''",
                    f"model.instruction_in_prompt={str('mistral' in folder.name).lower()}",
                ]  # fmt: skip
                parameters = {"data_file": str(args.data / file), "output_key": key, "rows": 1, "overrides": overrides}
                found[f"{folder.name} with {file}"] = first_row(name, parameters)[-1]
        print_times(f"first row of {name}, every tokenizer with every file", list(found.values()), 6)
        slowest = max(found, key=found.get)
        print(f"  slowest: {slowest}, {found[slowest]:.2f} s", flush=True)


def training(args, answers):
    """train.ipynb through papermill less the module, in pairs, with its answers or without."""
    with tempfile.TemporaryDirectory() as folder:
        keys, python = TINY | {"train.output_dir": f"{folder}/trained"}, [sys.executable, "-m"]
        module = [*python, "ragfit.training", "-cn", "demo", *(f"{key}={value}" for key, value in keys.items())]
        keys |= {"config": "demo"} | ({} if answers else {"answers": 0})
        notebook = [*python, "papermill", "notebooks/train.ipynb", f"{folder}/out.ipynb"]
        notebook += [word for key, value in keys.items() for word in ("-p", key, str(value))]

        def run(command):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])

        figures = measure_pairs(lambda: run(notebook), lambda: run(module), args.pairs)
        cells = nbformat.read(f"{folder}/out.ipynb", 4).cells
    what = f"{TINY['dev_split']} dev rows answered twice" if answers else "no answers"
    print_times(f"train.ipynb, {what}", [ours for ours, _ in figures])
    print_times("python -m ragfit.training", [theirs for _, theirs in figures])
    print_times(f"train.ipynb adds, {what}", [ours - theirs for ours, theirs in figures], 10)
    spent = {cell.source.splitlines()[0][:60]: cell.metadata.papermill.duration or 0 for cell in cells if cell.source}
    longest = sorted(spent.items(), key=lambda pair: -pair[1])[:7]
    print("  by cell, the last run: " + "; ".join(f"{seconds:.1f} {line}" for line, seconds in longest), flush=True)


def main():
    made = parser(__doc__)
    made.add_argument("what", nargs="*", default=PARTS, help=", ".join(PARTS))
    args = made.parse_args()
    args.pairs = max(args.pairs, PAIRS)
    print_versions(PACKAGES)
    # The kernel of this environment, whatever else is installed.
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    if "import" in args.what:
        print_times("import ragfit", [import_time() for _ in range(args.pairs + 1)][1:], 0.1)
    if "first" in args.what:
        first_rows(args)
    for what in ("train", "answers"):
        if what in args.what:
            training(args, what == "answers")


if __name__ == "__main__":
    main()
