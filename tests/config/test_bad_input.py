"""What a user can get wrong, as a table: what is broken, and the sentence that says so.

Each row is a whole run in a folder with a small configuration, a few rows and a real tiny model without its weights.
A run that got as far as loading the model would say that the weights are missing, so a row that expects another
sentence shows that the run ended before.
"""

import gzip
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import nbformat
import pytest
from tiny_runs import question_rows

import ragfit
from ragfit.config.paths import PROJECT_ROOT
from ragfit.errors import RagfitError

CONFIG = """\
model:
  model_name_or_path: model
  completion_start: "<|im_start|>assistant\\n"
  max_sequence_len: 400
  lora:
    r: 4
    target_modules: [q_proj]
train:
  output_dir: out
  max_steps: 1
  use_cpu: true
  save_strategy: "no"
  hub_token: hf_abcdefghijklmnopqrstuvwxyz0123456789
data_file: rows.jsonl
input_key: prompt
output_key: answers
"""
ROWS = question_rows(6)
NO_WEIGHTS = "no file named model.safetensors"


def jsonl(*rows):
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def parquet(**columns):
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def place(tmp_path, tiny_llama, monkeypatch):
    """The working directory: own.yaml, rows.jsonl and model/ without weights."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*ROWS))
    (tmp_path / "own.yaml").write_text(CONFIG)
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(overrides, config="own.yaml"):
    """What the run says in the end."""
    from ragfit.training.run import run

    with pytest.raises(RagfitError) as caught:
        run(ragfit.load_config(config, overrides))
    return str(caught.value)


def check(message, expected):
    assert re.search(expected, message), message
    assert NO_WEIGHTS in expected or NO_WEIGHTS not in message
    assert "\n" not in message and "Traceback" not in message and len(message) < 900, message
    assert re.search(r"[.?]$", message), message  # it ends with what to do
    assert "hf_abc" not in message
    # Nothing half-written: at most what became of the run, and under which configuration.
    left = {path.name for path in Path("out").rglob("*")} if Path("out").is_dir() else set()
    assert left <= {"status.json", ".status.lock", "ragfit.yaml"}, left
    assert "hf_abc" not in "".join(path.read_text() for path in Path("out").glob("*"))


# --- The configuration -------------------------------------------------------------------------------------------------

VALUES = [
    ("dev_split=6", "^dev_split: 6 takes 6 of 6 rows and leaves none to train on. Lower dev_split"),
    ("dev_split=10%", "^dev_split: there is no '10%' at .* Set dev_split to a share such as 0.1, a number, or a path that exists"),
    ("dev_split=nowhere.jsonl", "^dev_split: there is no 'nowhere.jsonl' at "),
    ("model.max_sequence_len=3", "^rows.jsonl: none of its 6 rows can be trained on .6 too long.. Raise model.max_sequence_len"),
    ("model.lora.target_modules=[qkv_proj]", "^model.lora.target_modules: 'qkv_proj' matches no layer .*linear layers are q_proj, k_proj"),
    ("model.lora.target_modules='('", "^model.lora: PEFT refuses these keys: .*unterminated subpattern"),
    ("model.lora.layers_to_transform=[99]", "^model.lora: PEFT refuses these keys: .*layers_to_transform"),
    ("model.lora.init_lora_weights=nonsense", "^model.lora: PEFT refuses these keys: .*nonsense"),
    ("model.load_in_8bit=true model.lora=null", "^model.lora: it is empty, but quantized weights cannot be trained. Set model.lora"),
    ("model.quantization_config={load_in_5bit:true}", "^model.quantization_config: BitsAndBytesConfig has no 'load_in_5bit'. It has "),
    ("model.quantization_config={load_in_8bit:false}", "^model.quantization_config: it sets neither load_in_8bit nor load_in_4bit"),
    ("model.dtype=float99", "^model.dtype: 'float99' is not a floating-point type of torch. Use float32"),
    ("model.dtype=int8", "^model.dtype: 'int8' is not a floating-point type"),
    ("model.attn_implementation=nope", "^model.attn_implementation: .*nope.* is not supported. Set another"),
    ("model.attn_implementation=flash_attention_2", "^model.attn_implementation: FlashAttention2 .* Set another"),
    ("model.device_map=nonsense", "^model.device_map: .*nonsense. Set it to auto"),
    ("model.generation={max_tokens:5}", "^model.generation.max_tokens: .*not used by the model.* Change or remove model.generation.max_tokens"),
    ("model.trained_adapter=./nowhere", "^model.trained_adapter: there is no './nowhere' at "),
    ("model.trained_adapter=model", "^model.trained_adapter: no adapter could be loaded from 'model': .*adapter_config.json"),
    ("model.completion_start='<|nope|>'", r"^model.completion_start: '<\|nope\|>' does not occur .*Set model.completion_start to '<\|im_start\|>assistant"),
    ("model.completion_start='times two'", "^model.completion_start: 'times two' does not occur in the template's text before the output"),
    ("model._target_=nope.Nope", "^model._target_: nope.Nope cannot be imported: No module named 'nope'. Name a class"),
    ("model._target_=json.dumps", "^model._target_: json.dumps is not a class"),
    ("model._target_=types.SimpleNamespace", "^model._target_: types.SimpleNamespace has no attribute 'model'. A model class needs"),
    ("model.model_name_or_path=/nowhere/at/all", "^model.model_name_or_path: there is no '/nowhere/at/all'"),
    ("model.model_name_or_path=rows.jsonl", "^model.model_name_or_path: rows.jsonl is a file. Give the folder"),
    ("model.model_name_or_path=demo:foo", "^model.model_name_or_path: there is no demo model 'demo:foo'. Use 'demo:"),
    ("train.lr_scheduler_kwargs={a:1}", "^train.lr_scheduler_kwargs: .*'a'. Change or remove train.lr_scheduler_kwargs"),
    ("train.optim=galore_adamw", "^train.optim: .*galore_torch.* Change or remove train.optim"),
    ("train.optim_args=foo", "^train.optim_args: .* Change or remove train.optim_args"),
    ("train.eval_strategy=steps", "^train.eval_strategy: steps needs a dev set. Set dev_split to a share"),
    ("train.report_to=nowhere", "^train.report_to: nowhere is not supported"),
    ("dev_split=1 train.save_strategy=best train.eval_strategy=epoch", "^train.save_strategy: .*metric_for_best_model.* must be provided.*Change or remove train.save_strategy"),
    ("train.assistant_only_loss=true", "^train.assistant_only_loss: it is set, but this kit labels the rows. Remove"),
    ("train.output_dir=own.yaml", "^train.output_dir: own.yaml cannot be written: File exists. Set train.output_dir to a folder"),
    ("train.output_dir=/proc/x", "^train.output_dir: /proc/x cannot be written: "),
    ("resume_checkpoint=nowhere", "^resume_checkpoint: there is no 'nowhere' at "),
    ("resume_checkpoint=true", "^resume_checkpoint: out holds no checkpoint. Set train.save_steps"),
    ("resume_checkpoint=model", "^resume_checkpoint: a run cannot go on from model: it has no trainer_state.json. Name another"),
    ("hfhub_tag='a b'", "^hfhub_tag: 'a b' is not a repository name .*Set hfhub_tag to name or org/name"),
    ("instruction=model", "^instruction: model is a folder. Name the file in it"),
    ("template=nowhere.txt", "^template: there is no 'nowhere.txt' at "),
    ("data_file=null", "^data_file: it is not set. Set it, for instance"),
    ("data_file=model", "^data_file: model is a folder. Name the file in it"),
    ("data_file=nowhere.jsonl", "^data_file: there is no 'nowhere.jsonl' at "),
    ("data_file=own.yaml", "^own.yaml: its format is not known. Use one of .jsonl"),
    ("data_file=org/name", "^data_file: there is no file org/name, and no data set of that name could be loaded: .*Check data_file, or the network"),
    ("input_key=question", "^rows.jsonl, line 1: there is no key 'question'; the row has 'prompt', 'answers'. Set input_key to one"),
    ("output_key=null", "^output_key: it is not set. Set it, for instance output_key=answers"),
]  # fmt: skip


LONG = "read-the-documents-" * 20  # a text in the place of its file
PATHS = ("data_file", "instruction", "template", "dev_split", "resume_checkpoint", "model.model_name_or_path",
         "model.trained_adapter", "train.output_dir")  # fmt: skip
for key in PATHS:
    for value, reason in (
        (LONG, "'read-the-.*… .382 characters. cannot be looked up: File name too long"),
        ("~nosuchuser/x", "'~nosuchuser/x' cannot be looked up: Could not determine home directory"),
        ("'a\0b'", "'a.x00b' cannot be looked up: embedded null byte"),
    ):
        VALUES += [(f"{key}={value}", rf"^{re.escape(key)}: {reason}.*\. Set {re.escape(key)} to ")]
for key in ("data_file", "instruction", "template", "dev_split"):
    VALUES += [(f"{key}=pipe.jsonl", f"^{key}: pipe.jsonl is a pipe or a device. Write its content into a file.")]


@pytest.mark.parametrize(
    ("overrides", "expected"), VALUES, ids=[words[:40].replace("\0", "NUL") for words, _ in VALUES]
)
def test_a_value(overrides, expected, place):
    words = overrides.split(" ") if overrides.count("=") > 1 and "{" not in overrides else [overrides]
    check(refusal(words), expected)


# --- Data, instruction and template ------------------------------------------------------------------------------------

ROW = ROWS[0]
PLACES = "Each line must be"
FILES = [
    ("empty", {"rows.jsonl": b""}, "^rows.jsonl: the file has no rows. Check data_file"),
    ("white space", {"rows.jsonl": b"\n \r\n\t\n"}, "^rows.jsonl: the file has no rows"),
    ("not JSON", {"rows.jsonl": jsonl(ROW, b"{oops\n", ROW)}, f"^rows.jsonl, line 2: not JSON .*column 2.*{PLACES}"),
    ("cut off", {"rows.jsonl": jsonl(*ROWS)[:-30]}, "^rows.jsonl, line 6: not JSON .Unterminated string"),
    ("a list", {"rows.jsonl": jsonl(ROW, ["a"])}, f"^rows.jsonl, line 2: a JSON list, not an object. {PLACES}"),
    ("a number", {"rows.jsonl": jsonl(ROW, 3)}, "^rows.jsonl, line 2: a JSON number, not an object"),
    ("one array", {"rows.jsonl": json.dumps(ROWS, indent=1).encode()}, "line 1: not JSON .*looks like one JSON array; write one object a line"),
    ("missing key", {"rows.jsonl": jsonl(ROW, {"prompt": "x"})}, "^rows.jsonl, line 2: there is no key 'answers'; the row has 'prompt'"),
    ("no keys", {"rows.jsonl": jsonl({})}, "^rows.jsonl, line 1: .*the row has no keys"),
    ("a dict for text", {"rows.jsonl": jsonl(ROW | {"prompt": {"a": 1}})}, "line 1: 'prompt' holds an object, not text. Set input_key to a key with text"),
    ("numbers for text", {"rows.jsonl": jsonl(ROW | {"answers": [1, 2]})}, "line 1: 'answers' holds a number, not text. Set output_key"),
    ("NaN for text", {"rows.jsonl": jsonl(ROW | {"prompt": float("nan")})}, "line 1: 'prompt' holds a number, not text"),
    ("a key twice", {"rows.jsonl": b'{"prompt": "a", "prompt": "b", "answers": "c"}\n'}, "line 1: the key 'prompt' is there twice. Keep one"),
    ("not UTF-8", {"rows.jsonl": jsonl(ROW, b'{"prompt": "caf\xe9", "answers": "x"}\n')}, "line 2: byte 16 of the line is not UTF-8. Save the file as UTF-8"),
    ("UTF-16", {"rows.jsonl": jsonl(ROW).decode().encode("utf-16")}, "line 1: byte 1 of the line is not UTF-8"),
    ("half a character", {"rows.jsonl": b'{"prompt": "\\ud800", "answers": "x"}\n'}, "line 1: 'prompt' holds half a character"),
    ("nested deeply", {"rows.jsonl": b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}\n"}, "^rows.jsonl, line 1: not JSON that can be read .maximum recursion depth.*Each line must be"),
    ("a huge number", {"rows.jsonl": b'{"n": ' + b"9" * 6000 + b"}\n"}, "^rows.jsonl, line 1: not JSON that can be read .Exceeds the limit .4300 digits.*Each line must be"),
    ("damaged gzip", {"r.jsonl.gz": gzip.compress(jsonl(*ROWS) * 100)[:-40]}, "^r.jsonl.gz: it is a damaged gzip file: .*Write it again"),
    ("no Parquet", {"r.parquet": b"PAR1xxxx"}, "^r.parquet: it is not a readable Parquet file: .*Write it again"),
    ("a Parquet file without rows", {"r.parquet": parquet(prompt=[], answers=[])}, "^r.parquet: the file has no rows. Check data_file"),
    ("CSV", {"r.csv": b"prompt,answers\n"}, "^r.csv: its format is not known. Use one of .jsonl"),
    ("empty instruction", {"i.txt": b" \n"}, r"^i.txt \(instruction\): the file is empty. Write the text there, or leave instruction empty"),
    ("instruction not UTF-8", {"i.txt": b"caf\xe9"}, r"^i.txt \(instruction\): not UTF-8 at byte 3. Save it as UTF-8"),
    ("template without query", {"t.txt": b"hello {output}"}, "^template: it needs {query} once and, after it, {output} once. Write each in single braces"),
    ("template without output", {"t.txt": b"{query}"}, "^template: it needs {query} once"),
    ("template with another key", {"t.txt": b"{query}{foo}{output}"}, "^template: unknown placeholder {foo}. Use {query} and {output}, and double the braces"),
    ("template with a lone brace", {"t.txt": b"{query} {output"}, "^template: expected '}' before end of string. Double the braces"),
    ("template without the marker", {"t.txt": b"{query} A: {output}"}, "does not occur .*There the text reads 'question A: answer'.*Set model.completion_start to 'A:'"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_file(files, expected, place):
    overrides = []
    for name, content in files.items():
        Path(name).write_bytes(content)
        key = {"r": "data_file", "i": "instruction", "t": "template"}.get(name.split(".")[0])
        overrides += [f"{key}={name}"] if key else []
    check(refusal(overrides), expected)


def test_a_marker_that_stands_in_a_document_alone(place):
    Path("rows.jsonl").write_bytes(jsonl({"prompt": "[1] It says MARK here.", "answers": ["MARK"]}))
    check(
        refusal(["model.completion_start=MARK"]),
        "^model.completion_start: 'MARK' does not occur in the template's text before the output",
    )


# --- The model's folder ------------------------------------------------------------------------------------------------


def edited(**changes):
    def edit(model):
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))

    return edit


def without(*names):
    return lambda model: [(model / name).unlink() for name in names]


def written(name, text):
    return lambda model: (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())


NO_MODEL, NO_TOKENIZER = (
    "^model.model_name_or_path: no model could be loaded from 'model': ",
    "no tokenizer could be loaded from 'model': ",
)
MODELS = [
    ("no weights", lambda model: None, f"{NO_MODEL}.*{NO_WEIGHTS}.*Give a folder with a model, or a name on the hub"),
    ("no tokenizer", without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), NO_TOKENIZER),
    ("broken tokenizer.json", written("tokenizer.json", "{"), NO_TOKENIZER),
    ("no chat template", without("chat_template.jinja"), "^The tokenizer has no chat template. Set template to a file with the placeholders"),
    ("broken chat template", written("chat_template.jinja", "{% for m in %}"), "^The chat template cannot render these messages: .*Check the tokenizer's template"),
    ("chat template that refuses", written("chat_template.jinja", "{{ raise_exception('no no') }}"), "^The chat template cannot render these messages: no no. "),
    ("chat template that drops all", written("chat_template.jinja", "hello"), "^The chat template does not render the user's and the assistant's message"),
    ("broken config.json", written("config.json", "{"), "could be loaded from 'model': .*Give a folder"),
    ("unknown type", edited(model_type="frobnicate"), f"{NO_MODEL}.*frobnicate"),
    ("no language model", edited(model_type="vit"), f"{NO_MODEL}.*AutoModelForCausalLM"),
    ("text for a number", edited(hidden_size="x"), f"{NO_MODEL}.*hidden_size"),
    ("sizes that do not fit", edited(hidden_size=17), f"{NO_MODEL}"),
    ("code of its own", edited(model_type="own", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}), "custom code"),
    ("an embedding too small", edited(vocab_size=300), r"^model.model_name_or_path: the rows hold the token id \d+, but the model's embedding has 300 rows. Set it"),
    ("empty safetensors", written("model.safetensors", ""), NO_MODEL),
    ("a pointer of git LFS", written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"), NO_MODEL),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "expected"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_a_model(breaks, expected, place):
    breaks(place / "model")
    check(refusal([]), expected)


WEIGHTS = [
    ("cut off", lambda model, good: written("model.safetensors", good[:-2000])(model), f"{NO_MODEL}.*incomplete.*Give a folder"),
    ("other shapes", lambda model, good: edited(intermediate_size=48)(model), f"{NO_MODEL}its weights have other shapes than its config.json says. Fetch the model again"),
    ("too few", lambda model, good: edited(num_hidden_layers=3)(model), r"the weights in model lack 9 of the model's tensors \(model.layers.2.*random numbers. Give a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "expected"), [row[1:] for row in WEIGHTS], ids=[row[0] for row in WEIGHTS])
def test_weights(breaks, expected, place, tiny_llama):
    good = (tiny_llama / "model.safetensors").read_bytes()
    (place / "model" / "model.safetensors").write_bytes(good)
    breaks(place / "model", good)
    check(refusal([]), expected)


LATE = [
    ("model.device_map=cuda:7", "^model.device_map: .*CUDA.*Set it to auto"),
    ("model.lora.init_lora_weights=pissa_niter_x", "^model.lora: PEFT refuses these keys: .*'x'. Change"),
    ("model.lora.init_lora_weights=corda", "^model.lora: PEFT refuses these keys: .*preprocess_corda"),
]


@pytest.mark.parametrize(("words", "expected"), LATE)
def test_a_value_that_fails_only_on_the_weights(words, expected, place, tiny_llama):
    shutil.copy(tiny_llama / "model.safetensors", place / "model")
    check(refusal(words.split()), expected)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("archive", [False, True])
def test_weights_that_would_run_code(archive, place):
    import torch

    path = place / "model" / "pytorch_model.bin"
    torch.save({"weight": Malicious()}, path) if archive else path.write_bytes(pickle.dumps(Malicious()))
    check(
        refusal([]),
        "its weights are a pickle that holds more than tensors, which could run code and is not read. Take the model's safetensors",
    )
    assert not Path("PWNED").exists()
    pickle.loads(pickle.dumps(Malicious()))  # the same content, read carelessly
    assert Path("PWNED").exists()


# --- What is odd, and allowed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, "", [], [None], [[]]])
def test_an_empty_answer_is_a_finding(answer, place):
    Path("rows.jsonl").write_bytes(jsonl(*ROWS, ROW | {"answers": answer}))
    report = ragfit.prepare(ragfit.load_config("own.yaml")).report
    found = {finding.kind: finding.rows for finding in report.findings}
    assert [number for _, number in found["empty output"]] == [6] and len(report.train.kept) == 7


@pytest.mark.slow
def test_columns_named_as_the_trainers_do_not_matter(place, tiny_llama):
    """And neither do a byte order mark, Windows' line ends, or NaN in a column that is not read."""
    shutil.copy(tiny_llama / "model.safetensors", place / "model")
    plain = ragfit.prepare(ragfit.load_config("own.yaml"))
    odd = {
        "labels": [1],
        "input_ids": "x",
        "attention_mask": 0,
        "completion_mask": [3],
        "messages": [],
        "text": "t",
        "score": float("nan"),
    }
    Path("rows.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(*[odd | row for row in ROWS]).replace(b"\n", b"\r\n"))
    cfg = ragfit.load_config("own.yaml")
    prepared = ragfit.prepare(cfg)
    assert prepared.train.to_dict() == plain.train.to_dict()
    folder = ragfit.train(ragfit.build_trainer(cfg, prepared))
    assert (Path(folder) / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "long", "expected"),
    [
        ("drop", "prompt", None),
        ("cut_end", "prompt", "begin: "),
        ("cut_start", "prompt", " :end"),
        ("cut_end", "answers", None),
    ],
)
def test_a_row_of_50_megabytes(policy, long, expected, place):
    text = "begin: " + "the quick brown fox jumps. " * 1_900_000 + " :end"
    Path("rows.jsonl").write_bytes(jsonl(ROW | {long: text}, *ROWS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared = ragfit.prepare(ragfit.load_config("own.yaml", [f"model.over_length={policy}"]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # KiB; whole, 10 GB
    part = prepared.report.train
    if expected is None:
        assert (
            part.dropped == {"too long": [0]}
            and part.kept == [1, 2, 3, 4, 5, 6]
            and part.rejected_lengths[0] > 1_000_000
        )
    else:
        query, _, _ = prepared.row(0)
        assert part.kept == list(range(7)) and sum(part.lengths[0]) <= 400 and sum(part.lengths[0]) > 380
        assert query.startswith(expected) or query.endswith(expected)
        assert prepared.rendered(0).text.count(query) == 1


# --- Disk, permission, hub: in processes of their own ------------------------------------------------------------------


def command(*words, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(list(words), env=env, capture_output=True, text=True, timeout=300)


def module(*words, **environment):
    return forked.command("ragfit.training", "-cp", ".", "-cn", "own", *words, **environment)


def one_line(result, expected):
    assert result.returncode == 1, result.stderr
    assert re.search(f"^error: .*{expected}", result.stderr, re.MULTILINE), result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("error: ") == 1, result.stderr
    last = [line for line in result.stderr.splitlines() if not line.startswith("Error executing job")][
        -1
    ]  # Hydra's, of several runs
    assert last.startswith("error: "), result.stderr  # before it at most a bar or a warning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("output_key=answer", "rows.jsonl, line 1: there is no key 'answer'"),
        ("train.learning_rate=-1", "train.learning_rate: -1 is not allowed"),
        ("model.lora.r=0 --multirun", "model.lora.r: 0 is not allowed"),
        ("train.output_dir=null --multirun data_file=nowhere.jsonl", "data_file: there is no 'nowhere.jsonl'"),
        ("model.lora.target_modules=[nope]", "'nope' matches no layer"),
    ],
)
def test_the_command_line_says_it_in_one_line(words, expected, place):
    if "--multirun" in words:  # which refuses a file with a token
        own = Path("own.yaml")
        own.write_text(re.sub(r" *hub_token: .*\n", "", own.read_text()))
    one_line(module(*words.split()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.model_name_or_path", "data_file", "model.trained_adapter"])
def test_a_hub_that_refuses_connections(key, place):
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(place / "hub")}
    result = command(sys.executable, "-m", "ragfit.training", "-cp", ".", "-cn", "own", f"{key}=some/name", **hub)
    one_line(
        result,
        f"{re.escape(key)}: there is no some/name on this disk, and the hub at http://127.0.0.1:9 cannot be reached: ",
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(place, small_disk, tiny_llama):
    """For the prepared rows, and for the adapter at the end."""
    shutil.copy(tiny_llama / "model.safetensors", place / "model")
    Path("rows.jsonl").write_bytes(jsonl(*question_rows(3000)))
    one_line(
        module(TMPDIR=str(small_disk), RAGFIT_CACHE_GB="0"),
        f"{small_disk}/ragfit-.*: prepared rows cannot be written there: .*No space left.*Free room there, or set TMPDIR",
    )
    assert not list(small_disk.iterdir())
    (small_disk / "filler").write_bytes(b"x" * 190_000)
    result = module(f"train.output_dir={small_disk}/out", "limit=20", RAGFIT_CACHE_GB="0")
    assert result.returncode == 1 and "No space left" in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert not list(small_disk.glob("out/checkpoint*"))


def test_a_full_disk_for_what_is_unpacked(place, small_disk):
    Path("r.jsonl.gz").write_bytes(gzip.compress(jsonl(*question_rows(3000))))
    one_line(
        module("data_file=r.jsonl.gz", TMPDIR=str(small_disk)),
        "r.jsonl.gz: it cannot be unpacked into the temporary folder: No space left on device. Free room there, or set TMPDIR",
    )


def test_a_full_disk_for_the_demo_model(place, small_disk):
    subprocess.run(
        ["mount", "-o", "remount,nr_inodes=1", str(small_disk)], check=True
    )  # no file fits, before 93 MB are fetched
    result = module(
        "model.model_name_or_path=demo:smollm2-135m-instruct", RAGFIT_CACHE=str(small_disk), RAGFIT_CACHE_GB="0"
    )
    one_line(
        result,
        "RAGFIT_CACHE: the demo model cannot be made in .*No space left on device.* Free 500 MB there, or set RAGFIT_CACHE",
    )


def test_a_disk_that_is_read_only(place, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    check(
        refusal([f"train.output_dir={small_disk}/out"]),
        r"^train.output_dir: .*/disk/out cannot be written: Read-only file system. Set train.output_dir",
    )


@pytest.mark.parametrize("name", ["status", "runs", "merge", "evaluation", "hub"])
def test_a_folder_that_cannot_be_looked_up(name, place):
    more = {"merge": ["out"], "hub": ["org/name"]}
    for given, reason in ((LONG, "File name too long"), ("~nosuchuser/x", "Could not determine home directory")):
        result = forked.command(f"ragfit.{name}", given, *more.get(name, ()))
        one_line(
            result, f"(folder|checkpoint): '.*cannot be looked up: {reason}. Set (folder|checkpoint) to another path."
        )


# --- From papermill ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-p", "output_key", "answer"], "rows.jsonl, line 1: there is no key 'answer'; the row has 'prompt', 'answers'. Set output_key to one of them."),
        (["-p", "model.lora.target_modules", "nope"], "model.lora.target_modules: 'nope' matches no layer"),
        (["-y", "model: {lora: {r: 2}}", "-p", "model.lora.r", "0"], "model.lora.r: 0 is not allowed"),
    ],
)  # fmt: skip
def test_papermill(words, expected, place):
    notebook = str(PROJECT_ROOT / "notebooks" / "train.ipynb")
    words = [sys.executable, "-m", "papermill", notebook, "out.ipynb", "-p", "config", "own.yaml", *words]
    result = command(*words, JUPYTER_PREFER_ENV_PATH="1")
    assert result.returncode == 1
    assert expected in result.stderr, result.stderr
    # The log: papermill's own frames, and one line from the kernel.
    said = result.stderr[result.stderr.index("Exception encountered at") :]
    assert len(said.splitlines()) < 14 and "\x1b[" not in said and "site-packages" not in said, said
    notebook = nbformat.read("out.ipynb", as_version=4)
    # The reason on top: papermill's own cell there only says in which cell to look.
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert expected in "".join(output.data["text/plain"] for output in first.outputs if "data" in output)
    error = next(
        output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    )
    assert len(error.traceback) == 1 and expected in error.traceback[0] and "\x1b" not in error.traceback[0]
