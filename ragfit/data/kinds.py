"""The kinds of findings: what each means for training, and what mends it."""

OWN_TEMPLATE = "Set template to a file of your own"
NO_WHITE_SPACE = "Let the template, or the prompt where nothing stands before the output, end without white space."
AT_THE_END = "Leave model.completion_start empty to begin where the inference prompt ends."
TEXT_TOO = "set model.chat_template_kwargs so that the prompt has that text too (such as {enable_thinking: false})."
NO_LONGER = "Raise model.max_sequence_len"
WHOLE = "set model.over_length=cut_documents"

WARNINGS = {
    "instruction not in prompt": (
        "The template drops the system message, so the model never reads the instruction.",
        "Set model.instruction_in_prompt=true, or use a template that keeps it."),
    "prompt mismatch": (
        "The training text does not begin with the prompt of inference, so the model learns to continue another text.",
        f"{OWN_TEMPLATE}, or use a tokenizer whose template renders both alike."),
    "output changed by the template": (
        "The template rewrites these outputs (it drops their reasoning, say), and what it writes is learned instead.",
        f"{OWN_TEMPLATE} that writes outputs as they stand, or remove from the data what it drops."),
    "marker not before the output": (
        "The template writes other text before these outputs (their own reasoning, say), so loss begins elsewhere.",
        "Set model.completion_start to a marker that stands before every output, or change the rows."),
    "other text has loss": (
        "Text that the template adds before the output has loss and will be generated.",
        f"{AT_THE_END} Where that lacks the text, {TEXT_TOO}"),
    "loss behind the prompt": (
        "Loss begins behind text that the inference prompt lacks and that nothing teaches the model to write.",
        f"Leave model.completion_start empty, or {TEXT_TOO}"),
    "prompt tokenized otherwise": (
        "The prompt's last tokens are others when it is tokenized alone, as at inference, than before the output.",
        NO_WHITE_SPACE),
    "first word without loss": ("One token holds the prompt's end and the output's beginning.", NO_WHITE_SPACE),
    "no end of turn": (
        "No token that ends generation (EOS, or what the model stops at) has loss, so it does not learn to stop.",
        "Give the tokenizer an eos_token, or set template to a file that ends with one."),
    "double BOS": ("The text begins with two BOS tokens.", "Remove BOS from the data or the template."),
    "dropped: too long": ("The row is too long.", f"{NO_LONGER}, or {WHOLE} to leave documents out of the prompt."),
    "cut: question": (
        "The cut took the question or part of it, so the model learns to answer what it was not asked.",
        f"{NO_LONGER}, or {WHOLE}."),
    "cut: supporting document": (
        "The cut took every document that supports the answer, so the model learns to answer from no source.",
        f"{NO_LONGER}, or {WHOLE}, which takes the others first."),
    "dropped: no loss": ("No token of the row has loss, so nothing is learned.", "Check output_key and the row."),
    "dropped: refused by the template": (
        "The template raises an error for these rows, or rewrites the answer so that its place cannot be known.",
        "Change the rows, or set template to a file of your own."),
    "empty output": ("The output is empty: the model learns to say nothing.", "Check output_key, or remove the rows."),
    "empty prompt": ("The prompt is empty: the output is learned for any.", "Check input_key, or remove the rows."),
    "special tokens in data": ("The row's own text holds tokens that control the model.", "Remove them from the data."),
    "documents not in the prompt": (
        "The row lists documents of which its prompt holds nothing, so the model learns to answer without reading.",
        "Write the documents' texts into the prompt (input_key), or leave the list out of the data."),
    "answer is the text of a list or of nothing": (
        "An answer reads as a program writes a list or a missing value, and that is what is learned or expected.",
        "Write the answers themselves: a JSON list of texts, and no row where there is none."),
    "row in train and dev": (
        "The same question (or prompt, where there is none) is trained on and evaluated on: the dev loss is too good.",
        "Set dev_split to rows that are not in data_file."),
}  # fmt: skip
NOTES = {
    "cut": ("The row's prompt was cut so that it fits max_sequence_len.", f"{NO_LONGER} to keep it whole."),
    "loss within the prompt": ("Loss begins before the inference prompt ends: its end is learned too.", AT_THE_END),
    "added tokens in data": (
        "The row's own text holds added tokens of the tokenizer, which the model reads and learns as single tokens.",
        "Remove them from the data, unless they are meant (as <think> in an answer may be)."),
    "documents without text": ("No text is found in documents that the row lists.", "Call a document's text `text`."),
    "duplicate rows": ("The same prompt and output occur twice.", "Remove the repetitions, unless they are wanted."),
}  # fmt: skip
KINDS = {kind: ("warning", *said) for kind, said in WARNINGS.items()}
KINDS |= {kind: ("note", *said) for kind, said in NOTES.items()}
