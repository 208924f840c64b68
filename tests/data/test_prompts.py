"""What is said: prompts, training texts and the places in them."""

import pytest
from conftest import BOS, CHAT_TEMPLATES, NO_SYSTEM, make_tokenizer

from ragfit.data.mask import Encoder
from ragfit.data.prompt import Renderer
from ragfit.data.template import RowRefused
from ragfit.errors import PromptError


def renderer(template="chatml", instruction="", custom=None, kind="trimming", tokenizer=None, **kwargs):
    return Renderer(tokenizer or make_tokenizer(kind, template), instruction, custom, **kwargs)


def parts(row):
    """(before the loss, with loss, behind it)."""
    return row.text[: row.completion_char], row.text[row.completion_char : row.end_char], row.text[row.end_char :]


@pytest.mark.parametrize(
    ("template", "before", "loss", "after"),
    [
        ("chatml",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
         " Rome\n<|im_end|>", "\n"),
        ("llama-3",
         "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
         "Where?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
         "Rome<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("llama-2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhere? [/INST]", " Rome </s>", ""),
        ("phi-3", "<s><|user|>\nWhere?<|end|>\n<|assistant|>\n", " Rome\n<|end|>", "\n"),
        ("zephyr", "<|system|>\nBe brief.</s>\n<|user|>\nWhere?</s>\n<|assistant|>\n", " Rome\n</s>", "\n"),
        ("mistral", "<s>[INST] Where? [/INST]", " Rome\n</s>", ""),
        ("qwen3",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
         "<think>\n\n</think>\n\n Rome\n<|im_end|>", "\n"),
        ("deepseek-r1", "<s>Be brief.<|user|>Where?<|assistant|>", " Rome\n</s>", ""),
        ("no end", "SYSTEM: Be brief.\nUSER: Where?\nASSISTANT: ", " Rome\n\n</s>", ""),
    ],
)  # fmt: skip
def test_a_row_in_each_template(template, before, loss, after):
    row = renderer(template, "" if template in NO_SYSTEM else "Be brief.").render("Where?", " Rome\n")
    assert parts(row) == (before, loss, after)
    assert row.matches == (template != "deepseek-r1")
    assert row.text[slice(*row.user)] == "Where?"
    assert row.text[slice(*row.output)].strip() == "Rome"


@pytest.mark.parametrize("template", sorted({*CHAT_TEMPLATES} - {"mistral"}))  # which refuses it
def test_what_becomes_of_the_instruction(template):
    assert renderer(template).system == "none"
    assert renderer(template, "Be brief.").system == ("dropped" if template == "phi-3" else "kept")
    given = renderer(template, "Be brief.", instruction_in_prompt=True)
    assert given.system == "prompt"
    row = given.render("Where?", "Rome")
    assert row.prompt.count("Be brief.\nWhere?") == 1 and row.prompt.count("Be brief.") == 1


def test_a_template_that_refuses_the_system_message_names_the_key():
    with pytest.raises(PromptError, match="refuses a system message, set model.instruction_in_prompt=true"):
        renderer("mistral", "Be brief.")
    row = renderer("mistral", "Be brief.", instruction_in_prompt=True).render("Where?", "Rome")
    assert row.text == "<s>[INST] Be brief.\nWhere? [/INST]Rome</s>"


@pytest.mark.parametrize(
    ("template", "suggestion"),
    [
        ("chatml", "<|im_start|>assistant\n"), ("llama-2", "[/INST]"), ("phi-3", "<|assistant|>"), ("zephyr", "<|assistant|>\n"),
        ("mistral", "[/INST]"), ("dated", "<|start_header_id|>assistant<|end_header_id|>\n\n"), ("no end", "ASSISTANT: "),
    ],
)  # fmt: skip
def test_the_template_suggests_a_marker_and_takes_it(template, suggestion):
    assert renderer(template).suggestion == suggestion
    assert renderer(template, completion_start=suggestion).render("Where?", "Rome").marker


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_wrong_marker_is_an_error_before_any_row_and_shows_the_place(template):
    with pytest.raises(PromptError, match="model.completion_start: '### Response:' does not occur") as error:
        renderer(template, completion_start="### Response:")
    assert f"Set model.completion_start to {renderer(template).suggestion!r}" in str(error.value)
    assert repr(renderer(template).middle[-10:])[1:-1] in str(error.value)


def test_the_last_occurrence_of_the_marker_in_the_templates_text_counts():
    row = renderer("chatml", completion_start="\n").render("Where?", "Rome\n")
    assert parts(row)[1] == "Rome\n<|im_end|>"
    row = renderer("chatml", completion_start="<|im_start|>").render("Where?", "Rome")
    assert parts(row)[1] == "assistant\nRome<|im_end|>" and row.extra == "assistant"


def test_a_row_whose_place_is_unknown_says_so():
    template = (
        "{% for m in messages %}{{ m.role + ': ' + (m.content | replace('Rome', 'Paris') if m.role == 'assistant' else m.content) }}"
        "{% if 'Rome' in m.content %}!{% else %}?{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    given = renderer(template)
    assert parts(given.render("Where?", "Oslo"))[1] == " Oslo?</s>"
    with pytest.raises(RowRefused, match="rewrites this answer.*it begins 'Rome'"):
        given.render("Where?", "Rome")


@pytest.mark.parametrize(
    ("change", "query", "output"),
    [
        # A template may write the answer in its own way, as long as what stands around it is the same.
        ("| tojson", 'a "b"', 'say "hi"\n'),
        ("| replace('\\n', ' ')", "a\nb", "c\nd"),
    ],
)
def test_rewritten_answers_are_found_by_what_stands_around_them(change, query, output):
    given = renderer(CHAT_TEMPLATES["chatml"].replace("message['content']", f"(message['content'] {change})"))
    row = given.render(query, output)
    assert row.text[row.output[1] :].strip('"') == "<|im_end|>\n"
    assert row.text[: row.output[0]].strip('"').endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "text",
    ["{{ 7*7 }}", "{% raw %}", "{% endfor %}", "{# x #}", "{query}", "{output}", "{", "}", "{0}", "%s", "\\1", "$&"],
)
def test_data_is_never_executed_or_formatted(text):
    for template in CHAT_TEMPLATES:
        row = renderer(template).render(f"a {text} b", f"c {text} d")
        assert row.text.count(text) == 2
    row = renderer(custom="{instruction}|{query}|{output}", instruction=f"i {text}").render(f"q {text}", f"o {text}")
    assert row.text == f"i {text}|q {text}|o {text}</s>"


def test_texts_that_contain_the_stand_ins():
    for template in CHAT_TEMPLATES:
        row = renderer(template).render("qRAGFITqueryq oRAGFIToutputo", "oRAGFIToutputo</think> oRAGFIToutputo x")
        assert row.text[slice(*row.output)].endswith("oRAGFIToutputo x")


TURN = "{% for m in messages %}{{ m.role + ':' + m.content + TAIL }}{% endfor %}{% if add_generation_prompt %}{{ HEADER }}{% endif %}"


@pytest.mark.parametrize(
    ("tail", "header", "loss", "after"),
    [
        ("''", "'assistant:'", "Rome</s>", ""),
        ("'\\n'", "'assistant:'", "Rome\n</s>", ""),
        ("eos_token", "'assistant:'", "Rome</s>", ""),
        ("' ' + eos_token + '\\n'", "'assistant:'", "Rome </s>", "\n"),
        ("'<|end|>\\n' + eos_token", "'assistant:'", "Rome<|end|>", "\n</s>"),
        # Both tokens of an end have loss, up to EOS, whatever ends the user's turn.
        ("'<|end|>' + (eos_token if m.role == 'assistant' else '') + '\\n'", "'assistant:'", "Rome<|end|></s>", "\n"),
        ("'<|end|>' + ('<|eot_id|>' if m.role == 'assistant' else '')", "'assistant:'", "Rome<|end|>", "<|eot_id|>"),
        # Text that looks like an end of turn but is no token: EOS follows it.
        ("'<end_of_turn>'", "'assistant:'", "Rome<end_of_turn></s>", ""),
    ],
)
def test_the_end_of_turn(tail, header, loss, after):
    template = TURN.replace("TAIL", tail).replace("HEADER", header)
    assert parts(renderer(template).render("Where?", "Rome"))[1:] == (loss, after)


def test_a_new_header_with_no_end_before_it_is_not_the_end():
    # The next turn's header is always there, the generation prompt asks for it a second time.
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}{% endfor %}"
        "{% if messages[-1].role == 'assistant' %}{{ '<|assistant|>\\n' }}{% endif %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )
    assert parts(renderer(template).render("Where?", "Rome"))[1:] == ("Rome\n</s>", "")


def test_no_eos_token():
    row = renderer(tokenizer=make_tokenizer(template="no end", eos_token=None)).render("Where?", "Rome")
    assert parts(row)[1:] == ("Rome\n", "")
    given = renderer(tokenizer=make_tokenizer(template="chatml", eos_token=None))
    assert parts(given.render("Where?", "Rome"))[1] == "Rome<|im_end|>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template. Set template to a file"),
        ("{{ nope(", "cannot render these messages"),
        ("{{ bos_token }}", "does not render the user's and the assistant's message one after the other"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "does not render the user's"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not render the user's"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "does not render the user's"),
        # For images: content is a list of parts.
        ("{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}", "does not render the user's"),
        ("{{ raise_exception('tools only') }}", "cannot render these messages: tools only"),
    ],
)
def test_templates_that_cannot_be_used(template, problem):
    with pytest.raises(PromptError, match=problem.replace("(", r"\(")):
        renderer(template)


@pytest.mark.parametrize(
    ("custom", "text", "completion"),
    [
        ("{query}{output}", "Q{x} A{y}</s>", " A{y}</s>"),
        ("{query}\n{output}\n", "Q{x}\n A{y}\n</s>", " A{y}\n</s>"),
        ("{{{query}}} -> {{{output}}}", "{Q{x}} -> { A{y}}</s>", " A{y}}</s>"),
        ("{{query}} {query} {{output}}: {output}", "{query} Q{x} {output}:  A{y}</s>", " A{y}</s>"),
        ("{instruction}\n{query}:{output}", "I{i}\nQ{x}: A{y}</s>", " A{y}</s>"),
        ("Q: {query}\nA:{output}</s>\n", "Q: Q{x}\nA: A{y}</s>\n", " A{y}</s>"),
        ("{query}<|im_end|>A:{output}<|im_end|>\n|", "Q{x}<|im_end|>A: A{y}<|im_end|>\n|", " A{y}<|im_end|>"),
    ],
)
def test_a_template_of_ones_own(custom, text, completion):
    row = renderer(custom=custom, instruction="I{i}").render("Q{x}", " A{y}")
    assert row.text == text
    assert parts(row)[1] == completion
    assert row.matches and row.text.startswith(row.prompt)
    assert row.text[slice(*row.user)] == "Q{x}" and row.text[slice(*row.output)] == " A{y}"


@pytest.mark.parametrize(
    "custom",
    [
        "{query}", "{output}", "plain", "{query}{query}{output}", "{query}{output}{output}", "{output}{query}",
        "{query}{output}{question}", "{query}{output}{}", "{query}{output}{0}",
        "{query.x}{output}", "{query}{output", "{query}{output}}", '{"q": "{query}"}{output}', "{query}{instruction}{output}",
        "{query}{output}{instruction}",
    ],
)  # fmt: skip
def test_templates_of_ones_own_that_are_wrong(custom):
    with pytest.raises(PromptError, match=r"^template: .* Write \{query\} once and, after it, \{output\} once"):
        renderer(custom=custom)


@pytest.mark.parametrize(
    ("custom", "in_prompt", "system", "text"),
    [
        ("{instruction}|{query}|{output}", False, "prompt", "I|Q|A</s>"),
        ("{query}|{output}", False, "dropped", "Q|A</s>"),
        ("{query}|{output}", True, "prompt", "I\nQ|A</s>"),
        # Once is enough.
        ("{instruction}|{query}|{output}", True, "prompt", "I|Q|A</s>"),
    ],
)
def test_the_instruction_in_a_template_of_ones_own(custom, in_prompt, system, text):
    given = renderer(custom=custom, instruction="I", instruction_in_prompt=in_prompt)
    assert given.system == system
    assert given.render("Q", "A").text == text


@pytest.mark.parametrize(
    ("custom", "marker", "query", "completion"),
    [
        ("{query}\nAnswer:{output}", "Answer:", "Where? Answer:", " Rome</s>"),
        # Nothing stands between them: the row's own prompt carries the marker.
        ("{query}{output}", "Answer:", "Where?\nAnswer:", " Rome</s>"),
        ("{query}{output}", "Answer:", "Answer: Where?\nAnswer:\n", "\n Rome</s>"),
        ("{query}\n{output}", "Answer:", "Where?\nAnswer:", "\n Rome</s>"),
    ],
)
def test_markers_in_a_template_of_ones_own(custom, marker, query, completion):
    row = renderer(custom=custom, completion_start=marker).render(query, " Rome")
    assert parts(row)[1] == completion


def test_a_row_without_the_marker_in_a_template_of_ones_own():
    given = renderer(custom="{query}{output}", completion_start="Answer:")
    with pytest.raises(PromptError, match=r"'Answer:' does not occur.*Leave it empty"):
        given.render("Answer: where?", "Rome")


@pytest.mark.parametrize(
    ("kind", "custom", "count"),
    [
        ("digits", "{query}{output}", 1),  # the tokenizer adds BOS by itself
        ("digits", f"{BOS}{{query}}{{output}}", 0),  # the template has it
        ("trimming", "{query}{output}", 0),  # the tokenizer does not add it
        ("trimming", f"{BOS}{{query}}{{output}}", 0),
        ("metaspace", "{query}{output}", 1),
    ],
)
def test_bos_is_put_before_a_template_of_ones_own_once(kind, custom, count):
    given = renderer(kind=kind, custom=custom)
    tokenizer = given.tokenizer
    assert given.bos == (tokenizer.bos_token_id,) * count
    row = given.render("Where?", "753")
    masked = Encoder(tokenizer, given.bos).encode([row])[0]
    assert masked.input_ids == tokenizer(row.text, add_special_tokens=bool(count))["input_ids"]
    assert masked.input_ids.count(tokenizer.bos_token_id) == (count or custom.count(BOS))
    assert tokenizer.decode(masked.input_ids[masked.start : masked.end]) == "753</s>"


def test_real_prompts_are_the_tokenizers_own(real_tokenizers):
    tokenizer = real_tokenizers
    refuses = "mistral" in tokenizer.kit_name
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Where? "}][refuses:]
    given = Renderer(tokenizer, "" if refuses else "Be brief.")
    assert given.system == ("none" if refuses else "dropped" if "apr2024" in tokenizer.kit_name else "kept")
    row = given.render(" Where? ", "Rome")
    assert row.matches
    assert row.prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Renderer(tokenizer, completion_start=given.suggestion).render("Where?", "Rome").marker
