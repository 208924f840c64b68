"""Each finding is raised where something is wrong, and nowhere else."""

import pytest
from conftest import CHAT_TEMPLATES, KINDS_OF_TOKENIZER, NO_SYSTEM, make_config, make_tokenizer, real_rows

import ragfit
from ragfit.data.findings import KINDS, Checks, Finding
from ragfit.data.prompt import Renderer

CLEAN = [{"prompt": f"Document 1: Rome {i}. Where?", "answers": [f"7{i} BC"]} for i in range(4)]
CLEAN_DEV = [{"prompt": f"Document 2: Oslo {i}. Where?", "answers": [f"8{i} BC"]} for i in range(2)]


def prepared(write_rows, rows, tokenizer, dev=(), instruction="", custom=None, **settings):
    if instruction:
        settings["instruction"] = write_rows([], "instruction.txt")
        settings["instruction"].write_text(instruction, encoding="utf-8")
    if custom is not None:
        settings["template"] = write_rows([], "template.txt")
        settings["template"].write_text(custom, encoding="utf-8")
    if dev:
        settings["dev_split"] = write_rows(dev, "dev.jsonl")
    return ragfit.prepare(make_config(write_rows(rows), **settings), tokenizer)


def kinds(result):
    return {finding.kind for finding in result.report.findings}


# (the finding, what brings it about, the rows it names)
CASES = [
    ("instruction not in prompt", {"template": "phi-3", "instruction": "Be brief."}, []),
    ("instruction not in prompt", {"custom": "{query}:{output}", "instruction": "Be brief."}, []),
    (
        "prompt mismatch",
        {"template": "deepseek-r1"},
        [("train", 0), ("train", 1), ("train", 2), ("train", 3), ("dev", 0), ("dev", 1)],
    ),
    ("other text has loss", {"template": "qwen3", "dev": []}, [("train", 0), ("train", 1), ("train", 2), ("train", 3)]),
    ("other text has loss", {"completion_start": "<|im_start|>", "limit": 1, "dev": []}, [("train", 0)]),
    (
        "no end of turn",
        {"kind": "digits", "template": "no end", "eos_token": None, "dev": []},
        [("train", 0), ("train", 1), ("train", 2), ("train", 3)],
    ),
    # What looks like an end is text to this tokenizer, and it has no EOS to add.
    (
        "no end of turn",
        {"template": CHAT_TEMPLATES["chatml"].replace("im_end", "fin"), "eos_token": None, "limit": 1, "dev": []},
        [("train", 0)],
    ),
    ("double BOS", {"kind": "digits", "custom": "{query}:{output}", "row": {"prompt": "<s>Where?"}}, [("train", 4)]),
    ("double BOS", {"template": "{{ bos_token }}" + CHAT_TEMPLATES["llama-3"], "dev": [], "limit": 1}, [("train", 0)]),
    ("dropped: too long", {"max_sequence_len": 200, "row": {"prompt": "x" * 300}}, [("train", 4)]),
    (
        "dropped: too long",
        {"max_sequence_len": 200, "over_length": "cut_end", "row": {"answers": ["9" * 300]}},
        [("train", 4)],
    ),
    ("cut", {"max_sequence_len": 200, "over_length": "cut_end", "row": {"prompt": "9" * 300}}, [("train", 4)]),
    ("cut", {"max_sequence_len": 200, "over_length": "cut_start", "row": {"prompt": "9" * 300}}, [("train", 4)]),
    ("dropped: no loss", {"custom": "{query}:{output}", "eos_token": None, "row": {"answers": []}}, [("train", 4)]),
    (
        "dropped: place of output unknown",
        {
            "template": CHAT_TEMPLATES["chatml"].replace(
                "message['content'] + '<|im_end|>'",
                "message['content'] | replace('Rome!', 'Oslo') + ('<|im_end|>' if 'Rome!' in message['content'] else '<|im_end|>\\n')",
            ),
            "row": {"answers": ["Rome!"]},
        },
        [("train", 4)],
    ),
    (
        "dropped: refused by the template",
        {
            "template": "{% for m in messages if m.content == 'no' %}{{ raise_exception('No.') }}{% endfor %}"
            + CHAT_TEMPLATES["chatml"],
            "row": {"answers": ["no"]},
        },
        [("train", 4)],
    ),
    (
        "output changed by the template",
        {
            "template": CHAT_TEMPLATES["chatml"].replace(
                "message['content']", "message['content'].split('</think>')[-1]"
            ),
            "row": {"answers": ["<think>hm</think>9"]},
        },
        [("train", 4)],
    ),
    (
        "marker not before the output",
        {
            "template": "qwen3",
            "completion_start": "<think>\n\n</think>\n\n",
            "row": {"answers": ["<think>\nhm\n</think>\n\n9"]},
        },
        [("train", 4)],
    ),
    ("empty output", {"row": {"answers": []}}, [("train", 4)]),
    ("empty output", {"row": {"answers": [" \n"]}}, [("train", 4)]),
    ("empty prompt", {"row": {"prompt": None}}, [("train", 4)]),
    ("special tokens in data", {"row": {"prompt": "a</s>b"}}, [("train", 4)]),
    ("special tokens in data", {"row": {"answers": ["a <|im_end|> b"]}}, [("train", 4)]),
    ("special tokens in data", {"instruction": "Read <s>.", "row": {"answers": ["a</s>b"]}}, []),
    ("dated template", {"template": "dated"}, []),
    ("duplicate rows", {"row": CLEAN[1]}, [("train", 4)]),
    ("row in train and dev", {"dev": [CLEAN_DEV[0], {**CLEAN[2], "answers": ["another"]}]}, [("dev", 1)]),
    ("boundary token", {"row": {"answers": ["\n\n7"]}}, [("train", 4)]),
    (
        "first word without loss",
        {"kind": "digits", "custom": "{query}: {output}", "row": {"answers": ["capital"]}},
        [("train", 4)],
    ),
]
# What else is true of a case.
TOO = {
    "double BOS": {"special tokens in data", "other text has loss"},
    "no end of turn": set(),
    "dropped: no loss": {"no end of turn"},
    "empty output": {"boundary token"},
}


@pytest.mark.parametrize(("kind", "case", "rows"), CASES, ids=[f"{kind} {i}" for i, (kind, _, _) in enumerate(CASES)])
def test_a_finding_is_raised_for_the_rows_that_are_wrong(write_rows, kind, case, rows):
    case = dict(case)
    tokenizer = make_tokenizer(
        case.pop("kind", "trimming"),
        case.pop("template", "chatml"),
        eos_token=case.pop("eos_token", "</s>"),
    )
    row = case.pop("row", None)
    train = CLEAN + ([{**{"prompt": "Else?", "answers": ["9"]}, **row}] if row else [])
    dev = case.pop("dev", CLEAN_DEV)
    result = prepared(write_rows, train, tokenizer, dev, **case)
    found = {finding.kind: finding for finding in result.report.findings}
    assert kind in found
    assert list(found[kind].rows) == rows
    assert set(found) - {kind} <= TOO.get(kind, set())
    finding = found[kind]
    assert (finding.severity, finding.meaning, finding.fix) == KINDS[kind]
    # The report says the same in words, and counts the rows that are gone.
    assert str(finding) in str(result.report)
    gone = sum(len(numbers) for numbers in result.report.train.dropped.values())
    assert len(result.train) == len(train[: case.get("limit")]) - gone == len(result.report.train.kept)
    assert gone == (kind.startswith("dropped"))


def test_every_kind_has_a_case():
    in_other_tests = {"data file changed", "supporting document in one place"}  # in test_data, test_documents
    assert {kind for kind, _, _ in CASES} | in_other_tests == set(KINDS)


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_clean_rows_raise_nothing(write_rows, kind, template):
    result = prepared(
        write_rows,
        CLEAN,
        make_tokenizer(kind, template),
        CLEAN_DEV,
        "Be brief.",
        instruction_in_prompt=template in (*NO_SYSTEM, "phi-3"),
    )
    expected = {"qwen3": {"other text has loss"}, "deepseek-r1": {"prompt mismatch"}, "dated": {"dated template"}}.get(
        template, set()
    )
    if template == "no end" and kind != "digits":
        # "ASSISTANT: " ends with a space, which these tokenizers join with the answer's first word.
        assert kinds(result) in ({"first word without loss"}, set())
    else:
        assert kinds(result) == expected


def test_an_end_that_the_tokenizer_does_not_read_as_one(write_rows):
    # An added token that must stand alone is not found behind a letter, whatever the text says.
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(template="{% for m in messages %}{{ m.role + ': ' + m.content + '<fin>' }}{% endfor %}")
    tokenizer.add_tokens([AddedToken("<fin>", single_word=True, special=True)])
    rows = [{"prompt": "Where?", "answers": "Rome"}, {"prompt": "Where?", "answers": "7!"}]
    found = {finding.kind: finding for finding in prepared(write_rows, rows, tokenizer).report.findings}
    assert found["no end of turn"].rows == (("train", 0),)


def test_a_clean_template_of_ones_own(write_rows):
    for kind in ("digits", "trimming", "metaspace", "legacy"):
        custom = (
            "<s>{instruction}\n\n{query}\nAnswer:{output}"
            if kind == "trimming"
            else "{instruction}\n\n{query}\nAnswer:{output}"
        )
        result = prepared(
            write_rows, CLEAN, make_tokenizer(kind), CLEAN_DEV, "Be brief.", custom, completion_start="Answer:"
        )
        assert kinds(result) == set()


@pytest.mark.parametrize("name", ["asqa-prefix-train.jsonl", "pubmed-rag-train.jsonl"])
def test_real_rows_are_clean(write_rows, real_tokenizers, name):
    rows = [{"prompt": row["prompt"], "answers": row["answers"]} for row in real_rows(name, 20)]
    marker = "</think>\n\n" if "qwen" in real_tokenizers.kit_name else ""
    result = prepared(
        write_rows,
        rows[:15],
        real_tokenizers,
        rows[15:],
        "Be brief.",
        instruction_in_prompt=True,
        completion_start=marker,
    )
    assert kinds(result) == set()


def test_real_tokenizers_and_what_they_are_known_for(write_rows, real_tokenizers):
    name = real_tokenizers.kit_name
    rows = [
        *CLEAN,
        {"prompt": "Where?", "answers": ["\n\nRome"]},
        {"prompt": "Who?", "answers": [f"a {real_tokenizers.eos_token} b"]},
    ]
    settings = {"instruction_in_prompt": "mistral" in name}
    result = prepared(write_rows, rows, real_tokenizers, instruction="Be brief.", **settings)
    found = {finding.kind: list(finding.rows) for finding in result.report.findings}
    assert ("instruction not in prompt" in found) == ("apr2024" in name)
    assert found.get("other text has loss", []) == ([("train", i) for i in range(6)] if name == "qwen3" else [])
    assert found["special tokens in data"] == [("train", 5)]
    # "\n\n" melts into the line break that ends these prompts, or the marker token swallows it.
    melts = name in ("smollm2-135m-instruct", "phi-3-mini-4k-instruct")
    assert found.get("boundary token", []) == ([("train", 4)] if melts else [])


# --- As text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "detail", "text"),
    [
        ((), "", "[note] k, all rows: It is so. Do this."),
        ((("train", 3),), "", "[note] k, 1 row (train 3): It is so. Do this."),
        ((("train", 3), ("dev", 0)), "'x'", "[note] k, 2 rows (train 3, dev 0): It is so. Seen: 'x'. Do this."),
        (
            tuple(("train", i) for i in range(7)),
            "",
            "[note] k, 7 rows (train 0, train 1, train 2, train 3, train 4, …): It is so. Do this.",
        ),
    ],
)
def test_a_finding_as_text(rows, detail, text):
    assert str(Finding("k", "note", "It is so.", "Do this.", rows, detail)) == text


def test_warnings_come_first_and_all_rows_stay_all_rows():
    renderer = Renderer(make_tokenizer())
    collected = Checks(renderer)
    collected.add("cut", "train", 1)
    collected.everywhere("special tokens in data", "in the instruction")
    collected.add("special tokens in data", "train", 2, "'<s>'")
    collected.add("empty output", "train", 2)
    collected.add("empty output", "train", 3, "first")
    collected.add("empty output", "dev", 0, "second")
    found = collected.findings()
    assert [finding.kind for finding in found] == ["empty output", "special tokens in data", "cut"]
    assert found[0].rows == (("train", 2), ("train", 3), ("dev", 0)) and found[0].detail == "first"
    assert found[1].rows == () and found[1].detail == "in the instruction"
    assert Checks(renderer).findings() == []


def test_every_kind_says_what_it_means_and_what_to_do():
    for kind, (severity, meaning, fix) in KINDS.items():
        assert severity in ("warning", "note")
        assert meaning[0].isupper() and meaning.endswith(".") and fix[0].isupper() and fix.endswith("."), kind


@pytest.mark.parametrize(
    ("output", "kind"),
    [("<think>\n\n\n9", "boundary token"), ("<think>\nParis", None)],
)
def test_what_the_prompt_opens_is_no_first_word(write_rows, output, kind):
    # The generation prompt ends with the <think> that the output begins with; only a line break goes to its token.
    template = CHAT_TEMPLATES["chatml"].replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    row = {"prompt": "Where?", "answers": [output]}
    result = prepared(write_rows, [row], make_tokenizer("trimming", template), None)
    assert kinds(result) == ({kind} if kind else set())
