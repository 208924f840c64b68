"""Tokenizers trained here, with chat templates as models ship them."""

import functools
import json

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# Added tokens of the trained tokenizers: those that the templates below write.
TURN_TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|user|>", "<|assistant|>", "<|end|>",
]  # fmt: skip

CORPUS = [
    "What is the capital of France? The capital of France is Paris, a city of 2,100,000 people.",
    "Answer the question with the documents. Document 1: Rome was founded in 753 BC. Document 2: no idea.",
    "system user assistant question answer think context yes no maybe",
    "### Instruction:\nRead.\n\n### Response:\nDone.\n\n\n  two  spaces\t tabs\r\n",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello <think>\n\n</think>\n\n",
    "東京は日本の首都です。Привет, мир! مرحبا بالعالم café déjà vu 👩‍👩‍👧 ﬁ 1/2",
    "Answer: ANSWER: <ANSWER>: 42 = 6 * 7; {{ 7*7 }} {% raw %} {query} {output}",
] * 3

# Chat templates, each with the habit that makes it worth testing. They are the models' own, without tools.
CHAT_TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # Adds a system message of its own where there is none (SmolLM2, Qwen2.5).
    "default system": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # BOS in the template, trims, and a new assistant header after the answer, whatever is asked for (Llama-3, 4/2024).
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
    # Merges the system message into the user's, strips, and writes a space before EOS.
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    # Drops the system message without a word (Phi-3, 4/2024). The generation prompt is there whatever is asked for.
    "phi-3": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\\n' + message['content'] + "
        "'<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\\n'}}"
        "{% endif %}{% endfor %}",
    # The role markers are plain text in Zephyr's vocabulary: `plain_markers` leaves them out of the added tokens.
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    # Refuses a system message and turns that do not alternate (Mistral v0.1).
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    # Splits the answer at </think>, and puts an empty think block before it, in the training text only.
    "qwen3": "{%- for message in messages %}{%- if message.role != 'assistant' %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- else %}"
        "{%- set content = message.content %}{%- set reasoning = '' %}{%- if '</think>' in message.content %}"
        "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
        "{%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}"
        "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    # Writes today's date into the system message (Llama-3.2).
    "dated": "{{- bos_token }}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
        "{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}",
    # The generation prompt opens a think block that the training text does not have (DeepSeek-R1).
    "deepseek-r1": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
        "{% else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}",
    # No end of turn at all.
    "no end": "{% for message in messages %}{{ message['role'] | upper + ': ' + message['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}",
    # Trims every message (Gemma); roles of its own.
    "trims": "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|im_start|>' + role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<|im_start|>model\\n'}}{% endif %}",
}  # fmt: skip
# A marker for each: the end of what the template writes before the answer.
MARKERS = {
    "chatml": "<|im_start|>assistant\n", "default system": "<|im_start|>assistant\n",
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n", "llama-2": "[/INST]", "phi-3": "<|assistant|>",
    "zephyr": "<|assistant|>\n", "mistral": "[/INST]", "qwen3": "<|im_start|>assistant\n", "dated": "<|end_header_id|>\n\n",
    "deepseek-r1": "<|assistant|>", "no end": "ASSISTANT: ", "trims": "<|im_start|>model\n",
}  # fmt: skip
NO_SYSTEM = ("mistral",)


BYTE_LEVEL = ("trimming", "digits", "nfc", "whole", "greedy", "baked")
KINDS_OF_TOKENIZER = (*BYTE_LEVEL, "prefix space", "metaspace", "legacy", "unigram", "wordpiece")
SPECIALS = [PAD, BOS, EOS, "<unk>"]


def _byte_level(kind):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    # Kind "whole" knows no words: a token may join anything to anything.
    words = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix space", use_regex=kind != "whole")
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "digits" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, words]) if digits else words
    if kind == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=560, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind in ("trimming", "nfc"):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "baked":
        tokenizer.enable_truncation(16)
        tokenizer.enable_padding(length=64, pad_id=0, pad_token=PAD)
    return tokenizer


def _sentence_piece(kind):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # As SentencePiece with a small character coverage: some characters only exist as bytes.
    corpus = ["".join(c for c in text if ord(c) < 128) for text in CORPUS]
    # Training needs words; without a pre-tokenizer a whole line would become one token.
    pieces = [piece for text in corpus for piece in text.replace(" ", " ▁").replace("\n", " \n ").split(" ")]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=620, special_tokens=[*SPECIALS, *byte_tokens], show_progress=False)
    )
    state, learned = json.loads(tokenizer.to_str()), json.loads(trained.to_str())["model"]
    state["model"] |= {"vocab": learned["vocab"], "merges": learned["merges"]}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    return tokenizer


def _of_words(kind):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=300, show_progress=False, special_tokens=SPECIALS, unk_token="<unk>"
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def _trained(kind, plain_markers):
    """The state of a `tokenizers.Tokenizer` trained on `CORPUS`."""
    from tokenizers import AddedToken, processors

    of_words = {"metaspace": _sentence_piece, "legacy": _sentence_piece, "unigram": _of_words, "wordpiece": _of_words}
    tokenizer = of_words.get(kind, _byte_level)(kind)
    if kind in ("metaspace", "legacy", "digits"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    if not plain_markers:
        # Phi-3's <|assistant|> takes the white space behind it; some tokenizers' tokens take that before them.
        greedy = {"<|assistant|>": {"rstrip": True}, "<|im_end|>": {"lstrip": True}} if kind == "greedy" else {}
        tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False, **greedy.get(text, {})) for text in TURN_TOKENS]
        )
    return tokenizer.to_str()


def make_tokenizer(kind="trimming", template="chatml", **kwargs):
    """A `PreTrainedTokenizerFast` of one of `KINDS_OF_TOKENIZER`; the template is one of `CHAT_TEMPLATES`, or its text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kwargs = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": "<unk>", **kwargs}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind, plain_markers=template == "zephyr")),
        **{name: value for name, value in kwargs.items() if value is not None},
    )
    tokenizer.chat_template = CHAT_TEMPLATES.get(template, template)
    return tokenizer
