"""Which tokens have loss. The rules are checked against an oracle that reads tokens, not offsets."""

import json
import string
import unicodedata
from functools import cache

import pytest
from conftest import CHAT_TEMPLATES, EOS, KINDS_OF_TOKENIZER, MARKERS, NO_SYSTEM, make_tokenizer, real_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ragfit.data.mask import Encoder
from ragfit.data.prompt import Renderer


def _byte_of():
    """The byte that each character of a byte-level token stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in printable)})
    return table


BYTE_OF = _byte_of()


@cache
def habits(tokenizer):
    """(whether tokens are byte-level, when a space is inserted before a segment, the added tokens)."""
    backend = tokenizer.backend_tokenizer
    shape = "".join(part.__getstate__().decode() for part in (backend.normalizer, backend.pre_tokenizer) if part)
    inserts = (
        "always" if '"Prepend"' in shape
        else "unless space" if '"add_prefix_space":true' in shape or '"prepend_scheme":"always"' in shape
        else "first" if '"prepend_scheme":"first"' in shape
        else ""
    )  # fmt: skip
    return '"ByteLevel"' in shape, inserts, dict(tokenizer.added_tokens_decoder)


def token_starts(tokenizer, text, ids):
    """For each token, the character it starts in and the one it ends before, by counting the bytes of the tokens.

    Knows nothing of offsets: the tokens' bytes, put together, must be the text's bytes.
    """
    byte_level, inserts, added = habits(tokenizer)
    owner, data = [], b""
    for i, character in enumerate(text):
        piece = b" " if character == "▁" and not byte_level else character.encode()  # SentencePiece has one for both
        data += piece
        owner += [i] * len(piece)
    owner.append(len(text))
    at, new_segment, found = 0, True, []
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        begin = at
        if token_id in added:
            assert data[at : data.index(token.encode(), at)].decode().strip() == ""
            assert added[token_id].lstrip or data[at:].startswith(token.encode())
            at = data.index(token.encode(), at) + len(token.encode())
            while added[token_id].rstrip and at < len(data) and text[owner[at]].isspace():
                at += len(text[owner[at]].encode())
            new_segment = True
        else:
            if byte_level:
                piece = bytes(BYTE_OF[c] for c in token)
            elif token.startswith("<0x") and len(token) == 6:
                piece = bytes([int(token[3:5], 16)])
            else:
                piece = token.replace("▁", " ").encode()
            if new_segment and (
                inserts == "always"
                or not data[at:].startswith(b" ")
                and (inserts == "unless space" or inserts == "first" and at == 0)
            ):
                assert piece.startswith(b" "), (token, data[at : at + 20])
                piece = piece[1:]
            new_segment = False
            assert data[at:].startswith(piece), (token, data[at : at + 20])
            at += len(piece)
        # A token that stands for an inserted space alone belongs to the character it was put before.
        found.append((owner[begin], owner[at - 1] + 1 if at > begin else owner[begin]))
    assert at == len(data)
    return found


def check(tokenizer, row, masked, shift=0):
    """Rule by rule: what has loss is exactly what starts in the completion."""
    ids = masked.input_ids[shift:]
    spans = token_starts(tokenizer, row.text, ids)
    starts = [start for start, _ in spans]
    start = next((i for i, s in enumerate(starts) if s >= row.completion_char), len(ids))
    end = next((i for i, s in enumerate(starts) if s >= row.end_char), len(ids))
    assert (masked.start - shift, masked.end - shift) == (start, end)
    spanning = start > 0 and spans[start - 1][0] < row.completion_char < spans[start - 1][1]
    assert (masked.boundary is not None) == spanning
    labels = masked.labels()
    behind = len(labels) - max(masked.start, masked.end)
    assert labels == [-100] * masked.start + masked.input_ids[masked.start : masked.end] + [-100] * behind


def _qwen3(output):
    thought = ""
    if "</think>" in output:
        thought = output.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n").strip("\n")
        output = output.split("</think>")[-1]
    return f"<think>\n{thought}\n</think>\n\n" + output.lstrip("\n") + "<|im_end|>"


# What follows the generation prompt in the training text, up to the end of the turn.
COMPLETIONS = {
    "chatml": lambda output: output + "<|im_end|>",
    "default system": lambda output: output + "<|im_end|>",
    "llama-3": lambda output: output.strip() + "<|eot_id|>",
    "llama-2": lambda output: f" {output.strip()} {EOS}",
    "phi-3": lambda output: output + "<|end|>",
    "zephyr": lambda output: output + EOS,
    "mistral": lambda output: output + EOS,
    "qwen3": _qwen3,
    "dated": lambda output: output.strip() + "<|eot_id|>",
    "deepseek-r1": lambda output: output.split("</think>")[-1] + EOS,
    "no end": lambda output: output + "\n" + EOS,
    "trims": lambda output: output.strip() + "<|im_end|>",
}

TRICKY = [
    "", " ", "\n", "\n\n\n", " Paris", "Paris ", "\nParis\n", "\n\n  \tParis \r\n", "\u0301combining first", "\u200d", "e\u0301 é",
    "👩‍👩‍👧 family", "👩", "🇫🇷🇩🇪", "مرحبا بالعالم", "שלום", "東京", "\x00\x01\x1f\x7f", "\u2028\u2029\x85", "\ufeffBOM", "\u3000wide", "ﬁ ½ Ａ",
    "{{ 7*7 }}", "{% raw %}", "{% endraw %}{% endfor %}", "{query}{output}", "{", "}}", "a\\nb", "</think>", "<think>\nhm\n</think>\n\nyes", "x</think>",
    "<think>", "<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nx",
    "[/INST]", " [/INST] ", "<|assistant|>", "<|assistant|>\n", "<|assistant|>  \n x", "ASSISTANT: ", "<pad>", "<unk>", "<0x41>", "▁", "▁x", "Ġ", "##ing",
    "753", "a  b   c",
]  # fmt: skip


@cache
def tools(kind, template, marker=""):
    tokenizer = make_tokenizer(kind, template)
    renderer = Renderer(tokenizer, "" if template in NO_SYSTEM else "Be brief.", completion_start=marker)
    return renderer, Encoder(tokenizer, renderer.bos)


def render(template, renderer, query, output):
    """Render and check the text against the template's own way of speaking."""
    row = renderer.render(query, output)
    expected = COMPLETIONS[template](output)
    assert row.text.startswith(row.prompt) == row.matches
    assert row.text[: row.end_char].endswith(expected)
    assert row.end_char - len(expected) <= row.output[0] <= row.output[1] < row.end_char
    if not renderer.marker:
        assert row.text[row.completion_char : row.end_char] == expected
    else:
        assert row.text[: row.completion_char].endswith(renderer.marker)
        rest = row.text[row.completion_char : row.end_char]
        # A marker may end before the generation prompt does ("<|assistant|>" before a line break).
        assert rest.endswith(expected) and not rest.removesuffix(expected).strip()
    return row


def test_a_token_over_the_boundary_belongs_to_the_prompt_and_is_reported():
    # Two line breaks are one token, so the answer's own first line break melts into the template's.
    renderer, encoder = tools("trimming", "chatml")
    row = renderer.render("Q", "\n\nParis")
    masked = encoder.encode([row])[0]
    assert renderer.tokenizer.convert_ids_to_tokens(masked.input_ids[masked.start - 1]) == "ĊĊ"
    assert row.text[slice(*masked.boundary)] == "\n\n"
    assert renderer.tokenizer.decode(masked.input_ids[masked.start : masked.end]) == "\nParis<|im_end|>"


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_ids_are_the_tokenizers_own_without_special_tokens_added(kind):
    renderer, encoder = tools(kind, "llama-3")
    rows = [renderer.render("Where?", output) for output in ("Paris", " 東京 é\n", "x" * 300)]
    for row, masked in zip(rows, encoder.encode(rows), strict=True):
        assert masked.input_ids == renderer.tokenizer(row.text, add_special_tokens=False)["input_ids"]
        assert masked.input_ids.count(renderer.tokenizer.bos_token_id) == 1
        assert encoder.encode([row])[0] == masked  # no padding to the batch, no truncation
        assert encoder.spans(row.text)[0] == masked.input_ids


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_every_tricky_output(kind, template):
    for marker in ("", MARKERS[template]):
        renderer, encoder = tools(kind, template, marker)
        rows = [render(template, renderer, "Where? 12", output) for output in TRICKY]
        for row, masked in zip(rows, encoder.encode(rows), strict=True):
            verify(kind, renderer.tokenizer, row, masked)


def verify(kind, tokenizer, row, masked):
    if kind == "nfc" and unicodedata.normalize("NFC", row.text) != row.text:
        # The normalizer joins characters, so bytes cannot be counted; whole characters still decide.
        tail = tokenizer.decode(masked.input_ids[masked.start : masked.end])
        assert unicodedata.normalize("NFC", row.text[row.completion_char : row.end_char]).endswith(tail)
        return
    if kind in ("unigram", "wordpiece"):
        # These do not keep every character; the offsets are all there is.
        offsets = Encoder(tokenizer).backend.encode(row.text, add_special_tokens=False).offsets
        labelled = [masked.start <= i < masked.end for i in range(len(offsets))]
        assert labelled == [row.completion_char <= start < row.end_char for start, _ in offsets]
    else:
        check(tokenizer, row, masked)


pieces = st.one_of(
    st.sampled_from(TRICKY),
    st.text(max_size=8),
    st.text(alphabet=" \n\t\r", max_size=4),
    st.text(alphabet=string.ascii_letters + " .,0123456789", max_size=20),
    st.text(alphabet=st.characters(categories=("Lo", "Mn", "Mc", "So", "Sk", "Cf", "Zs")), max_size=4),
)
texts = st.lists(pieces, max_size=4).map("".join).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))
SETTINGS = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
@SETTINGS
@given(st.sampled_from(KINDS_OF_TOKENIZER), st.sampled_from(sorted(CHAT_TEMPLATES)), st.booleans(), texts, texts)
def test_rules_hold_for_every_tokenizer_template_and_text(kind, template, with_marker, query, output):
    renderer, encoder = tools(kind, template, MARKERS[template] if with_marker else "")
    row = render(template, renderer, query, output)
    verify(kind, renderer.tokenizer, row, encoder.encode([row])[0])


@SETTINGS
@given(st.sampled_from(KINDS_OF_TOKENIZER), st.sampled_from(sorted(CHAT_TEMPLATES)), texts, texts, st.integers(0, 3))
def test_a_quoted_marker_changes_nothing(kind, template, query, output, place):
    marker = MARKERS[template]
    renderer, encoder = tools(kind, template, marker)
    quoted = (
        (marker + query, output), (query + marker, output), (query, marker + output), (query, f"{output} {marker}"),
    )[place]  # fmt: skip
    row = render(template, renderer, *quoted)
    plain, _ = tools(kind, template)
    unmarked = plain.render(*quoted)
    assert row.text == unmarked.text
    if row.matches:
        # The marker may end before the generation prompt ends, never behind it, whatever the texts say.
        assert unmarked.completion_char - 2 <= row.completion_char <= unmarked.completion_char
    verify(kind, renderer.tokenizer, row, encoder.encode([row])[0])


def test_truncation_and_padding_of_the_tokenizer_or_another_call_do_nothing():
    tokenizer = make_tokenizer("baked", "chatml")
    assert tokenizer.backend_tokenizer.truncation and tokenizer.backend_tokenizer.padding
    renderer, encoder = Renderer(tokenizer), Encoder(tokenizer)
    rows = [renderer.render("Q " * 30, "Paris"), renderer.render("Q", "P")]
    before = encoder.encode(rows)
    for row, masked in zip(rows, before, strict=True):
        assert tokenizer.decode(masked.input_ids) == row.text
        check(tokenizer, row, masked)
    tokenizer(["a", "a long text"], padding=True, truncation=True, max_length=4)
    assert encoder.encode(rows) == before and encoder.spans(rows[0].text)[0] == before[0].input_ids


@pytest.mark.parametrize(
    "processor",
    [
        '{"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": true, "add_prefix_space": false}',
        '{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}',
        '{"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}',
        "null",
    ],
)
def test_trimmed_offsets_never_show(processor):
    tokenizer = make_tokenizer("trimming", "chatml")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = json.loads(processor)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    before = tokenizer.backend_tokenizer.to_str()
    renderer = Renderer(tokenizer, template="{query} {output}")
    for output in ("capital", " capital", "\n\n capital"):
        row = renderer.render("the", output)
        check(tokenizer, row, Encoder(tokenizer).encode([row])[0])
    assert tokenizer.backend_tokenizer.to_str() == before  # the tokenizer that is saved with the model stays as it was


# What ends the assistant's turn, and what stands before its answer.
REAL = {
    "llama-2-7b-chat": ("</s>", "[/INST]"),
    "llama-3.1-8b-instruct": ("<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "mistral-7b-instruct-v0.1": ("</s>", "[/INST]"),
    "phi-3-mini-128k-instruct-apr2024": ("<|end|>", "<|assistant|>\n"),
    "phi-3-mini-4k-instruct": ("<|end|>", "<|assistant|>\n"),
    "qwen3": ("<|im_end|>", "<|im_start|>assistant\n"),
    "smollm2-135m-instruct": ("<|im_end|>", "<|im_start|>assistant\n"),
    "zephyr-7b-beta": ("</s>", "<|assistant|>\n"),
}


def first_text(value):
    while isinstance(value, list):
        value = value[0]
    return value


def test_real_tokenizers_on_real_rows(real_tokenizers):
    tokenizer, name = real_tokenizers, real_tokenizers.kit_name
    rows = [(row["prompt"], first_text(row["answers"])) for row in real_rows("asqa-prefix-train.jsonl", 8)]
    rows += [(row["prompt"], first_text(row["answers"])) for row in real_rows("pubmed-rag-train.jsonl", 15)]
    rows += [(row["prompt"], row["generated_answer"]) for row in real_rows("asqa-raft-cot-train.jsonl", 2)]
    end, marker = REAL[name]
    for given_marker in ("", marker):
        renderer = Renderer(tokenizer, "Use the documents.", None, "mistral" in name, given_marker)
        encoder = Encoder(tokenizer, renderer.bos)
        quoted = [(f"{marker} {query}", f"{output}{marker}{output}") for query, output in rows]
        rendered = [renderer.render(*row) for row in rows + quoted]
        for (_, output), row, masked in zip(rows + quoted, rendered, encoder.encode(rendered), strict=True):
            assert masked.input_ids == tokenizer(row.text, add_special_tokens=False)["input_ids"]
            check(tokenizer, row, masked)
            completion = row.text[row.completion_char : row.end_char]
            if name == "qwen3":
                assert completion.startswith("<think>\n\n</think>\n\n")
                completion = completion.removeprefix("<think>\n\n</think>\n\n")
            assert completion.removesuffix(end).strip() == output.strip()
            assert tokenizer.convert_ids_to_tokens(masked.input_ids[masked.end - 1]) == end


def test_real_tokenizers_on_tricky_outputs(real_tokenizers):
    tokenizer, name = real_tokenizers, real_tokenizers.kit_name
    end, its_marker = REAL[name]
    for marker in ("", its_marker):
        renderer = Renderer(tokenizer, completion_start=marker)
        rows = [renderer.render("Where? 12", output) for output in TRICKY]
        for output, row, masked in zip(TRICKY, rows, Encoder(tokenizer).encode(rows), strict=True):
            if "qwen" not in name or "</think>" not in output:
                completion = row.text[row.completion_char : row.end_char].removeprefix("<think>\n\n</think>\n\n")
                assert completion.removesuffix(end).strip() == output.strip()
            verify("nfc" if "qwen" in name else name, tokenizer, row, masked)
