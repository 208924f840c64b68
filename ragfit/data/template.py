"""What a template writes around a row's prompt and output: the tokenizer's chat template, or one of the user's own.

The places of prompt and output in the text are known from rendering, never searched for in the data: a template is
rendered once with stand-ins for them, which shows the template's own text before, between and after them.
"""

import os
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfit.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY, _OUTPUT, _SYSTEM = "qRAGFITqueryq", "oRAGFIToutputo", "sRAGFITsystems"
Messages = list[dict[str, str]]  # each with role and content


class RowRefused(PromptError):
    """The template refuses a row that it takes from other rows. That row is dropped, and the run goes on."""

    reason = "refused by the template"


class PlaceUnknown(RowRefused):
    """The template rewrites a row's answer, so that its place in the text cannot be known."""

    reason = "place of output unknown"


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

    Attributes:
        head, middle, tail, generation, system, dated: as in `ragfit.data.prompt.Renderer`.
        header: what `add_generation_prompt` adds, the header of the assistant's turn; "" where that is not known.
        bos: empty; a chat template writes BOS itself.

    Raises:
        PromptError: there is no template, or it cannot be used for a prompt and an answer.
    """

    bos = ()

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", instruction: str = "", in_prompt: bool = False):
        self.tokenizer, self.instruction, self.in_prompt = tokenizer, instruction, in_prompt
        if not getattr(tokenizer, "chat_template", None):  # MistralCommonBackend has no such attribute
            fix = (
                "Set template to a file with the placeholders {query} and {output}, "
                "or use the instruction-tuned variant of the model."
            )
            raise PromptError("", "The tokenizer has no chat template", fix)
        messages = self._messages(_QUERY)
        text = self._text_of_stand_ins(messages)
        start = text.rfind(_QUERY, 0, text.rfind(_OUTPUT))
        if text.count(_OUTPUT) != 1 or start < 0:
            problem = "The chat template does not render the user's and the assistant's message one after the other"
            fix = "Set template to a file of your own with the placeholders {query} and {output}."
            raise PromptError("", problem, fix)
        self.head = text[:start]
        self.middle, self.tail = text[start + len(_QUERY) :].split(_OUTPUT)
        prompt, without_header = self._apply(messages, generation=True), self._apply(messages)
        self.generation = prompt.rpartition(_QUERY)[2]
        self.header = prompt.removeprefix(without_header) if prompt.startswith(without_header) else ""
        self.system = "prompt" if in_prompt else "none"
        if instruction and not in_prompt:
            stand_in = {"role": "system", "content": _SYSTEM}
            self.system = "kept" if _SYSTEM in self._answered([stand_in, *messages[1:]], _OUTPUT) else "dropped"
        try:
            # A template that calls this one fails: transformers gives a template plain values only.
            self.dated = self._answered(messages, _OUTPUT, strftime_now="") != text
        except PromptError:
            self.dated = True

    def _messages(self, query: str) -> Messages:
        if self.in_prompt:
            return [{"role": "user", "content": f"{self.instruction}\n{query}"}]
        system = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*system, {"role": "user", "content": query}]

    def _apply(self, messages: Messages, generation: bool = False, **kwargs) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **kwargs
            )
        except Exception as error:  # a template is a program of its author's, which may raise anything
            problem = f"The chat template cannot render these messages: {error}"
            fix = "Check the tokenizer's template, or set template to a file of your own."
            raise PromptError("", problem, fix) from error

    def _answered(self, messages: Messages, output: str, **kwargs) -> str:
        return self._apply([*messages, {"role": "assistant", "content": output}], **kwargs)

    def _text_of_stand_ins(self, messages: Messages) -> str:
        """The text of messages and a stand-in for the output; says so where the system message is refused."""
        try:
            return self._answered(messages, _OUTPUT)
        except PromptError as error:
            if messages[0]["role"] != "system":
                raise
            try:
                self._answered(messages[1:], _OUTPUT)
            except PromptError:
                raise error from None
            problem = "The chat template refuses a system message, so the instruction cannot be given as one"
            fix = "Set model.instruction_in_prompt=true to put it into the prompt."
            raise PromptError("", f"{problem} ({error.__cause__})", fix) from error

    def render(self, query: str, output: str) -> Placed:
        """Write a row.

        Raises:
            RowRefused: the template refuses the row, or rewrites its output so that its place is unknown.
        """
        messages = self._messages(query)
        try:
            prompt = self._apply(messages, generation=True)
            full = self._answered_or_refused(messages, output)
            # An answer that quotes the template's text could be taken for it, where the template drops the answer.
            for variant in stripped(output) if full is not None and self.middle not in output else ():
                if full.endswith(self.middle + variant + self.tail):
                    end = len(full) - len(self.tail)
                    start = end - len(variant)
                    return Placed(prompt, full, start - len(self.middle), start, end)
            # The template treats this answer in its own way (a </think> in it, say): ask it with a stand-in instead.
            before, _, after = self._answered(messages, _OUTPUT).rpartition(_OUTPUT)
        except PromptError as error:
            raise RowRefused(*error.args) from error
        user_end = len(before) - len(self.middle) if before.endswith(self.middle) else None
        if user_end is None and prompt.endswith(self.generation) and before.startswith(prompt):
            user_end = len(prompt) - len(self.generation)
        place = full and _place_of_output(full, before, after, user_end, output)
        if place:
            return Placed(prompt, full, user_end, *place)
        if not output.strip():
            # Some templates refuse an empty answer or leave its turn open: it gets the turn of any other answer.
            return Placed(prompt, before + after, user_end, len(before), len(before))
        raise PlaceUnknown(
            "",
            "The chat template rewrites this answer so that its place in the text cannot be known: "
            f"it begins {output[:60]!r}",
            "Change the row, or set template to a file of your own.",
        )

    def _answered_or_refused(self, messages: Messages, output: str) -> str | None:
        """The training text of messages and an output, or None where the template refuses an empty one."""
        try:
            return self._answered(messages, output)
        except PromptError:
            if output.strip():
                raise
            return None


def _place_of_output(full: str, before: str, after: str, user_end: int | None, output: str) -> tuple[int, int] | None:
    """(start, end) of an output in the text, known from the text around a stand-in, or None."""
    end = len(full) - len(after)
    if not full.endswith(after):
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

    header, dated = "", False

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
    double = "double the braces that are not placeholders ({{ and }})."
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError("template", str(error), double.capitalize()) from error
    for _, name, form, conversion in pieces:
        if name not in (None, "query", "output", "instruction") or form or conversion:
            problem = f"unknown placeholder {{{name}}}"
            raise PromptError("template", problem, f"Use {{query}} and {{output}}, and {double}")
    names = [name for _, name, *_ in pieces if name]
    if [name for name in names if name != "instruction"] != ["query", "output"]:
        raise PromptError(
            "template", "it needs {query} once and, after it, {output} once", "Write each in single braces."
        )
    if names[-2:] != ["query", "output"]:
        raise PromptError("template", "{instruction} must stand before {query}", "Move it there.")
    return [(literal, name) for literal, name, *_ in pieces]
