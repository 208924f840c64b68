"""What a template writes around a row's prompt and output: the tokenizer's chat template, or one of the user's own.

The places of prompt and output in the text are known from rendering, never searched for in the data: a template is
rendered once with stand-ins for them, which shows the template's own text before, between and after them.
"""

import contextlib
import inspect
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragfit.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY, _OUTPUT, _SYSTEM = "qRAGFITqueryq", "oRAGFIToutputo", "sRAGFITsystems"
_OWN_TEMPLATE = "Set template to a file of your own with the placeholders {query} and {output}"
KWARGS_KEY = "model.chat_template_kwargs"


class RowRefused(PromptError):
    """The template refuses a row, or rewrites its output so that its place is unknown: that row alone is dropped."""


@dataclass(frozen=True)
class Placed:
    """A row as a template writes it.

    Attributes:
        prompt: what the model is given at inference.
        full: the row with its output, and whatever the template writes after the assistant's turn.
        user_end: where the template's own text before the output begins in `full`, or None where the template writes
            it in another way for this row.
        start, end: the place of the output in `full`.
    """

    prompt: str
    full: str
    user_end: int | None
    start: int
    end: int


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a `transformers` tokenizer.
        instruction: the system instruction, or "".
        in_prompt: whether the instruction stands before the prompt instead of in a system message.
        kwargs: variables of the template, given in every rendering (`enable_thinking`, say).

    Attributes:
        head, middle, tail, generation, system: as in `ragfit.data.prompt.Renderer`.
        header: what `add_generation_prompt` adds, the header of the assistant's turn; "" where that is not known.
        bos: empty; a chat template writes BOS itself.

    Raises:
        PromptError: there is no template, it cannot be used for a prompt and an answer, or has no such variable.
    """

    bos = ()

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        instruction: str = "",
        in_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer, self.instruction, self.in_prompt = tokenizer, instruction, in_prompt
        self.kwargs = dict(kwargs or {})
        self._source = str(getattr(tokenizer, "chat_template", None) or "")  # some tokenizers have no such attribute
        if not self._source:
            fix = f"{_OWN_TEMPLATE}, or use the model's instruction-tuned variant."
            raise PromptError("", "The tokenizer has no chat template", fix)
        own = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"tools", "documents"}
        for name in self.kwargs:
            if name in own:
                raise PromptError(KWARGS_KEY, f"{name!r} is no variable: each rendering sets it itself", "Remove it.")
            if not re.search(rf"\b{re.escape(str(name))}\b", self._source):
                raise PromptError(KWARGS_KEY, f"the chat template reads no variable {name!r}", "Correct its name.")
        messages = self._messages(_QUERY)
        text = self._answered(messages, _OUTPUT)
        start = text.rfind(_QUERY, 0, text.rfind(_OUTPUT))
        if text.count(_OUTPUT) != 1 or start < 0:
            problem = "The chat template does not render the user's and the assistant's message one after the other"
            raise PromptError("", problem, f"{_OWN_TEMPLATE}.")
        self.head = text[:start]
        self.middle, self.tail = text[start + len(_QUERY) :].split(_OUTPUT)
        prompt, without_header = self._apply(messages, generation=True), self._apply(messages)
        self.generation = prompt.rpartition(_QUERY)[2]
        self.header = prompt.removeprefix(without_header) if prompt.startswith(without_header) else ""
        self.system = "prompt" if in_prompt else "none"
        if instruction and not in_prompt:
            stand_in = {"role": "system", "content": _SYSTEM}
            self.system = "kept" if _SYSTEM in self._answered([stand_in, *messages[1:]], _OUTPUT) else "dropped"

    def _messages(self, query: str) -> list[dict]:
        if self.in_prompt:
            return [{"role": "user", "content": f"{self.instruction}\n{query}"}]
        system = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*system, {"role": "user", "content": query}]

    def _apply(self, messages: list[dict], generation: bool = False) -> str:
        try:
            given = {"tokenize": False, "add_generation_prompt": generation}
            return self.tokenizer.apply_chat_template(messages, **given, **self.kwargs)
        except Exception as error:  # a template is a program of its author's, which may raise anything
            problem = f"The chat template cannot render these messages: {error}"
            fix = "Check the tokenizer's template, or set template to a file of your own."
            if messages[0]["role"] == "system":
                fix = "If it refuses a system message, set model.instruction_in_prompt=true to put it into the prompt."
            raise PromptError("", problem, fix) from error

    def _answered(self, messages: list[dict], output: str) -> str:
        return self._apply([*messages, {"role": "assistant", "content": output}])

    def kwargs_that_fit(self) -> str:
        """A variable under which all that the template writes before an answer stands in the prompt too, or "".

        Qwen3 writes an empty think block before an answer, which the prompt has under `enable_thinking=False` alone.
        """
        for name in dict.fromkeys(re.findall(r"\b[a-z_]*(?:think|reason)[a-z_]*\b", self._source)):
            for value in (False, True):
                kwargs = {**self.kwargs, name: value}
                with contextlib.suppress(PromptError):
                    other = ChatTemplate(self.tokenizer, self.instruction, self.in_prompt, kwargs)
                    if other.middle == other.generation:
                        return f"{{{name}: {str(value).lower()}}}"
        return ""

    def render(self, query: str, output: str) -> Placed:
        """Write a row.

        Raises:
            RowRefused: the template refuses the row, or rewrites its output so that its place is unknown.
        """
        messages, full = self._messages(query), ""
        try:
            prompt = self._apply(messages, generation=True)
            # A template may refuse an empty answer, which gets the turn of any other answer then.
            with contextlib.nullcontext() if output.strip() else contextlib.suppress(PromptError):
                full = self._answered(messages, output)
            if place := _at_the_end(full, self.middle, output, self.tail):
                return Placed(prompt, full, place[0] - len(self.middle), *place)
            before, _, after = self._answered(messages, _OUTPUT).rpartition(_OUTPUT)
        except PromptError as error:
            raise RowRefused(*error.args) from error
        user_end = len(before) - len(self.middle) if before.endswith(self.middle) else None
        if user_end is None and prompt.endswith(self.generation) and before.startswith(prompt):
            user_end = len(prompt) - len(self.generation)
        if place := _by_a_stand_in(full, before, after, user_end, output):
            return Placed(prompt, full, user_end, *place)
        if not output.strip():
            return Placed(prompt, before + after, user_end, len(before), len(before))
        problem = f"The chat template rewrites this answer so that its place is not known: it begins {output[:60]!r}"
        raise RowRefused("", problem, "Change the row, or set template to a file of your own.")


def _at_the_end(full: str, middle: str, output: str, tail: str) -> tuple[int, int] | None:
    """(start, end) of an output in a text that ends with the template's middle, the output and the template's tail."""
    if middle in output:
        return None  # it could be taken for the template's own text, where the template drops the output
    for variant in stripped(output):
        if full and full.endswith(middle + variant + tail):
            end = len(full) - len(tail)
            return end - len(variant), end
    return None


def _by_a_stand_in(full: str, before: str, after: str, user_end: int | None, output: str) -> tuple[int, int] | None:
    """(start, end) of an output that the template treats in its own way, from the text around a stand-in for it."""
    end = len(full) - len(after)
    if not full or not full.endswith(after):
        return None
    if full.startswith(before) and len(before) <= end:
        return len(before), end
    # The template writes something else before this answer. The output begins where the texts part, or before that,
    # where it begins like the template's own text (both with <think>): wherever it agrees with the text for longest.
    shared = len(os.path.commonprefix([full[:end], before]))
    output = output.strip()
    if user_end is None or shared < user_end or not output:
        return None
    places = range(shared, user_end - 1, -1)
    return max(places, key=lambda at: len(os.path.commonprefix([full[at:end], output]))), end


def stripped(text: str) -> tuple[str, ...]:
    """A text with and without the white space at its ends: as a template may write it."""
    return text, text.strip(), text.rstrip(), text.lstrip()


class TextTemplate:
    """A template of the user's own: a text with the placeholders `{query}`, `{output}` and, if wanted, `{instruction}`.

    Args and attributes are those of `ChatTemplate`, and:
        text: the template. Braces of its own are doubled, as in `str.format`; data is never formatted.
        bos: ids to put before the text's own, where the tokenizer adds BOS by itself.

    Raises:
        PromptError: a placeholder is missing, unknown, there twice or in the wrong order, or a brace is alone.
    """

    header = ""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, instruction: str = "", in_prompt: bool = False):
        parts = _parse(text)
        says_where = any(name == "instruction" for _, name in parts)
        self.instruction, self.in_prompt = instruction, in_prompt and not says_where  # once is enough
        fill = {None: "", "query": _QUERY, "output": _OUTPUT, "instruction": instruction}
        self.head, rest = "".join(literal + fill[name] for literal, name in parts).split(_QUERY)
        self.middle, self.tail = rest.split(_OUTPUT)
        self.generation = self.middle
        self.system = "none" if not instruction else "prompt" if self.in_prompt or says_where else "dropped"
        self.bos = ()
        bos = tokenizer.bos_token_id
        if bos is not None and not self.head.startswith(tokenizer.bos_token):
            ids, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
            if ids[:1] == [bos] != plain[:1]:
                self.bos = (bos,)

    def render(self, query: str, output: str) -> Placed:
        """Write a row."""
        user = f"{self.instruction}\n{query}" if self.in_prompt else query
        prompt = f"{self.head}{user}{self.middle}"
        start, end = len(prompt), len(prompt) + len(output)
        return Placed(prompt, f"{prompt}{output}{self.tail}", start - len(self.middle), start, end)


def _parse(template: str) -> list[tuple[str, str | None]]:
    """[(literal, the placeholder that follows it or None)], in order."""
    fix = (
        "Write {query} once and, after it, {output} once, {instruction} before both if it is wanted, and double all "
        "other braces ({{ and }})."
    )
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError("template", str(error), fix) from error
    names = [name for _, name, *_ in pieces if name is not None]
    formats = any(form or conversion for _, _, form, conversion in pieces)
    if names[-2:] != ["query", "output"] or set(names[:-2]) - {"instruction"} or formats:
        raise PromptError("template", f"its placeholders are {names}", fix)
    return [(literal, name) for literal, name, *_ in pieces]
