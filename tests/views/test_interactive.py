"""Rows under other settings, the widgets driven as a front end drives them, and what they give to copy."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ragfit.config.load import load_config
from ragfit.config.notebook import from_parameters
from ragfit.config.overrides import override
from ragfit.data.prepare import prepare
from ragfit.views import RagView, RowView, explore, rows_with_findings
from ragfit.views.copied import for_shell, spell, typed
from ragfit.views.documents import answers_of, documents_of, words_of
from ragfit.views.row import Settings

ROWS = [
    {
        "prompt": "Question: what is the capital of France?\n\nDocuments:\n[1] Paris is the capital.",
        "answers": ["Paris [1]"],
    },
    {"prompt": "Question: who?\n\nDocuments:\n[1] <script>alert(1)</script>\n[2] no idea.", "answers": ["no   idea"]},
    {"prompt": "Question: long? " + "word " * 300, "answers": ["a long one"]},
    {"prompt": "Question: empty?", "answers": [""]},
    {"prompt": "Question: who?\n\nDocuments:\n[1] <script>alert(1)</script>\n[2] no idea.", "answers": ["no   idea"]},
    {"prompt": "Question: special <|im_end|>?", "answers": ["東京 👩‍👩‍👧"]},
]
MARKER = "<|im_start|>assistant\n"


@pytest.fixture
def setup(tmp_path, write_rows, monkeypatch):
    """`setup(**keys)`: (chosen, prepared, tokenizer) for `ROWS`, as a notebook's first cells make them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instruction.txt").write_text("Be brief.\nCite.\n")
    (tmp_path / "config.yaml").write_text("model:\n  model_name_or_path: none\n  max_sequence_len: 400\n")

    def make(kind="digits", template="chatml", rows=ROWS, **keys):
        tokenizer = make_tokenizer(kind, template)
        values = {"data_file": str(write_rows(rows)), "input_key": "prompt", "output_key": "answers",
                  "instruction": "instruction.txt", "model.completion_start": MARKER, **keys}  # fmt: skip
        given = " ".join(override(key, value) for key, value in values.items())
        chosen = from_parameters({"config": str(tmp_path / "config.yaml"), "overrides": given})
        return chosen, prepare(chosen.cfg, tokenizer), tokenizer

    return make


def label_rows(prepared, part="train"):
    """(ids, labels) of each prepared row by its number in the file."""
    dataset = getattr(prepared, part)
    numbers = getattr(prepared.report, part).kept
    return {number: (list(row["input_ids"]), list(row["labels"])) for number, row in zip(numbers, dataset, strict=True)}


# --- A row ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"dev_split": 2},
        {"shuffle": 1, "limit": 4},
        {"model.over_length": "cut_end"},
        {"model.completion_start": ""},
    ],
)
@pytest.mark.parametrize("template", ["chatml", "llama-3", "qwen3", "dated"])
def test_a_row_is_the_trainers_row(setup, keys, template):
    if template != "chatml":
        keys = {**keys, "model.completion_start": ""}
    _, prepared, _ = setup(template=template, **keys)
    for part in ("train", "dev") if prepared.dev is not None else ("train",):
        report = getattr(prepared.report, part)
        for number, (ids, labels) in label_rows(prepared, part).items():
            view = RowView(prepared, number, part, "tokens")
            assert (view.ids, view.labels, view.trained, view.error) == (ids, labels, True, "")
        for reason, numbers in report.dropped.items():
            for number in numbers:
                view = RowView(prepared, number, part, "tokens")
                assert not view.trained and f"dropped: {reason}" in view.text() and "Not trained on" in view.html()
                assert "word word" in view.text()  # and yet it is shown
        # The same findings as in the whole data set, all of which name their rows or all rows.
        for number in [*report.kept, *sum(report.dropped.values(), [])]:
            mine = {f.kind for f in prepared.report.findings if not f.rows or (part, number) in f.rows}
            assert {f.kind for f in RowView(prepared, number, part).findings} == mine


def test_rows_with_findings_are_shown_once_each(setup):
    _, prepared, _ = setup()
    shown = rows_with_findings(prepared, "tokens")
    assert [view.title for view in shown] == [f"Tokens of train, row {n} of its file" for n in (2, 3, 5, 4)]
    assert "The row has more tokens than max_sequence_len" in shown[0].text()
    assert len(rows_with_findings(prepared, most=1)) == 1
    _, prepared, _ = setup(rows=ROWS[:1])
    assert "no finding concerns individual rows" in rows_with_findings(prepared)[0].text()


def test_a_wrong_marker_is_a_callout_over_the_row(setup):
    _, prepared, _ = setup()
    view = RowView(prepared, 1, show="tokens", settings=Settings(completion_start="<|nope|>"))
    assert "'<|nope|>' does not occur" in view.error and view.ids is None and not view.trained
    html = view.html()
    assert "These settings cannot be used" in html and "does not occur" in html and "Traceback" not in html
    assert "Tokens of train, row 1 of its file" in html and "<script>" not in html
    view = RowView(prepared, 1, settings=Settings(template="no placeholders"))
    assert "it needs {query} once" in view.error and "it needs {query} once" in view.html()


# --- The widgets ------------------------------------------------------------------------------------------------------


def test_choosing_rows(setup):
    _, prepared, _ = setup()
    explorer = explore(prepared, "prompt").panel
    assert (explorer.slider.max, explorer.number.value) == (5, 0) and "1 of 6 rows" in explorer.count.value
    explorer.slider.value = 3
    assert explorer.number.value == 3 and "Prompt of train, row 3 of its file" in explorer.view.value
    explorer.number.value = 1
    assert explorer.slider.value == 1 and "row 1 of its file" in explorer.view.value
    explorer.search.value = "IDEA"
    assert explorer.found == [1, 4] and "1 of 2 hits" in explorer.count.value
    explorer.ahead.click()
    assert explorer.number.value == 4 and "duplicate rows" in explorer.view.value and "2 of 2" in explorer.count.value
    explorer.ahead.click()
    assert explorer.number.value == 4
    explorer.number.value = 0  # does not match: the nearest that does
    assert explorer.number.value == 1 and "row 1 of its file" in explorer.view.value
    explorer.search.value = "nowhere"
    assert "No row matches" in explorer.view.value and explorer.slider.disabled and "0 hits" in explorer.count.value
    explorer.search.value = ""
    assert len(explorer.found) == 6 and not explorer.slider.disabled
    kinds = dict(explorer.finding.options)
    assert list(kinds) == [
        "any or none (6 rows)", "dropped: too long (1 row)", "empty output (1 row)", "special tokens in data (1 row)",
        "duplicate rows (1 row)",
    ]  # fmt: skip
    explorer.finding.value = "dropped: too long"
    assert explorer.found == [2] and "Not trained on" in explorer.view.value
    explorer.fields["max_sequence_len"].value = 0
    assert "Not trained on" not in explorer.view.value


def test_rows_of_the_dev_set(setup):
    _, prepared, _ = setup(dev_split=2)
    explorer = explore(prepared, "tokens").panel
    assert explorer.part.options == ("train", "dev")
    explorer.part.value = "dev"
    assert explorer.found == [2, 3] and prepared.report.dev.kept == [3]  # one is too long, and yet can be looked at
    assert f"dev, row {explorer.found[0]} of its file" in explorer.view.value
    explorer.part.value = "train"
    assert len(explorer.found) == 4


def test_shuffled_rows_keep_their_numbers(setup):
    _, prepared, _ = setup(shuffle=1, limit=4, **{"model.max_sequence_len": None})
    explorer = explore(prepared).panel
    assert explorer.found == sorted(prepared.report.train.kept)
    explorer.slider.value = 2
    assert explorer.number.value == explorer.found[2]


EDITS = [
    {},
    {"completion_start": "assistant\\n"},
    {"completion_start": ""},
    {"completion_start": "<|im_start|>assistant"},
    {"max_sequence_len": 100},
    {"max_sequence_len": 0},
    {"max_sequence_len": 120, "over_length": "cut_end"},
    {"max_sequence_len": 120, "over_length": "cut_start"},
    {"instruction_in_prompt": True},
    {"instruction": "Answer with ${one} word, it's \"short\".\r\n\n# done "},
    {"instruction": "  \n"},
    {"template": "System: {instruction}\nQ: {query}\n\nA: {output}", "completion_start": "A: "},
    {"template": "{query}\n### $Response's \"here\" \\n!:\n{output}", "completion_start": "### $Response's \"here\" \\\\n!:\\n",
     "instruction_in_prompt": True, "instruction": "Read & answer."},
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: ",".join(edit) or "none")
def test_what_is_copied_gives_what_is_shown(setup, edit):
    chosen, prepared, tokenizer = setup()
    explorer = explore(prepared, "tokens", chosen).panel
    for name, value in edit.items():
        before = explorer.view.value
        explorer.fields[name].value = value
    if edit.keys() & {"completion_start", "instruction", "template"} and "\\n" not in edit.get("completion_start", ""):
        assert explorer.view.value != before
    explorer.write.click()
    # As the parameters cell of train.ipynb, and as a command through papermill's own reading of it.
    namespace = {}
    exec(explorer.copy.value, namespace)
    explorer.copy_for.value = for_shell
    words = shlex.split(explorer.copy.value)
    assert words[:3] == ["papermill", "notebooks/train.ipynb", "out.ipynb"]
    pairs = dict(zip(words[4::3], words[5::3], strict=True))
    assert set(words[3::3]) == {"-p"} and isinstance(_papermill(pairs["overrides"]), str)
    for parameters in (namespace, pairs):
        again = prepare(from_parameters(parameters).cfg, tokenizer)
        rows = label_rows(again)
        for number in range(len(ROWS)):
            view = RowView(prepared, number, "train", "tokens", explorer.settings)
            assert not view.error
            assert (view.ids, view.labels) == rows[number] if view.trained else number not in rows
    assert explorer.reset.disabled == (not edit or "Nothing is changed" in explorer.state.value)


def _papermill(value):
    from papermill.cli import _resolve_type

    return _resolve_type(value)


def test_an_edited_text_is_copied_once_it_is_in_a_file(setup, tmp_path):
    chosen, prepared, _ = setup()
    explorer = explore(prepared, "prompt", chosen).panel
    assert explorer.write.disabled
    (tmp_path / "edited-instruction.txt").write_text("mine")
    explorer.fields["instruction"].value = "Answer in rhymes."
    assert "Answer in rhymes." in explorer.view.value
    assert explorer.copy.value == "" and "must be in a file first" in explorer.state.value
    explorer.write.click()
    assert (tmp_path / "edited-instruction.txt").read_text() == "mine"  # nobody's file is overwritten
    assert (tmp_path / "edited-instruction-2.txt").read_text() == "Answer in rhymes."
    assert "edited-instruction-2.txt" in explorer.copy.value and explorer.write.disabled
    explorer.fields["instruction"].value = "Answer in prose."
    assert explorer.copy.value == ""
    explorer.reset.click()
    assert explorer.fields["instruction"].value == "Be brief.\nCite.\n" and "Nothing is changed" in explorer.state.value
    assert "instruction='instruction.txt'" in explorer.copy.value


def test_the_command_is_for_the_working_directory(monkeypatch):
    root = Path(__file__).parents[2]
    for folder, notebook in (
        (root, "notebooks/train.ipynb"),
        (root / "notebooks", "train.ipynb"),
        (Path("/"), str(root / "notebooks/train.ipynb")[1:]),
        (root / "tests", "notebooks/train.ipynb"),
    ):
        monkeypatch.chdir(folder)
        assert for_shell({}) == f"papermill {notebook} out.ipynb"


def test_typing_a_marker_letter_by_letter(setup):
    chosen, prepared, _ = setup()
    explorer = explore(prepared, "tokens", chosen).panel
    assert explorer.fields["completion_start"].value == "<|im_start|>assistant\\n"
    explorer.fields["completion_start"].value = "<|im_start|>assistant\\"
    assert "These settings cannot be used" in explorer.view.value and explorer.copy.value == ""
    assert "Nothing to copy" in explorer.state.value
    explorer.fields["completion_start"].value = "<|im_start|>assistant\\n"
    assert "cannot be used" not in explorer.view.value and "Nothing is changed" in explorer.state.value
    explorer.fields["completion_start"].value = "<|im_start|>"
    view = explorer.row
    assert view.labels.index(next(label for label in view.labels if label != -100)) < len(view.ids) - 4
    assert "model.completion_start='<|im_start|>'" in explorer.copy.value


def test_instruction_refused_by_the_template_is_told(setup):
    _, prepared, _ = setup(template="mistral", **{"model.completion_start": "", "model.instruction_in_prompt": True})
    explorer = explore(prepared).panel
    assert explorer.fields["instruction_in_prompt"].value is True
    explorer.fields["instruction_in_prompt"].value = False
    assert "refuses a system message" in explorer.view.value and "instruction_in_prompt=true" in explorer.view.value
    explorer.fields["instruction_in_prompt"].value = True
    assert "refuses" not in explorer.view.value


def test_a_long_row_stays_small(setup):
    long = [{"prompt": "Question: which?\n\n" + "The capital of France is Paris. " * 590, "answers": ["Paris"]}]
    chosen, prepared, _ = setup(rows=long, **{"model.max_sequence_len": None})
    explorer = explore(prepared, "tokens", chosen).panel
    assert len(explorer.row.ids) > 4000
    for marker in ("assistant\\n", "<|im_start|>assistant", "", "<|im_start|>assistant\\n"):
        explorer.fields["completion_start"].value = marker
    import ipywidgets

    state = ipywidgets.Widget.get_manager_state()["state"]
    mine = [json.dumps(state[w.model_id]["state"], default=str) for w in _all(explorer.box)]
    assert sum(map(len, mine)) < 600_000


def _all(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)


def test_without_a_front_end_there_is_a_note_and_no_widget(setup):
    _, prepared, _ = setup()
    explorer = explore(prepared)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "interactive" in bundle["text/plain"]
    assert "panel" not in vars(explorer)


def test_with_a_front_end_it_is_the_widget(setup, monkeypatch):
    _, prepared, _ = setup()
    monkeypatch.setattr("ragfit.views.explorer.live", lambda: True)
    bundle = explore(prepared)._repr_mimebundle_()
    assert bundle.keys() == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}


@pytest.mark.slow
def test_looking_imports_neither_torch_nor_widgets(tmp_path, write_rows):
    make_tokenizer("digits", "chatml").save_pretrained(tmp_path / "tokenizer")
    keys = {"data_file": str(write_rows(ROWS)), "output_key": "answers", "model.model_name_or_path": str(tmp_path / "tokenizer"),
            "model.completion_start": MARKER}  # fmt: skip
    code = f"""
import sys, ragfit
from ragfit import views
prepared = ragfit.prepare(ragfit.load_config("training", {[override(k, v) for k, v in keys.items()]!r}))
print(*views.rows_with_findings(prepared), views.RagView(prepared), views.explore(prepared)._repr_mimebundle_())
assert "ipywidgets" not in sys.modules
views.explore(prepared).panel
assert "ipywidgets" in sys.modules
print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.stdout.endswith("False\n"), result.stderr


# --- Fields of one line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, text",
    [
        (r"<|assistant|>\n", "<|assistant|>\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        (r"[\/INST]", r"[\/INST]"),
        (r"\u00a0\xa0", "\xa0\xa0"),
        ("\\", "\\"),
        ("é 東", "é 東"),
    ],
)
def test_typed(field, text):
    assert typed(field) == text
    assert typed(spell(text)) == text


@given(st.text())
def test_what_is_spelt_out_means_the_same(text):
    assert typed(spell(text)) == text
    assert spell(text).isprintable() or any(ord(char) > 0xFFFF for char in text)


# --- Documents and answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query, row, documents, place",
    [
        ("Q?\n\nDocuments:\n[1] One.\n\n[2] Two\nlines.", {}, ["One.", "Two\nlines."], "the prompt"),
        (
            "Q?\n[1] One [2].\n[7] not numbered on.\n[2] Two.\n\nQuestion: why?",
            {},
            ["One [2].\n[7] not numbered on.", "Two."],
            "the prompt",
        ),
        ("Document [1]: One\nDocument [2]: Two", {}, ["One", "Two"], "the prompt"),
        ("Q?", {"positive_passages": ["One", {"title": "T", "text": "Two"}]}, ["One", "T Two"], "positive_passages"),
        ("Q?", {"positive_passages": []}, [], "nowhere"),
    ],
)
def test_documents_of(query, row, documents, place):
    assert documents_of(query, row) == (documents, place)


@pytest.mark.parametrize(
    "row, output, answers, key",
    [
        (
            {"short_answers": [["Joe", "Joe Miller"], ["Rome"]]},
            "x",
            [[" joe ", " joe miller "], [" rome "]],
            "short_answers",
        ),
        ({"short_answers": ["Joe", "Rome"]}, "x", [[" joe "], [" rome "]], "short_answers"),
        ({"short_answers": [], "answers": ["Joe", "Joey"]}, "x", [[" joe ", " joey "]], "answers"),
        ({"answers": ["Mars [2][3]"]}, "x", [[" mars "]], "answers"),
        ({"answers": ["word " * 30]}, "In 1843.", [[" in 1843 "]], "the output, answer"),
        ({"answers": None}, "word " * 30, [], ""),
    ],
)
def test_answers_of(row, output, answers, key):
    assert answers_of(row, output, "answer") == (answers, key)


def test_words_are_compared_whole():
    assert words_of("The U.S., “1843”!") == " the u s 1843 "
    assert " art " not in words_of("party")


def test_rag_view(setup):
    rows = [
        {"prompt": "Q?\n[1] Paris, a city.\n[2] Rome!", "answers": ["paris"]},
        {"prompt": "Q?\n[1] Rome\n[2] rome.", "answers": ["Athens"]},
        {"prompt": "Q?\n[1] Oslo", "answers": ["yes"]},
        {"prompt": "Q?", "answers": ["word " * 20]},
    ]
    _, prepared, _ = setup(rows=rows)
    text = repr(RagView(prepared))
    for line in (
        "answers taken from                      answers (2 rows), none, as they are labels (1 row), "
        "none, as there is no short answer (1 row)",
        "rows with an answer in their documents  1 of 2 (50%)",
        "rows with no answer in their documents  1 (row 1)",
        "documents taken from                    the prompt (3 rows), nowhere (1 row)",
        "documents per row                       1 to 2, median 2",
        "rows with a repeated document           1 (row 1)",
        "distinct documents                      3 of 4",
        "documents in more than one row          1",
    ):
        assert line in text, text
    html = RagView(prepared).html()
    assert "1 of 2 (50%)" in html and "are labels" in html
    _, prepared, _ = setup(rows=rows, dev_split=1)
    assert "documents in both train and dev" in repr(RagView(prepared))


# --- Losses -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(tiny_model, write_rows, tmp_path, request):
    import ragfit

    arch, lora = request.param
    keys = {"data_file": str(write_rows(ROWS[:2])), "output_key": "answers", "model.model_name_or_path": str(tiny_model(arch)),
            "model.load_in_8bit": False, "model.completion_start": MARKER, "train.optim": "adamw_torch", "train.bf16": False,
            "train.output_dir": str(tmp_path / "out"), "model.lora": lora}  # fmt: skip
    cfg = load_config("training", [override(key, value) for key, value in keys.items()])
    return ragfit.build_trainer(cfg, prepare(cfg))


LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("trainer", [("llama", LORA), ("phi3", LORA)], indirect=True, ids=lambda value: value[0])
def test_token_losses_are_the_cross_entropy(trainer, tmp_path):
    import torch

    from ragfit.views import TokenView, load_tuned, token_losses

    assert set(token_losses(trainer)) == {"base"}  # an adapter that has learned nothing changes nothing
    assert "no trained adapter" in load_tuned(trainer)
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    for index in range(2):
        row = trainer.prepared.train[index]
        losses = token_losses(trainer, index)
        assert list(losses) == ["base", "tuned"] and losses["base"] != losses["tuned"]
        trainer.model.eval()
        with torch.no_grad():
            tuned = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            with trainer.model.disable_adapter():
                base = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for values, logs in ((losses["tuned"], tuned), (losses["base"], base)):
            for position, (label, value) in enumerate(zip(row["labels"], values, strict=True)):
                if label == -100:
                    assert value is None
                else:
                    assert value == pytest.approx(-logs[position - 1, label].item(), abs=1e-4)
        view = TokenView(trainer.prepared, index, losses=losses)
        first = next(value for value in losses["tuned"] if value is not None)
        assert f"{first:.2f}" in view.html()
    trainer.model.train()
    assert trainer.model.training
    # A finished run's adapter gives the same losses in a fresh model.
    trainer.model.save_pretrained(tmp_path / "out" / "checkpoint")
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    assert "checkpoint" in load_tuned(trainer)
    again = token_losses(trainer, 1)
    assert [v for v in again["tuned"] if v is not None] == pytest.approx(
        [v for v in losses["tuned"] if v is not None], abs=1e-4
    )
    load_tuned(trainer, str(tmp_path / "out" / "checkpoint"))  # a second time in the same kernel


@pytest.mark.parametrize("trainer", [("llama", None)], indirect=True, ids=["full"])
def test_losses_without_an_adapter(trainer, tmp_path):
    from ragfit.errors import ConfigError
    from ragfit.views import load_tuned, token_losses

    assert set(token_losses(trainer)) == {"model"}
    for folder, message in (("nowhere", "checkpoint"), (str(tmp_path), "holds no adapter")):
        with pytest.raises(ConfigError, match=message):
            load_tuned(trainer, folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model.lora is empty"):
        load_tuned(trainer, str(tmp_path))
