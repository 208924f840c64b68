"""The notebooks, run as users run them: by papermill, in a kernel, and twice in the same kernel."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from tiny_runs import notebook_parameters

import ragfit

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True, scope="module")
def this_kernel():
    """`python3` is the kernel of the environment that runs the tests, whatever else is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        patch.setenv("JUPYTER_PATH", str(Path(sys.prefix, "share", "jupyter")))
        yield


def tiny_parameters(model, folder):
    """Papermill parameters that train a tiny model on a few rows; all is in `folder`."""
    text = "Question: what is {0}?\n\nDocuments:\n[1] Number {0}: {0} is a number."
    rows = [{"prompt": text.format(n), "answers": [f"number {n} [1]"]} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = notebook_parameters(model, folder / "rows.jsonl", folder / "trained")
    return parameters | {"config": str(ROOT / "configs/training.yaml"), "dev_split": "0.25"}  # text, as -p may give it


@pytest.fixture
def tiny_run(tiny_llama, tmp_path):
    return tiny_parameters(tiny_llama, tmp_path)


def execute(name, folder, parameters, question=None):
    """Run a notebook by papermill, with one more cell at its end that prints the answer to `question`."""
    notebook, out = nbformat.read(ROOT / "notebooks" / name, as_version=4), folder / "out.ipynb"
    if question:
        notebook.cells.append(nbformat.v4.new_code_cell(f"import sys\nprint('answer:', {question})"))
    nbformat.write(notebook, folder / name)
    # Papermill takes dotted names on its command line; from Python they are the same injected text.
    papermill.execute_notebook(str(folder / name), str(out), parameters, cwd=str(folder), progress_bar=False)
    return nbformat.read(out, as_version=4)


def shown(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def outputs(notebook):
    """All text that the cells put out."""
    texts = (one.get("text") or one.get("data", {}).get("text/plain") for one in shown(notebook))
    return "\n".join(filter(None, texts))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_without_outputs_and_with_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1
    for cell in code:
        if "parameters" not in cell.metadata.get("tags", ()):
            assert len([line for line in cell.source.splitlines() if line]) <= 5, cell.source
            assert "def " not in cell.source and "class " not in cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_help_notebook_lists_the_parameters(path):
    from click.testing import CliRunner
    from papermill.cli import papermill as command

    said = CliRunner().invoke(command, ["--help-notebook", str(path)]).output
    for name in ("config: str", "data_file: str", "output_key: str", "limit: int", "overrides: str"):
        assert name in said
    assert "processed rows" in said


@pytest.fixture(scope="module")
def trained(this_kernel, tiny_llama, tmp_path_factory):
    """The README's loop, a run for each rank: the folder, the notebook of rank 3, and of rank 2, run twice in its kernel."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("sweep")
    keys = {rank: {"model.lora.r": rank, "train.output_dir": f"{folder}/runs/r{rank}"} for rank in (2, 3)}
    runs = {rank: tiny_parameters(tiny_llama, folder) | own for rank, own in keys.items()}
    twice = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / "train.ipynb"))
    twice = papermill.parameterize.parameterize_notebook(twice, runs[2])
    twice.cells += [cell.copy() for cell in twice.cells]
    for number, cell in enumerate(twice.cells):
        cell["id"] = f"cell-{number}"
    NotebookClient(twice, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return folder / "runs", execute("train.ipynb", folder, runs[3]), twice


@pytest.mark.slow
def test_training_notebook_trains_and_saves(trained):
    folder, notebook, _ = trained
    text = outputs(notebook)
    for expected in (
        "model.load_in_8bit", "train.warmup_ratio",  # what differs from the YAML, and what was translated
        "kept 9 3", "Before the run:", "dev loss before training", "done: step 5/5", "Answers on 3 dev rows",
        "token F1", "evaluation.jsonl", "adapter_model.safetensors",
    ):  # fmt: skip
        assert expected in " ".join(text.split()), text
    names = {path.name for path in (folder / "r3" / "checkpoint").iterdir()}
    assert {"adapter_config.json", "ragfit.yaml", "instruction.txt", "tokenizer.json"} <= names
    # One live display, updated in place: a curve and few lines, not an output for each step.
    assert sum("data:image/png" in str(one.get("data", {}).get("text/html")) for one in shown(notebook)) == 1


@pytest.mark.slow
def test_a_notebook_run_twice_and_a_loop_of_papermill_end_in_one_table(trained):
    folder, _, twice = trained
    assert outputs(twice).count("done: step 5/5") >= 2
    assert (folder / "r2" / "checkpoint.1" / "adapter_config.json").is_file()
    frame = ragfit.table_of_runs(folder)
    assert [Path(name).name for name in frame.index] == ["r2", "r3"] and frame["model.lora.r"].tolist() == [2, 3]
    assert frame.columns[1] == "state" and frame["state"].tolist() == ["finished"] * 2
    assert frame[["train_loss", "dev_loss", "f1"]].notna().all(axis=None) and frame["answers"].tolist() == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rat", 1e-4, "train.learning_rate"),
        ("data_fle", "x.jsonl", "data_file"),
        ("model.completion_start", "<|nope|>", "Set model.completion_start to"),
    ],
)
def test_a_failing_run_says_why(key, value, message, tiny_run, tmp_path):
    with pytest.raises(PapermillExecutionError) as caught:
        execute("train.ipynb", tmp_path, {**tiny_run, key: value})
    (error,) = [one for one in shown(nbformat.read(tmp_path / "out.ipynb", 4)) if one.output_type == "error"]
    assert message in str(caught.value) and len(error.traceback) == 1 and message in error.traceback[0]
    assert not (tmp_path / "trained").exists()


@pytest.mark.slow
def test_the_command_exits_non_zero(tmp_path):
    words = [str(ROOT / "notebooks/train.ipynb"), "out.ipynb", "-p", "config", "nowhere"]
    result = subprocess.run([sys.executable, "-m", "papermill", *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "nowhere" in result.stderr


@pytest.mark.slow
def test_the_demo_trains_the_real_model(tmp_path, monkeypatch):
    """The README's first command on fewer rows: a real 135M chat model, whose dev loss falls."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # threads that spin for each other take minutes on a busy machine
    parameters = {"config": "demo", "limit": 20, "dev_split": 4, "answers": 2, "train.logging_steps": 2}
    parameters["train.output_dir"] = str(tmp_path / "t")
    text = outputs(execute("train.ipynb", tmp_path, parameters))
    before, after = map(float, re.search(r"^  dev loss +(\d+\.\d+) +(\d+\.\d+) ", text, re.MULTILINE).groups())
    assert after < before - 0.5
    saved = json.loads((tmp_path / "t" / "evaluation.json").read_text())
    assert saved["dev_loss"]["tuned"] == pytest.approx(after, abs=1e-4) and saved["rows"] == 2
    assert "kept 16 4" in " ".join(text.split())


# --- The notebooks that only look --------------------------------------------------------------------------------------

LOOKING = ("inspect_prompts.ipynb", "loss_mask.ipynb")


@pytest.fixture
def odd_rows(tiny_run, write_rows):
    """`tiny_run` on rows of which some have findings, and one is dropped."""
    text = "Question: what is {0}?\n\nDocuments:\n[1] Number {0}.\n[2] None."
    rows = [{"prompt": text.format(n), "answers": [f"number {n}"]} for n in range(8)]
    rows[5]["answers"] = [""]
    rows[6]["prompt"] += " and <|im_end|>"
    rows[7]["prompt"] += " and so on" * 400
    keys = {"data_file": str(write_rows(rows, "odd.jsonl")), "model.max_sequence_len": 600}
    return {**tiny_run, **keys}


def parameter_names(name):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return {line.split(":")[0].split(" =")[0] for line in cell.source.splitlines()}


@pytest.mark.parametrize("name", LOOKING)
def test_looking_takes_the_parameters_of_training(name):
    of_training = parameter_names("train.ipynb") - {"examples", "answers", "answer_marker"}
    assert of_training <= parameter_names(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOKING)
def test_looking_shows_rows_and_findings_without_torch(name, odd_rows, tmp_path):
    parameters = {**odd_rows, "dev_split": None, "rows": 2, "hfhub_tag": None, "use_wandb": False}
    notebook = execute(name, tmp_path, parameters, "'torch' in sys.modules")
    text = outputs(notebook)
    view = "Prompt" if name.startswith("inspect") else "Tokens"
    for expected in (
        "model.max_sequence_len", f"{view} of train row 0", f"{view} of train row 1", "kept 7", "too long 1 (row 7)",
        *(f"{view} of train, row {number} of its file" for number in (5, 6, 7)),
        "empty output", "special tokens in data", "This part is interactive", "answer: False",
    ):  # fmt: skip
        assert expected in " ".join(text.split()), text
    assert f"{view} of train row 2" not in text
    if name.startswith("inspect"):
        assert "rows with an answer in their documents 6 of 6" in " ".join(text.split())
        assert "Lengths" in text and "shortest" in text and "tokens, ending in" in text
    # The pictures are in the file as HTML; no widget is, whose state would need a live kernel.
    saved = json.dumps(notebook)
    assert "widget-view" not in saved and "widgets" not in notebook.metadata and len(saved) < 1_000_000
    assert saved.count("border-radius:8px") >= 7


@pytest.mark.slow
def test_loss_mask_with_the_model(tiny_run, tmp_path):
    parameters = {**tiny_run, "with_model": True, "rows": 2, "train.packing": True}
    notebook = execute("loss_mask.ipynb", tmp_path, parameters)
    text, html = outputs(notebook), "".join(one.get("data", {}).get("text/html", "") for one in shown(notebook))
    assert "There is no trained adapter yet" in text and "loss in nats (base)" in html
    assert "The rows lie end to end, and positions begin at 0 in each" in html and "of its pack" in html


@pytest.mark.slow
def test_grounding(tiny_run, tmp_path):
    """Without a trained adapter there are the base model's figures alone; the documents are shown before."""
    text = outputs(execute("grounding.ipynb", tmp_path, {**tiny_run, "rows": 2}))
    for expected in ("There is no trained adapter yet", "supporting document at position 1", "supports",
                     "Which document does the answer come from?", "loss without documents", "No trained adapter is loaded"):  # fmt: skip
        assert expected in text
    assert "Saved in" not in text


@pytest.mark.slow
def test_grounding_of_a_trained_run_is_saved_beside_its_evaluation(trained, tiny_llama):
    folder = trained[0] / "r3"
    parameters = tiny_parameters(tiny_llama, trained[0].parent)
    parameters |= {"model.lora.r": 3, "train.output_dir": str(folder), "rows": 2}
    text = outputs(execute("grounding.ipynb", trained[0].parent, parameters))
    assert f"Saved in {folder / 'grounding.jsonl'}" in text
    assert json.loads((folder / "grounding.json").read_text())["loss_all"]["tuned"]["rows"] == 2

    # The checkpoint alone brings its configuration and rows; figures of other rows go into a folder of their own.
    before = (folder / "grounding.json").read_text()
    text = outputs(execute("grounding.ipynb", trained[0].parent, {"checkpoint": str(folder / "checkpoint"), "rows": 2}))
    assert f"Saved in {folder / 'grounding.jsonl'}" in text and "capital" not in text
    assert f"The tuned model is that of {folder / 'checkpoint'}." in text and "Measured: dev rows of " in text
    after = json.loads((folder / "grounding.json").read_text())
    assert after | {"written": 0} == json.loads(before) | {"written": 0}
