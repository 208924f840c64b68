"""What a template writes around a row's prompt and output: the tokenizer's chat template, or one of the user's own.

The places of prompt and output in the text are known from rendering, never searched for in the data: a template is
rendered once with stand-ins for them, which shows the template's own text before, between and after them.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragfit.errors import PromptError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY, _OUTPUT, _SYSTEM = "qRAGFITqueryq", "oRAGFIToutputo", "sRAGFITsystems"
_OWN_TEMPLATE = "Set template to a file of your own with the placeholders {query} and {output}"
_PLACEHOLDERS = (
    "Write {query} once and, after it, {output} once, {instruction} before both if it is wanted, and double all other "
    "braces ({{ and }})."
)
KWARGS_KEY = "model.chat_template_kwargs"


class RowRefused(PromptError):
    """The template refuses a row, or rewrites its output so that its place is unknown: that row alone is dropped."""


@dataclass(frozen=True)
class Placed:
    """A row as a template writes it: `full`, with the output from `start` to `end`; `prompt` is inference's.

    The template's own text before the output begins at `user_end`, None where it is written in another way.
    """

    prompt: str
    full: str
    user_end: int | None
    start: int
    end: int


class ChatTemplate:
    """The tokenizer's, with `kwargs` as variables in every rendering; `ragfit.data.prompt.Renderer` tells the rest."""

    bos = ()  # which a chat template writes itself

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
        for name in self.kwargs:
            if not re.search(rf"\b{re.escape(str(name))}\b", self._source):
                raise PromptError(KWARGS_KEY, f"the chat template reads no variable {name!r}", "Correct its name.")
        messages = self._messages(_QUERY)
        text = self._answered(messages, _OUTPUT)
        parts = re.fullmatch(f"(.*){_QUERY}(.*){_OUTPUT}(.*)", text, re.DOTALL)
        if not parts or text.count(_OUTPUT) != 1:
            problem = "The chat template does not render the user's and the assistant's message one after the other"
            raise PromptError("", problem, f"{_OWN_TEMPLATE}.")
        self.head, self.middle, self.tail = parts.groups()
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
        names = dict.fromkeys(re.findall(r"\b[a-z_]*(?:think|reason)[a-z_]*\b", self._source))
        for name, value in itertools.product(names, (False, True)):
            with contextlib.suppress(PromptError):
                other = ChatTemplate(self.tokenizer, self.instruction, self.in_prompt, {**self.kwargs, name: value})
                if other.middle == other.generation:
                    return f"{{{name}: {str(value).lower()}}}"
        return ""

    def render(self, query: str, output: str) -> Placed:
        """Write a row, or raise `RowRefused`. Two strategies find the place of its output."""
        messages, full = self._messages(query), ""
        try:
            prompt = self._apply(messages, generation=True)
            # A template may refuse an empty answer, which gets the turn of any other answer then.
            with contextlib.nullcontext() if output.strip() else contextlib.suppress(PromptError):
                full = self._answered(messages, output)
            return self._at_the_end(prompt, full, output) or self._by_a_stand_in(messages, prompt, full, output)
        except PromptError as error:
            raise RowRefused(*error.args) from error

    def _at_the_end(self, prompt: str, full: str, output: str) -> Placed | None:
        """The row, where its text ends with the template's middle, the output and the template's tail."""
        if not full or self.middle in output:
            return None  # the output could be taken for the template's own text, where the template drops the output
        end = len(full) - len(self.tail)
        for variant in stripped(output):
            if full.endswith(self.middle + variant + self.tail):
                start = end - len(variant)
                return Placed(prompt, full, start - len(self.middle), start, end)
        return None

    def _by_a_stand_in(self, messages: list[dict], prompt: str, full: str, output: str) -> Placed:
        """The row, by the text around a stand-in for an output that the template treats in its own way."""
        before, _, after = self._answered(messages, _OUTPUT).rpartition(_OUTPUT)
        end, user_end, output = len(full) - len(after), None, output.strip()
        if before.endswith(self.middle):
            user_end = len(before) - len(self.middle)
        elif prompt.endswith(self.generation) and before.startswith(prompt):
            user_end = len(prompt) - len(self.generation)
        if full and full.endswith(after):
            if full.startswith(before) and len(before) <= end:
                return Placed(prompt, full, user_end, len(before), end)
            # The template writes something else before this answer. The output begins where the texts part, or before
            # that, where it begins like the template's own text (both with <think>): where it agrees for longest.
            shared = len(os.path.commonprefix([full[:end], before]))
            if output and user_end is not None and shared >= user_end:
                places = range(shared, user_end - 1, -1)
                start = max(places, key=lambda at: len(os.path.commonprefix([full[at:end], output])))
                return Placed(prompt, full, user_end, start, end)
        if not output:
            return Placed(prompt, before + after, user_end, len(before), len(before))
        problem = f"The chat template rewrites this answer so that its place is not known: it begins {output[:60]!r}"
        raise RowRefused("", problem, "Change the row, or set template to a file of your own.")


def stripped(text: str) -> tuple[str, ...]:
    """A text with and without the white space at its ends: as a template may write it."""
    return text, text.strip(), text.rstrip(), text.lstrip()


class TextTemplate:
    """A template of the user's own, with the attributes of `ChatTemplate`: a text to fill in, as by `str.format`."""

    header = ""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, instruction: str = "", in_prompt: bool = False):
        try:
            head, rest = text.format(query=_QUERY, output=_OUTPUT, instruction=_SYSTEM).split(_QUERY)
            self.middle, self.tail = rest.split(_OUTPUT)
            if _SYSTEM in rest:
                raise ValueError("{instruction} stands behind {query}")
        except (AttributeError, LookupError, ValueError) as error:
            raise PromptError("template", f"it cannot be filled in ({first_line(error)})", _PLACEHOLDERS) from error
        self.head, self.generation, says_where = head.replace(_SYSTEM, instruction), self.middle, _SYSTEM in head
        self.instruction, self.in_prompt = instruction, in_prompt and not says_where  # once is enough
        self.system = "none" if not instruction else "prompt" if in_prompt or says_where else "dropped"
        ids, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        bos, text_of_bos = tokenizer.bos_token_id, tokenizer.bos_token or ""
        adds = bos is not None and ids[:1] == [bos] != plain[:1] and not self.head.startswith(text_of_bos)
        self.bos = (bos,) if adds else ()

    def render(self, query: str, output: str) -> Placed:
        """Write a row."""
        user = f"{self.instruction}\n{query}" if self.in_prompt else query
        prompt = f"{self.head}{user}{self.middle}"
        end = len(prompt) + len(output)
        return Placed(prompt, f"{prompt}{output}{self.tail}", len(prompt) - len(self.middle), len(prompt), end)
