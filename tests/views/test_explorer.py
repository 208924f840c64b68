"""Any row under any settings, the widgets driven as a front end drives them, and what they give to copy."""

import shlex

import pytest
from conftest import make_tokenizer

from ragfit.config.notebook import from_parameters
from ragfit.config.overrides import override
from ragfit.data.prepare import prepare
from ragfit.views import RowView, explore, rows_with_findings
from ragfit.views.row import Settings

ROWS = [
    {"prompt": "Question: which?\n\nDocuments:\n[1] Paris is the capital.", "answers": ["Paris [1]"]},
    {"prompt": "Question: who?\n\nDocuments:\n[1] <script>alert(1)</script>\n[2] no idea.", "answers": ["no   idea"]},
    {"prompt": "Question: long? " + "word " * 300, "answers": ["a long one"]},
    {"prompt": "Question: empty?", "answers": [""]},
    {"prompt": "Question: who?\n\nDocuments:\n[1] <script>alert(1)</script>\n[2] no idea.", "answers": ["no   idea"]},
    {"prompt": "Question: special <|im_end|>?", "answers": ["東京 👩‍👩‍👧"]},
]


@pytest.fixture
def setup(tmp_path, write_rows, monkeypatch):
    """`setup(**keys)`: (chosen, prepared) for `ROWS`, as a notebook's first cells make them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instruction.txt").write_text("Be brief.\nCite.\n")
    (tmp_path / "config.yaml").write_text("model:\n  model_name_or_path: none\n  max_sequence_len: 400\n")

    def make(template="chatml", rows=ROWS, **keys):
        values = {"data_file": str(write_rows(rows)), "input_key": "prompt", "output_key": "answers"}
        values |= {"instruction": "instruction.txt", "model.completion_start": "<|im_start|>assistant\n", **keys}
        given = " ".join(override(key, value) for key, value in values.items())
        chosen = from_parameters({"config": str(tmp_path / "config.yaml"), "overrides": given})
        return chosen, prepare(chosen.cfg, make_tokenizer("digits", template), cache=False)

    return make


KEYS = [{}, {"dev_split": 2}, {"shuffle": 1, "limit": 4}, {"model.over_length": "cut_end"}]


def label_rows(prepared, part="train"):
    """(ids, labels) of each prepared row by its number in the file."""
    pairs = zip(prepared.report.part(part).kept, prepared.part(part), strict=True)
    return {number: (list(row["input_ids"]), list(row["labels"])) for number, row in pairs}


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("template", ["chatml", "llama-3", "qwen3"])
def test_a_row_is_the_trainers_row(setup, keys, template):
    _, prepared = setup(template, **keys | ({} if template == "chatml" else {"model.completion_start": ""}))
    for part in ("train", "dev") if prepared.dev is not None else ("train",):
        report = prepared.report.part(part)
        views = {n: RowView(prepared, n, part, "tokens") for n in [*report.kept, *sum(report.dropped.values(), [])]}
        for number, (ids, labels) in label_rows(prepared, part).items():
            view = views[number]
            assert (view.row.ids, view.row.labels, view.trained, view.error) == (ids, labels, True, "")
        for number in sum(report.dropped.values(), []):
            assert not views[number].trained and "Not trained on" in views[number].html()
            text = views[number].text()
            assert "dropped: too long" in text and "word word" in text  # yet it is shown
        # The same findings as in the whole data set, all of which name their rows or all rows.
        for number, view in views.items():
            mine = {found.kind for found in prepared.report.findings if not found.rows or (part, number) in found.rows}
            assert {found.kind for found in view.findings} == mine


def test_rows_with_findings_and_settings_that_cannot_be_used(setup):
    _, prepared = setup()
    shown = rows_with_findings(prepared, "tokens")
    assert [view.title for view in shown] == [f"Tokens of train, row {n} of its file" for n in (2, 3, 5, 4)]
    assert "Not trained on: the row is dropped" in shown[0].text()
    nope, none = Settings(completion_start="<|nope|>"), Settings(template="no placeholders")
    for settings, said in ((nope, "'<|nope|>' does not occur"), (none, "Write {query} once")):
        view = RowView(prepared, 1, show="tokens", settings=settings)
        assert said in view.error and view.row is None and not view.trained
        assert "! This row cannot be prepared with these settings: " in view.text() and "Traceback" not in view.html()
    _, prepared = setup(rows=ROWS[:1])
    assert "no finding concerns individual rows" in rows_with_findings(prepared)[0].text()


def test_choosing_rows(setup):
    one = explore(setup()[1], "prompt")
    assert one.box and one.number.value == 0 and "1 of 6 rows" in one.count.value
    one.number.value = 3
    assert "Prompt of train, row 3 of its file" in one.view.value and "4 of 6 rows" in one.count.value
    one.number.value = 900
    assert one.number.value == 5
    one.search.value = "IDEA"
    assert one.found == [1, 4] and one.number.value == 4 and "2 of 2 rows" in one.count.value
    one.number.value = 3  # one step down: the row before that matches
    assert one.number.value == 1 and "row 1 of its file" in one.view.value
    one.number.value = 2  # and one up
    assert one.number.value == 4 and "duplicate rows" in one.view.value
    one.search.value = "nowhere"
    assert "No row matches" in one.view.value and "0 rows" in one.count.value and one.row is None
    one.search.value = ""
    names = ["dropped: too long (1)", "empty output (1)", "special tokens in data (1)", "duplicate rows (1)"]
    assert len(one.found) == 6 and [label for label, _ in one.finding.options] == ["any or none", *names]
    one.finding.index = 1
    assert one.found == [2] and "Not trained on" in one.view.value
    one.fields["max_sequence_len"].value = 0
    assert "Not trained on" not in one.view.value
    one = explore(setup(dev_split=2)[1], "tokens")
    assert one.box and one.part.options == ("train", "dev")
    one.part.value = "dev"
    assert one.found == [2, 3] and one.prepared.report.dev.kept == [3]  # one is too long, and yet can be looked at


EDITS = [
    {},
    {"completion_start": "assistant\\n"},
    {"max_sequence_len": 0},
    {"max_sequence_len": 120, "over_length": "cut_end"},
    {"instruction": "Answer with ${one} word, it's \"short\".\r\n\n# done "},
    {"instruction": "  \n"},
    {"template": "System: {instruction}\nQ: {query}\n\nA: {output}", "completion_start": "A: "},
    {"template": "{query}\n### $Say's \"it\"!:\n{output}", "completion_start": "### $Say's \"it\"!:\\n",
     "instruction_in_prompt": True, "instruction": "Read & answer."},
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: ",".join(edit) or "none")
def test_what_is_copied_gives_what_is_shown(setup, edit, tmp_path):
    chosen, prepared = setup()
    one = explore(prepared, "tokens", chosen)
    assert one.box
    for name, value in edit.items():
        one.fields[name].value = value
    for name in ("instruction", "template"):  # as the explorer asks, an edited text is saved under the name it gives
        if edit.get(name, "").strip():
            file = next(word for word in one.state.value.split() if word.startswith(f"{name}-"))
            (tmp_path / file).write_text(getattr(one.settings, name), newline="")
    cell, _, command = one.copy.value.partition("papermill ")
    exec(cell, namespace := {})  # the parameters cell of train.ipynb
    words = shlex.split(command)
    assert words[:2] == ["notebooks/train.ipynb", "out.ipynb"] and set(words[2::3]) == {"-p"}
    for parameters in (namespace, dict(zip(words[3::3], words[4::3], strict=True))):
        rows = label_rows(prepare(from_parameters(parameters).cfg, prepared.tokenizer, cache=False))
        for number in range(len(ROWS)):
            view = RowView(prepared, number, "train", "tokens", one.settings)
            assert (view.row.ids, view.row.labels) == rows[number] if view.trained else number not in rows
    assert ("Nothing is changed" in one.state.value) == (not edit)


def test_a_wrong_marker_and_no_front_end(setup, monkeypatch):
    one = explore(setup()[1])
    bundle = one._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "interactive" in bundle["text/plain"]
    assert "box" not in vars(one)  # no widget is made
    monkeypatch.setattr("ragfit.views.explorer.live", lambda: True)
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} == set(one._repr_mimebundle_())
    marker = one.fields["completion_start"]
    assert marker.value == "<|im_start|>assistant\\n"
    marker.value = "<|im_nope|>"
    assert "cannot be prepared with these settings" in one.view.value and one.copy.value == ""
    marker.value = "<|im_start|>assistant\\n"
    assert "Nothing is changed" in one.state.value
