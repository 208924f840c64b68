"""What a user sees of an error: one sentence of the kit's own, and a library's own words with a note below them."""

import gc
import json
import pickle
import re
import shutil
import weakref

import pytest
from tiny_runs import question_rows

import ragfit
from ragfit.__main__ import main
from ragfit.config.explain import LESS_MEMORY, LESS_TO_EVALUATE, explained
from ragfit.errors import ConfigError, Interrupted, RagfitError, first_line, for_terminal

CONFIG = """\
model: {model_name_or_path: model, completion_start: "<|im_start|>assistant\\n", max_sequence_len: 400}
train: {output_dir: out, max_steps: 1, use_cpu: true, save_strategy: "no"}
data_file: rows.jsonl
input_key: prompt
output_key: answers
"""


@pytest.fixture
def place(tmp_path, tiny_llama, monkeypatch):
    """The working directory: own.yaml, rows.jsonl and model/ without weights."""
    shutil.copytree(tiny_llama, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in question_rows(6)))
    (tmp_path / "own.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- The kit's own ----------------------------------------------------------------------------------------------------


def test_an_error_says_where_what_and_what_to_do():
    error = ConfigError("data_file", "there is no 'x.jsonl'", "Set data_file to a path that exists.")
    said = "data_file: there is no 'x.jsonl'. Set data_file to a path that exists."
    assert (str(error), for_terminal(error, "run 1: ")) == (said, f"error: run 1: {said}")
    assert error._render_traceback_() == [f"ConfigError: {said}"]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ConfigError, said)
    assert str(error.in_file("my.yaml")).startswith("data_file: there is no 'x.jsonl' (my.yaml). Set data_file")
    assert pickle.loads(pickle.dumps(Interrupted("at step 3", 2))).signal == 2


NAMED = {  # what is wrong, what the user sets, and the key whose name came from the configuration
    "no such file": ("gone.jsonl", [], "data_file"),
    "a format that is not known": ("own.yaml", [], "data_file"),
    "a row": ("bad.jsonl", [], "data_file"),
    "a key of the user's, in a file that is not": ("rows.jsonl", ["output_key=nothing"], "data_file"),
    "a file of the user's": ("rows.jsonl", ["data_file=bad.jsonl"], None),
    "dev rows of the user's": ("rows.jsonl", ["dev_split=bad.jsonl"], None),
    "none at all": ("rows.jsonl", ["data_file=null"], None),
}


@pytest.mark.parametrize(("file", "overrides", "key"), NAMED.values(), ids=NAMED)
def test_an_error_in_a_file_that_the_user_has_not_named_says_who_has(place, file, overrides, key):
    (place / "bad.jsonl").write_text('{"prompt": 3}')
    (place / "own.yaml").write_text(CONFIG.replace("rows.jsonl", file))
    with pytest.raises(RagfitError) as caught:
        ragfit.prepare(ragfit.load_config("own.yaml", overrides))
    assert ("(named in own.yaml)" in str(caught.value)) == bool(key)


def test_a_token_in_an_error_is_masked_and_a_terminal_is_not_steered():
    token = "hf_" + "aB3" * 11
    error = RagfitError("", f"refused {token}\x1b[2J", "Log in.")
    assert token not in str(error) + for_terminal(error) + error._render_traceback_()[0]
    assert "\x1b" not in for_terminal(error) and "\n" not in for_terminal(RagfitError("", "two\nlines"))


def test_a_librarys_words_in_a_sentence():
    errors = {ValueError("No.\nMore"): "No", KeyError(): "KeyError", OSError("These:\n a\n b"): "These: a b"}
    assert [first_line(error) for error in errors] == list(errors.values())


WRONG = [
    ("dev_split=nowhere.jsonl", "^dev_split: there is no 'nowhere.jsonl' at .* or .*"),
    ("data_file=null", "^data_file: it is not set"),
    ("data_file=nowhere.jsonl", "^data_file: there is no 'nowhere.jsonl'"),
    ("data_file=model", "^data_file: model is a folder. Name the file in it"),
    ("template=nowhere.txt", "^template: there is no 'nowhere.txt' at "),
    ("input_key=question", "^rows.jsonl \\(named in own.yaml\\), line 1: there is no key 'question'"),
    ("output_key=null", "^output_key: it is not set"),
    ("model.model_name_or_path=/nowhere/at/all", "^model.model_name_or_path: there is no '/nowhere/at/all'"),
    ("model.model_name_or_path=rows.jsonl", "^model.model_name_or_path: no tokenizer could be loaded from 'rows"),
    ("model.model_name_or_path=null", "^model.model_name_or_path: "),
    ("model.completion_start='<|nope|>'", r"^model.completion_start: '<\|nope\|>' does not occur "),
]


@pytest.mark.parametrize(("override", "expected"), WRONG, ids=[words for words, _ in WRONG])
def test_what_a_user_can_get_wrong(override, expected, place):
    """Before a model is loaded, in one line."""
    with pytest.raises(RagfitError, match=expected) as caught:
        ragfit.prepare(ragfit.load_config("own.yaml", [override]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_commands_say_it_in_one_line(place, capsys):
    no_key = "rows.jsonl (named in own.yaml), line 1: there is no key 'answer'"
    for words, expected in (
        ("look -cn own.yaml output_key=answer", no_key),
        ("train -cp=. -cn=own output_key=answer", no_key),
        ("look --config own.yaml modl.x=1", "modl: unknown key (an override of own.yaml). Did you mean model"),
        ("train -cp=. -cn=own model.lora.r=x", "model.lora.r: 'x' is not allowed (an override of "),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words.split())
        assert caught.value.code.startswith(f"error: {expected}") and "\n" not in caught.value.code
    main(["look", "--config-name", "own.yaml", "limit=3"])
    assert capsys.readouterr().out.startswith("Reading rows.jsonl, configuration: own.yaml\n")


# --- A library's ------------------------------------------------------------------------------------------------------

NOTES = [
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), LESS_MEMORY),
    (MemoryError(), LESS_MEMORY),
    (OSError(28, "No space left on device"), "Make room there, or set train.output_dir to another disk"),
    (IndexError("index out of range in self"), "Check that the tokenizer belongs to model.model_name_or_path"),
    (ImportError("flash_attn is not installed"), "Set model.attn_implementation=sdpa"),
    (ConnectionError("Max retries exceeded"), "Check the network, or name a model and rows on this disk"),
    (ValueError("something else"), None),
    (ConfigError("train.optim", "out of memory", "Stop."), None),  # the kit's own
]


@pytest.mark.parametrize(("error", "advice"), NOTES, ids=[str(error) for error, _ in NOTES])
def test_a_librarys_error_is_raised_on_with_a_note(error, advice):
    with pytest.raises(type(error)) as caught, explained("The run"), explained("Training"):
        raise error
    notes = getattr(caught.value, "__notes__", [])
    assert caught.value is error and len(notes) == bool(advice)
    assert not advice or re.match(rf"Training failed\. {re.escape(advice)}.*\.$", notes[0])


def test_out_of_memory_frees_what_the_frames_hold():
    class Tensor:
        pass

    @explained("The evaluation", LESS_TO_EVALUATE)
    def step():
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    held = []
    with pytest.raises(RuntimeError) as caught:
        step()
    gc.collect()
    assert held[0]() is None and caught.value.__notes__ == [f"The evaluation failed. {LESS_TO_EVALUATE}."]
