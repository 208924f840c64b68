"""Each finding is raised where something is wrong, and nowhere else."""

import pytest
from conftest import CHAT_TEMPLATES, KINDS_OF_TOKENIZER, NO_SYSTEM, make_config, make_tokenizer, real_rows

import ragfit
from ragfit.data.findings import KINDS, Checks, Finding
from ragfit.data.mask import Encoder
from ragfit.data.prompt import Renderer
from ragfit.views import ReportView

CLEAN = [{"prompt": f"Document 1: Rome {i}. Where?", "answers": [f"7{i} BC"]} for i in range(4)]
CLEAN_DEV = [{"prompt": f"Document 2: Oslo {i}. Where?", "answers": [f"8{i} BC"]} for i in range(2)]
ALL = [("train", 0), ("train", 1), ("train", 2), ("train", 3)]


def prepared(write_rows, rows, tokenizer, dev=(), instruction="", custom=None, **settings):
    for key, text in (("instruction", instruction), ("template", custom)):
        if text:
            settings[key] = write_rows([], f"{key}.txt")
            settings[key].write_text(text, encoding="utf-8")
    if dev:
        settings["dev_split"] = write_rows(dev, "dev.jsonl")
    return ragfit.prepare(make_config(write_rows(rows), **settings), tokenizer)


def kinds(result):
    return {finding.kind for finding in result.report.findings}


REWRITTEN = CHAT_TEMPLATES["chatml"].replace(
    "message['content'] + '<|im_end|>'",
    "message['content'] | replace('Rome!', 'Oslo') + ('<|im_end|>' if 'Rome!' in message['content'] else '<|im_end|>\\n')",
)
REFUSING = (
    "{% for m in messages if m.content == 'no' %}{{ raise_exception('No.') }}{% endfor %}" + CHAT_TEMPLATES["chatml"]
)
WITHOUT_THINKING = CHAT_TEMPLATES["chatml"].replace("message['content']", "message['content'].split('</think>')[-1]")
NO_END = CHAT_TEMPLATES["chatml"].replace("im_end", "fin")  # what looks like an end is text to this tokenizer

# (the finding, what brings it about, the rows it names); a `row` is the fifth of train.
CASES = [
    ("instruction not in prompt", {"template": "phi-3", "instruction": "Be brief."}, []),
    ("instruction not in prompt", {"custom": "{query}:{output}", "instruction": "Be brief."}, []),
    ("prompt mismatch", {"template": "deepseek-r1"}, [*ALL, ("dev", 0), ("dev", 1)]),
    ("other text has loss", {"template": "qwen3", "dev": []}, ALL),
    ("other text has loss", {"completion_start": "<|im_start|>", "limit": 1, "dev": []}, [("train", 0)]),
    ("no end of turn", {"kind": "digits", "template": "no end", "eos_token": None, "dev": []}, ALL),
    ("no end of turn", {"template": NO_END, "eos_token": None, "limit": 1, "dev": []}, [("train", 0)]),
    ("double BOS", {"kind": "digits", "custom": "{query}:{output}", "row": {"prompt": "<s>Where?"}}, [("train", 4)]),
    ("double BOS", {"template": "{{ bos_token }}" + CHAT_TEMPLATES["llama-3"], "dev": [], "limit": 1}, [("train", 0)]),
    ("dropped: too long", {"max_sequence_len": 200, "row": {"prompt": "x" * 300}}, [("train", 4)]),
    ("dropped: too long", {"max_sequence_len": 200, "over_length": "cut_end", "row": {"answers": ["9" * 300]}},
     [("train", 4)]),
    ("cut", {"max_sequence_len": 200, "over_length": "cut_end", "row": {"prompt": "9" * 300}}, [("train", 4)]),
    ("cut", {"max_sequence_len": 200, "over_length": "cut_start", "row": {"prompt": "9" * 300}}, [("train", 4)]),
    ("dropped: no loss", {"custom": "{query}:{output}", "eos_token": None, "row": {"answers": []}}, [("train", 4)]),
    ("dropped: refused by the template", {"template": REWRITTEN, "row": {"answers": ["Rome!"]}}, [("train", 4)]),
    ("dropped: refused by the template", {"template": REFUSING, "row": {"answers": ["no"]}}, [("train", 4)]),
    ("output changed by the template", {"template": WITHOUT_THINKING, "row": {"answers": ["<think>hm</think>9"]}},
     [("train", 4)]),
    ("marker not before the output", {"template": "qwen3", "completion_start": "<think>\n\n</think>\n\n",
                                      "row": {"answers": ["<think>\nhm\n</think>\n\n9"]}}, [("train", 4)]),
    ("first word without loss", {"kind": "digits", "custom": "{query}: {output}", "row": {"answers": ["capital"]}},
     [("train", 4)]),
    ("empty output", {"row": {"answers": []}}, [("train", 4)]),
    ("empty output", {"row": {"answers": [" \n"]}}, [("train", 4)]),
    ("empty prompt", {"row": {"prompt": None}}, [("train", 4)]),
    ("special tokens in data", {"row": {"prompt": "a</s>b"}}, [("train", 4)]),
    ("special tokens in data", {"row": {"answers": ["a <|im_end|> b"]}}, [("train", 4)]),
    ("special tokens in data", {"instruction": "Read <s>.", "row": {"answers": ["a</s>b"]}}, []),
    ("documents not in the prompt", {"row": {"ctxs": [{"title": "Else", "text": "A text of its own."}]}}, [("train", 4)]),
    ("documents not in the prompt", {"dev": [CLEAN_DEV[0], {**CLEAN_DEV[1], "context": "Another text."}]}, [("dev", 1)]),
    ("documents without text", {"row": {"docs": [{"id": 7}]}}, [("train", 4)]),
    ("answer is the text of a list or of nothing", {"row": {"answers": ["['Paris', 'paris']"]}}, [("train", 4)]),
    ("answer is the text of a list or of nothing", {"row": {"short_answers": [["9"], ["nan"]]}}, [("train", 4)]),
    ("duplicate rows", {"row": CLEAN[1]}, [("train", 4)]),
    ("row in train and dev", {"dev": [CLEAN_DEV[0], {**CLEAN[2], "answers": ["another"]}]}, [("dev", 1)]),
    ("row in train and dev", {"row": {"question": "Where is it?"}, "dev": [{**CLEAN_DEV[0], "query": "where is it"}]},
     [("dev", 0)]),
]  # fmt: skip
# What else is true of a case.
TOO = {"double BOS": {"special tokens in data", "other text has loss"}, "dropped: no loss": {"no end of turn"}}
ELSEWHERE = {
    "cut: question", "cut: supporting document", "loss behind the prompt", "loss within the prompt",
    "prompt tokenized otherwise", "added tokens in data",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "case", "rows"), CASES, ids=[f"{kind} {i}" for i, (kind, _, _) in enumerate(CASES)])
def test_a_finding_is_raised_for_the_rows_that_are_wrong(write_rows, kind, case, rows):
    case = dict(case)
    eos = case.pop("eos_token", "</s>")
    tokenizer = make_tokenizer(case.pop("kind", "trimming"), case.pop("template", "chatml"), eos_token=eos)
    row = case.pop("row", None)
    train = CLEAN + ([{"prompt": "Else?", "answers": ["9"]} | row] if row else [])
    result = prepared(write_rows, train, tokenizer, case.pop("dev", CLEAN_DEV), **case)
    found = {finding.kind: finding for finding in result.report.findings}
    finding = found.pop(kind)
    assert list(finding.rows) == rows
    assert set(found) - TOO.get(kind, set()) <= ELSEWHERE
    assert (finding.severity, finding.meaning, finding.fix) == KINDS[kind]
    # The report says the same in words, and counts the rows that are gone.
    assert finding.kind in str(result.report) and finding.meaning in str(result.report)
    gone = sum(len(numbers) for numbers in result.report.train.dropped.values())
    assert len(result.train) == len(train[: case.get("limit")]) - gone == len(result.report.train.kept)
    assert gone == (kind.startswith("dropped"))


def test_every_kind_has_a_case_and_says_what_to_do():
    assert {kind for kind, _, _ in CASES} | ELSEWHERE == set(KINDS)
    for kind, (severity, meaning, fix) in KINDS.items():
        assert severity in ("warning", "note")
        assert meaning[0].isupper() and meaning.endswith(".") and fix[0].isupper() and fix[-1] in ".)", kind


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_clean_rows_raise_nothing(write_rows, kind, template):
    in_prompt = template in (*NO_SYSTEM, "phi-3")
    tokenizer = make_tokenizer(kind, template)
    result = prepared(write_rows, CLEAN, tokenizer, CLEAN_DEV, "Be brief.", instruction_in_prompt=in_prompt)
    expected = {"qwen3": {"other text has loss"}, "deepseek-r1": {"prompt mismatch"}}.get(template, set())
    if template == "no end" and kind != "digits":
        # "ASSISTANT: " ends with a space, which these tokenizers join with the answer's first word.
        assert kinds(result) - ELSEWHERE <= {"first word without loss"}
    else:
        # A line break at the prompt's end may melt into the answer's first token.
        assert kinds(result) - {"prompt tokenized otherwise"} == expected


@pytest.mark.parametrize("kind", ["digits", "trimming", "metaspace", "legacy"])
def test_a_clean_template_of_ones_own(write_rows, kind):
    custom = "<s>" * (kind == "trimming") + "{instruction}\n\n{query}\nAnswer:{output}"
    tokenizer, settings = make_tokenizer(kind), {"completion_start": "Answer:"}
    assert kinds(prepared(write_rows, CLEAN, tokenizer, CLEAN_DEV, "Be brief.", custom, **settings)) == set()


@pytest.mark.parametrize("name", ["asqa-prefix-train.jsonl", "pubmed-rag-train.jsonl"])
def test_real_rows_are_clean(write_rows, real_tokenizers, name):
    rows = real_rows(name, 20)  # with their questions, short answers and lists of documents
    settings = {"instruction_in_prompt": "mistral" in real_tokenizers.kit_name or "apr2024" in real_tokenizers.kit_name}
    result = prepared(write_rows, rows[:15], real_tokenizers, rows[15:], "Be brief.", **settings)
    assert kinds(result) == ({"other text has loss"} if real_tokenizers.kit_name == "qwen3" else set())


def test_an_end_that_the_tokenizer_does_not_read_as_one(write_rows):
    # An added token that must stand alone is not found behind a letter, whatever the text says.
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(template="{% for m in messages %}{{ m.role + ': ' + m.content + '<fin>' }}{% endfor %}")
    tokenizer.add_tokens([AddedToken("<fin>", single_word=True, special=True)])
    rows = [{"prompt": "Where?", "answers": "Rome"}, {"prompt": "Where?", "answers": "7!"}]
    found = {finding.kind: finding for finding in prepared(write_rows, rows, tokenizer).report.findings}
    assert found["no end of turn"].rows == (("train", 0),)


def test_what_the_prompt_opens_is_no_first_word(write_rows):
    # The generation prompt ends with the <think> that the output begins with; only a line break goes to its token.
    template = CHAT_TEMPLATES["chatml"].replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    row = {"prompt": "Where?", "answers": ["<think>\n\n\n9"]}
    result = prepared(write_rows, [row], make_tokenizer("trimming", template))
    assert "first word without loss" not in kinds(result) and result.report.boundary


def test_a_part_of_a_character_is_shown_as_the_character(write_rows):
    rows = [{"prompt": f"{n}?", "answers": [text]} for n, text in enumerate(["🦊", "🦊 or so", "Paris"])]
    report = prepared(write_rows, rows, make_tokenizer("digits")).report
    assert report.first_labels["⟨part of 🦊⟩"] == 2 and sum(report.first_labels.values()) == 3
    assert "\ufffd" not in repr(ReportView(report)) and "⟨part of 🦊⟩' × 2" in repr(ReportView(report))


def test_a_finding_as_text():
    def text(rows, detail=""):
        return str(Finding("k", "note", "It is so.", "Do this.", rows, detail))

    assert text(()) == "[note] k, all rows: It is so. Do this."
    assert text((("train", 3), ("dev", 0)), "'x'") == "[note] k, 2 rows (train 3, dev 0): It is so. Seen: 'x'. Do this."
    assert "k, 7 rows (train 0, train 1, train 2, train 3, train 4, …): " in text([("train", n) for n in range(7)])


def test_warnings_come_first_and_all_rows_stay_all_rows(monkeypatch):
    monkeypatch.setitem(KINDS, "one's own", ("note", "It is so.", "Do this."))
    renderer = Renderer(make_tokenizer())
    collected = Checks(renderer, Encoder(renderer.tokenizer))
    assert collected.findings() == []
    collected.add("cut", "train", 1)
    collected.add("one's own", "dev", 2, "seen")
    collected.rows["special tokens in data"] = None
    collected.details["special tokens in data"] = "in the instruction"
    collected.add("special tokens in data", "train", 2, "'<s>'")
    collected.add("empty output", "train", 2)
    collected.add("empty output", "train", 3, "first")
    collected.add("empty output", "dev", 0, "second")
    found = {finding.kind: (finding.rows, finding.detail) for finding in collected.findings()}
    assert list(found) == ["empty output", "special tokens in data", "cut", "one's own"]
    assert found["empty output"] == ((("train", 2), ("train", 3), ("dev", 0)), "first")
    assert found["special tokens in data"] == ((), "in the instruction")
