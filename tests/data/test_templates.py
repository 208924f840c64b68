"""Templates as today's models have them: reasoning dropped, two end tokens, prompts unlike the training text, refusals.

Those of the first tables are short imitations, each with one habit. Where TRL is installed, the templates it ships, which
are the models' own, are held against a truth that is computed without this kit's code.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from conftest import make_config, make_tokenizer

import ragfit
from ragfit.data.prompt import Renderer
from ragfit.data.template import RowRefused
from ragfit.errors import DataError, PromptError

FOR_EACH = "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|' + m.role + '|>' + m.content }}{% else %}"
DROPS_REASONING = "{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
ASKS = "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ PROMPT }}{% endif %}"


def template(answer, prompt="'<|assistant|>'", before=""):
    """A template of `<|user|>…`, an assistant's turn `answer` (Jinja) and a generation prompt."""
    return before + FOR_EACH + answer + ASKS.replace("PROMPT", prompt)


TEMPLATES = {
    # As DeepSeek-V3.1: the reasoning of an answer is dropped, and </think> stands in the prompt.
    "drops": template(DROPS_REASONING + "{{ '<|assistant|></think>' + c + eos_token }}", "'<|assistant|></think>'"),
    # As the R1 distills: the same, and only the prompt opens a think block.
    "prompt thinks": template(DROPS_REASONING + "{{ '<|assistant|>' + c + eos_token }}", "'<|assistant|><think>\\n'"),
    # As Qwen3.5 without thinking: an empty think block stands before an answer that has none of its own.
    "empty think": template(
        "{% set c = m.content %}{% set r = '' %}{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] | trim %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|assistant|>\\n<think>\\n' + r + '\\n</think>\\n\\n' + c + eos_token }}",
        "'<|assistant|>\\n<think>\\n\\n</think>\\n\\n'",
    ),
    # As Nemotron-3: an answer with reasoning stands as it is, any other one behind <think></think>.
    "think or not": template(
        "{% set c = m.content %}{% if '<think>' not in c and '</think>' not in c %}{% set c = '<think></think>' + c %}{% endif %}"
        "{{ '<|assistant|>\\n' + c | trim + eos_token }}",
        "'<|assistant|>\\n<think>\\n'",
    ),
    # As Seed-OSS: an empty answer has no turn.
    "empty left open": template("{{ '<|assistant|>' }}{% if m.content | trim %}{{ '\\n' + m.content | trim + eos_token }}{% endif %}",
                                "'<|assistant|>\\n'"),
    # As Ministral-3: an empty answer is refused.
    "empty refused": template("{% if not m.content %}{{ raise_exception('No content.') }}{% endif %}{{ '<|assistant|>' + m.content + eos_token }}"),
    # As Functionary: a recipient stands before an answer, if there is one.
    "recipient": template("{{ '<|assistant|>>>>' }}{% if m.content %}{{ 'all\\n' + m.content }}{% endif %}{{ eos_token }}", "'<|assistant|>>>>'"),
    # As Cohere's: the response has an end of its own before the turn's.
    "two ends": template("{{ '<|assistant|>' + m.content + '<|end|>' + eos_token }}"),
    # As Falcon's: blank lines are merged.
    "merges lines": template("{{ '<|assistant|>' + m.content.replace('\\n\\n', '\\n') + eos_token }}"),
    # As Nemotron-Nano-2: a word in the question decides what the generation prompt is, and the answer is stripped.
    "query decides": template(
        "{{ '<|assistant|>\\n' + ('<think></think>' if ns.off else '<think>\\n\\n') + m.content | trim + eos_token }}",
        "'<|assistant|>\\n' + ('<think></think>' if ns.off else '<think>\\n\\n')",
        before="{% set ns = namespace(off=false) %}{% for m in messages %}{% if '/no_think' in m.content %}{% set ns.off = true %}{% endif %}{% endfor %}",
    ),
}  # fmt: skip

REASONED = "<think>\nBy [1].\n</think>\n\nRome"
# (template, the row's answer, what of the text has loss, what the template made of the answer)
ROWS = [
    ("drops", "Rome", "Rome</s>", None),
    ("drops", REASONED, "\n\nRome</s>", ("<think>\nBy [1].\n</think>\n\n", "")),
    ("prompt thinks", "Rome", "Rome</s>", None),
    ("prompt thinks", "By [1].</think>Rome", "Rome</s>", ("By [1].</think>", "")),
    ("empty think", "Rome", "Rome</s>", None),
    ("empty think", REASONED, "<think>\nBy [1].\n</think>\n\nRome</s>", None),
    ("empty think", "<think>By [1].</think>Rome", "<think>\nBy [1].\n</think>\n\nRome</s>",
     ("By [1].</think>", "\nBy [1].\n</think>\n\n")),
    ("empty think", "By [1].\n</think>\n\nRome", "By [1].\n</think>\n\nRome</s>", None),
    ("think or not", "Rome", "Rome</s>", None),
    ("think or not", REASONED, "By [1].\n</think>\n\nRome</s>", None),  # the prompt has opened the block
    ("think or not", "<think>By [1].</think>Rome", "<think>By [1].</think>Rome</s>", None),
    ("think or not", "It writes </think>.", "It writes </think>.</s>", None),
    ("think or not", "to be</think>, or not", "to be</think>, or not</s>", None),
    ("empty left open", "", "</s>", None),
    ("empty left open", " \n", "</s>", None),
    ("empty refused", "", "</s>", None),
    ("recipient", "Rome", "all\nRome</s>", None),
    ("recipient", "", "all\n</s>", None),
    ("two ends", "Rome", "Rome<|end|></s>", None),
    ("merges lines", "Rome\n\nor Ostia", "Rome\nor Ostia</s>", ("\n", "")),
    ("query decides", "Rome ", "Rome</s>", None),
]  # fmt: skip


def renderer(name, **settings):
    return Renderer(make_tokenizer(template=TEMPLATES[name]), **settings)


def learned(row):
    return row.text[row.completion_char : row.end_char]


@pytest.mark.parametrize(("name", "output", "loss", "changed"), ROWS)
def test_what_is_learned(name, output, loss, changed):
    row = renderer(name).render("Where?", output)
    assert learned(row) == loss
    assert row.changed == changed


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_marker_that_is_suggested_is_taken(name):
    with pytest.raises(PromptError, match="does not occur") as wrong:
        renderer(name, completion_start="<nowhere>")
    suggestion = renderer(name).suggestion
    assert suggestion and repr(suggestion) in str(wrong.value)
    given = renderer(name, completion_start=suggestion)
    for of, output, *_ in ROWS:
        if of == name:
            assert "Rome" not in output or learned(given.render("Where?", output)).endswith(
                ("Rome</s>", "Rome<|end|></s>", "Ostia</s>")
            )


@pytest.mark.parametrize(
    ("marker", "output", "loss"),
    [
        ("</think>\n\n", "Rome", "Rome</s>"),
        # This answer brings its own reasoning, so the marker is not before it, and loss begins where the output does.
        ("</think>\n\n", REASONED, "<think>\nBy [1].\n</think>\n\nRome</s>"),
        ("<think>\n\n</think>\n\n", REASONED, "<think>\nBy [1].\n</think>\n\nRome</s>"),
        ("<|assistant|>\n", REASONED, "<think>\nBy [1].\n</think>\n\nRome</s>"),
    ],
)
def test_a_marker_that_ends_the_reasoning(marker, output, loss):
    row = renderer("empty think", completion_start=marker).render("Where?", output)
    assert learned(row) == loss
    assert bool(row.marker) == (marker in row.text[: row.output[0]])


def test_an_answer_that_quotes_the_templates_text_is_not_taken_for_it():
    marker = "<|assistant|>\n<think>\n\n</think>\n\n"
    for settings in ({}, {"completion_start": marker}):
        # The template drops the quotation, and its own text stands behind the question's.
        row = renderer("empty think", **settings).render(f"Where? {marker}", f"{marker}Rome")
        assert learned(row) == "Rome</s>" and row.output == (row.text.index("Rome"), row.text.index("</s>"))
        assert row.text[slice(*row.user)] == f"Where? {marker}" and row.changed == (marker, "")


def test_a_template_whose_text_depends_on_the_question():
    given = renderer("query decides", completion_start="<|assistant|>\n")
    usual, other = given.render("Where?", "Rome"), given.render("Where? /no_think", "Rome")
    assert usual.text[slice(*usual.user)] == "Where?" and learned(usual) == "<think>\n\nRome</s>"
    # The template's own text cannot be told from this question, so only text right before the output could be the marker.
    assert other.user is None and other.marker is None and learned(other) == "Rome</s>"
    quoted = renderer("query decides", completion_start="<think>\n\n")
    row = quoted.render("What is <think>\n\n? /no_think", "Rome")
    assert row.marker is None and learned(row) == "Rome</s>"


@pytest.mark.parametrize(
    ("stops", "loss"),
    [([], "Rome<|end|></s>"), (["</s>"], "Rome<|end|></s>"), (["<|end|>"], "Rome<|end|>"), (["<|end|>", "</s>"], "Rome<|end|>")],
)  # fmt: skip
def test_the_turn_ends_where_generation_stops(write_rows, tmp_path, stops, loss):
    tokenizer = make_tokenizer(template=TEMPLATES["two ends"])
    ids = tokenizer.convert_tokens_to_ids(stops)
    if stops:
        said = {"eos_token_id": ids if len(ids) > 1 else ids[0]}
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
    cfg = make_config(write_rows([{"prompt": "Where?", "answers": "Rome"}]), model_name_or_path=tmp_path)
    prepared = ragfit.prepare(cfg, tokenizer)
    assert tokenizer.decode([i for i in prepared.train[0]["labels"] if i != -100]) == loss
    assert "no end of turn" not in {finding.kind for finding in prepared.report.findings}


@pytest.mark.parametrize(("file", "found"), [("generation_config.json", True), ("config.json", True), (None, False)])
def test_an_end_that_generation_does_not_stop_at(write_rows, tmp_path, file, found):
    # Without a configuration, the token that ends the user's turn is taken to end the assistant's too.
    tokenizer = make_tokenizer(template="chatml")
    if file:
        (tmp_path / file).write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    cfg = make_config(write_rows([{"prompt": "Where?", "answers": "Rome"}]), model_name_or_path=tmp_path)
    prepared = ragfit.prepare(cfg, tokenizer)
    assert tokenizer.decode([i for i in prepared.train[0]["labels"] if i != -100]) == "Rome<|im_end|>"
    assert ("no end of turn" in {finding.kind for finding in prepared.report.findings}) == found


def test_with_a_tokenizer_at_hand_the_hub_is_not_asked_where_generation_stops(write_rows, monkeypatch):
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    rows = write_rows([{"prompt": "Where?", "answers": "Rome"}])
    ragfit.prepare(make_config(rows, model_name_or_path="some/model"), make_tokenizer())


REFUSES = template(
    "{% if 'no' in m.content %}{{ raise_exception('Not this.') }}{% endif %}{{ '<|assistant|>' + m.content + eos_token }}"
)


def test_a_row_that_the_template_refuses_is_dropped_and_counted(write_rows):
    tokenizer = make_tokenizer(template=REFUSES)
    rows = write_rows([{"prompt": "Where?", "answers": answer} for answer in ("yes", "no", "Rome")])
    report = ragfit.prepare(make_config(rows), tokenizer).report
    assert report.train.kept == [0, 2] and report.train.dropped == {"refused by the template": [1]}
    assert [(one.kind, one.rows) for one in report.findings] == [("dropped: refused by the template", (("train", 1),))]
    assert "Seen: The chat template cannot render these messages: Not this." in str(report)
    with pytest.raises(RowRefused):
        Renderer(tokenizer).render("Where?", "no")


def test_where_nothing_is_left_the_advice_is_about_the_reason(write_rows):
    tokenizer = make_tokenizer(template=REFUSES)
    rows = write_rows([{"prompt": "Where?", "answers": "no"}])
    with pytest.raises(DataError, match=r"\(1 refused by the template\)\. Change the rows, or set template") as error:
        ragfit.prepare(make_config(rows), tokenizer)
    assert "max_sequence_len" not in str(error.value)


FOLDER = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
NO_TEXT = ("idefics3", "llava_next", "smolvlm")  # their messages are lists of parts
TOKEN = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|<\|?turn\|?>|<turn\|>|<\|channel>|<channel\|>"
)
# What ends the assistant's turn, by the beginning of the template's name; <|im_end|> for the others.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "diffusion_gemma": "<turn|>", "gemma4": "<turn|>",
    "gemma": "<end_of_turn>", "glm4moe_training": "<|user|>", "glm4moe": "<|endoftext|>", "gptoss": "<|return|>", "llama3": "<|eot_id|>",
    "muse": "<|eot|>", "phi3": "<|end|>",
}  # fmt: skip
EOS = {
    "diffusion_gemma": "<eos>", "gemma": "<eos>", "glm": "<|endoftext|>", "muse": "<|end_of_text|>", "phi3": "<|endoftext|>",
}  # fmt: skip
ANSWERS = ["Paris is the capital.", "a", "東京 é", '{"a": [1, {"b": "{{x}}"}]}']
ANSWERS += ["What is the capital?\n\nParis [1].", "<think> is a tag"]


def of_family(table, name, default):
    return next((value for key, value in table.items() if name.startswith(key)), default)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jinja")), ids=lambda path: path.stem)
def test_the_models_own_templates(path):
    if path.stem.startswith(NO_TEXT):
        pytest.skip("its messages are lists of parts")
    end = of_family(ENDS, path.stem, "<|im_end|>")
    tokenizer = make_tokenizer(template=path.read_text(encoding="utf-8"), eos_token=of_family(EOS, path.stem, end))
    tokenizer.add_tokens(
        sorted({*TOKEN.findall(tokenizer.chat_template), end, tokenizer.eos_token}), special_tokens=True
    )
    given = Renderer(tokenizer)
    marked = Renderer(tokenizer, completion_start=given.suggestion)
    messages = [{"role": "user", "content": "What is the capital?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for answer in ANSWERS:
        full = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        written = full.rindex(answer)
        begin = len(prompt) if full.startswith(prompt) else written
        behind = full[written + len(answer) :]
        # GLM's training text ends with the answer: EOS is appended.
        stop = written + len(answer) + behind.index(end) + len(end) if end in behind else None
        row = given.render("What is the capital?", answer)
        assert row.text[: row.completion_char] == full[:begin]
        assert learned(row) == full[begin:stop] + ("" if stop else end)
        assert row.changed is None
        assert learned(marked.render("What is the capital?", answer)).endswith(learned(row)[written - begin :])
    for answer in ("", "<think>\nBy [1].\n</think>\n\nParis", "By [1].</think>Paris", "</think>", "</think>Paris"):
        for each in (given, marked):
            words = learned(each.render("What is the capital?", answer)).replace("<|END_RESPONSE|>", "")
            assert words.endswith(f"Paris{end}" if answer.endswith("Paris") else end)
