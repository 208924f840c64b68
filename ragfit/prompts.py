"""What is said: a row's prompt and training text, and the places in them that masking needs.

The places are known from rendering, never searched for in the data: the template is rendered once with
stand-ins for the row's texts, which shows the template's own text before, between and after them.
"""

import re
import string
from dataclasses import dataclass

from ragfit.errors import PromptError

_QUERY, _OUTPUT, _SYSTEM = "qRAGFITqueryq", "oRAGFIToutputo", "sRAGFITsystems"


class PlaceUnknown(PromptError):
    """The template rewrites a row's answer, so that its place in the text cannot be known."""


@dataclass(frozen=True)
class Rendered:
    """One row as text.

    Attributes:
        prompt: what the model is given at inference.
        text: the training text: prompt, completion and, where the template brings none, EOS.
        completion_char: the first character of `text` with loss.
        end_char: one past the last character with loss (the end of the assistant's turn).
        output: (start, end) of the row's output in `text`.
        user: (start, end) of the row's prompt in `text`, or None where the template changed it.
        marker: (start, end) of `completion_start` in `text`, or None.
        matches: whether `text` begins with `prompt`.
    """

    prompt: str
    text: str
    completion_char: int
    end_char: int
    output: tuple[int, int]
    user: tuple[int, int] | None
    marker: tuple[int, int] | None
    matches: bool

    @property
    def extra(self):
        """Text with loss before the output, other than white space (an empty `<think>` block, say)."""
        return self.text[self.completion_char : self.output[0]].strip()


class Renderer:
    """Renders rows for one tokenizer and one set of prompt settings.

    Args:
        tokenizer: a `transformers` tokenizer; its chat template is used unless `template` is given.
        instruction: the system instruction, or "".
        template: a custom template's text with the placeholders `{query}` and `{output}` (and, if wanted,
            `{instruction}`). Braces of its own are doubled, as in `str.format`; data is never formatted.
        instruction_in_prompt: put the instruction before the prompt (`instruction + "\\n" + prompt`)
            instead of into a system message.
        completion_start: the marker that ends right where loss begins, or "" to begin where the generation
            prompt ends.

    Attributes:
        marker: `completion_start` as it stands in the text (`\\n` and `\\t` of a shell are a newline and a tab).
        system: what became of the instruction: "kept", "dropped" (not in the rendered text), "prompt"
            (it stands in the prompt), "none" (there is none).
        middle: the template's text between the row's prompt and its output.
        tail: the template's text after the output.
        suggestion: the marker that the template itself suggests.
        dated: whether the text changes with the date.
        bos: ids to put before the text's own (a custom template with a tokenizer that adds BOS by itself).

    Raises:
        PromptError: no template, a template that refuses the messages, or a marker that does not occur.
    """

    def __init__(self, tokenizer, instruction="", template=None, instruction_in_prompt=False, completion_start=""):
        self.tokenizer = tokenizer
        self.instruction = instruction or ""
        self.template = template
        self.in_prompt = bool(instruction_in_prompt) and bool(self.instruction)
        self.marker = completion_start or ""
        self._specials = _pattern(tokenizer, special_only=False)
        self.bos = ()
        self._header = ""
        if template is not None:
            self._probe_template(template)
        else:
            self._probe_chat_template()
        spelt_out = self.marker.replace("\\n", "\n").replace("\\t", "\t")
        if self.marker not in self.middle and spelt_out in self.middle:
            self.marker = spelt_out  # a shell passes `assistant\n` on as a backslash and an n
        self.suggestion = self._suggest()
        if self.middle.strip() or template is None:
            # The template's own text is the same in every row, so a wrong marker shows before any row is read.
            self.render("question", "answer")

    # What the template does, learned from stand-ins.

    def _probe_template(self, template):
        parts = _parse_template(template)
        names = [name for name, _ in parts if name]
        self.in_prompt = self.in_prompt and "instruction" not in names  # the template says where it stands: once
        fill = {"query": _QUERY, "output": _OUTPUT, "instruction": self.instruction}
        text = "".join(fill[name] if name else literal for name, literal in parts)
        self.head, rest = text.split(_QUERY)
        self.middle, self.tail = rest.split(_OUTPUT)
        self.generation = self.middle
        self.dated = False
        self.system = "none" if not self.instruction else "prompt" if self.in_prompt or "instruction" in names else "dropped"
        tokenizer = self.tokenizer
        bos = getattr(tokenizer, "bos_token_id", None)
        if bos is not None and not self.head.startswith(tokenizer.bos_token):
            if tokenizer("a")["input_ids"][:1] == [bos] != tokenizer("a", add_special_tokens=False)["input_ids"][:1]:
                self.bos = (bos,)

    def _probe_chat_template(self):
        if not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                "The tokenizer has no chat template. Set template to a file with the placeholders {query} and {output}, "
                "or use the instruction-tuned variant of the model."
            )
        messages = self._messages(_QUERY)
        answer = {"role": "assistant", "content": _OUTPUT}
        try:
            text = self._apply([*messages, answer])
        except PromptError as error:
            if messages[0]["role"] != "system":
                raise
            try:
                self._apply([*messages[1:], answer])
            except PromptError:
                raise error from None
            raise PromptError(
                "The chat template refuses a system message, so the instruction cannot be given as one "
                f"({error.__cause__}). Set model.instruction_in_prompt=true to put it into the prompt."
            ) from error
        start = text.rfind(_QUERY, 0, text.rfind(_OUTPUT))
        if text.count(_OUTPUT) != 1 or start < 0:
            raise PromptError(
                "The chat template does not render the user's and the assistant's message one after the other. "
                "Set template to a file of your own with the placeholders {query} and {output}."
            )
        self.head = text[:start]
        self.middle, self.tail = text[start + len(_QUERY) :].split(_OUTPUT)
        prompt = self._apply(messages, generation=True)
        self.generation = prompt[prompt.rfind(_QUERY) + len(_QUERY) :]
        without = self._apply(messages)
        self._header = prompt[len(without) :] if prompt.startswith(without) else ""
        if not self.instruction:
            self.system = "none"
        elif self.in_prompt:
            self.system = "prompt"
        else:
            probe = self._apply([{"role": "system", "content": _SYSTEM}, *messages[1:], answer])
            self.system = "kept" if _SYSTEM in probe else "dropped"
        try:
            # transformers hands a template nothing but plain values, so a template that calls this one fails.
            self.dated = self._apply([*messages, answer], strftime_now="") != text
        except PromptError:
            self.dated = True

    def _suggest(self):
        """The last piece of the generation prompt that starts with a token of its own."""
        text = self._header or self.generation
        starts = [match.start() for match in self._specials.finditer(text)] if self._specials else []
        if self._header and starts:
            text = text[starts[0] :]
        elif starts:
            text = text[starts[-1] :]
        return text if self._header else text.strip()

    def special_tokens(self):
        """A pattern that finds the tokenizer's special tokens in a text, or None where it has none."""
        return _pattern(self.tokenizer, special_only=True)

    # A row.

    def _messages(self, query):
        if self.in_prompt:
            return [{"role": "user", "content": f"{self.instruction}\n{query}"}]
        system = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*system, {"role": "user", "content": query}]

    def _apply(self, messages, generation=False, **kwargs):
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **kwargs
            )
        except Exception as error:  # Jinja's and a template's own errors
            raise PromptError(
                f"The chat template cannot render these messages: {error}. "
                "Check the tokenizer's template, or set template to a file of your own."
            ) from error

    def render(self, query, output):
        """Render one row.

        Args:
            query: the row's prompt (question and documents).
            output: the text to learn; may be empty.

        Returns:
            Rendered

        Raises:
            PromptError: the marker does not occur, or the template refuses the messages.
            PlaceUnknown: the template rewrites the answer so that its place is unknown.
        """
        user = f"{self.instruction}\n{query}" if self.in_prompt else query
        if self.template is not None:
            prompt = f"{self.head}{user}{self.middle}"
            full = f"{prompt}{output}{self.tail}"
            places = (len(prompt), len(prompt) + len(output), self.tail)
        else:
            messages = self._messages(query)
            prompt = self._apply(messages, generation=True)
            full = self._apply([*messages, {"role": "assistant", "content": output}])
            places = self._place_output(full, prompt, messages, output)
        start, end, tail = places
        user_end = start - len(self.middle) if full[:start].endswith(self.middle) else None
        if user_end is None and full.startswith(prompt) and prompt.endswith(self.generation):
            user_end = len(prompt) - len(self.generation)
        if user_end is None:
            user_end = max(full.rfind(user.strip(), 0, start) + len(user.strip()), 0)
        matches = full.startswith(prompt)
        marker = self._place_marker(full, user_end, start)
        if marker:
            completion = marker[1]
        else:
            # The generation prompt may end within the output: it opens the <think> that the output begins with.
            completion = len(prompt) if matches else start
        kept, eos = self._end_of_turn(tail)
        turn = full[: end + kept] + eos
        return Rendered(
            prompt=prompt,
            text=turn if eos else full,
            completion_char=completion,
            end_char=len(turn),
            output=(start, end),
            user=_place_user(full, user_end, query),
            marker=marker,
            matches=matches,
        )

    def _place_output(self, full, prompt, messages, output):
        """(start, end, tail): where the output stands in the rendered text."""
        body = full[: len(full) - len(self.tail)] if full.endswith(self.tail) else None
        if body is not None:
            for variant in (output, output.strip(), output.rstrip(), output.lstrip()):
                if body.endswith(self.middle + variant):
                    return len(body) - len(variant), len(body), self.tail
        # The template treats this answer in its own way (a </think> in it, say): ask it with this row's prompt.
        before, _, after = self._apply([*messages, {"role": "assistant", "content": _OUTPUT}]).rpartition(_OUTPUT)
        if full.startswith(before) and full.endswith(after) and len(full) >= len(before) + len(after):
            return len(before), len(full) - len(after), after
        if full.startswith(prompt) and full.endswith(after):
            return len(prompt), len(full) - len(after), after
        raise PlaceUnknown(
            "The chat template rewrites this answer so that its place in the text cannot be known: "
            f"it begins {output[:60]!r}. Change the row, or set template to a file of your own."
        )

    def _place_marker(self, full, user_end, start):
        """The marker's last occurrence in the template's own text between the row's prompt and its output."""
        if not self.marker:
            return None
        at = full.rfind(self.marker, user_end, start)
        if at < 0 and self.template is not None and not self.middle.strip():
            # With nothing but white space between them, the prompt's own end may carry the marker ("Answer:").
            end = len(full[:start].rstrip()) if not self.marker[-1].isspace() else start
            at = end - len(self.marker) if full[:end].endswith(self.marker) else -1
        if at < 0:
            advice = "Leave model.completion_start"
            if self.suggestion:
                advice = f"Set model.completion_start to {self.suggestion!r}, or leave it"
            around = full[max(0, start - 60) : start + 20]
            raise PromptError(
                f"completion_start {self.marker!r} does not occur in the template's text before the output. "
                f"There the text reads {around!r} (the output begins after {full[max(0, start - 20):start]!r}). "
                f"{advice} empty to begin where the generation prompt ends."
            )
        return at, at + len(self.marker)

    def _end_of_turn(self, tail):
        """How much of the text after the output belongs to the turn, and the EOS to append if it has none."""
        eos = self.tokenizer.eos_token or ""
        for match in self._specials.finditer(tail) if self._specials else ():
            if match.group() in self._header and match.group() != eos:
                return match.start(), eos  # a new turn begins, and nothing has ended this one
            return match.end(), ""
        return len(tail), eos


def _pattern(tokenizer, special_only):
    """A pattern for the texts of the tokenizer's added tokens that are not white space, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in added if token.special or not special_only}
    texts |= set(tokenizer.all_special_tokens)
    texts = sorted((text for text in texts if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _place_user(full, end, query):
    for variant in (query, query.strip(), query.rstrip(), query.lstrip()):
        if variant and full[:end].endswith(variant):
            return end - len(variant), end
    return None


def _parse_template(template):
    """[(placeholder or None, literal)], in order.

    Raises:
        PromptError: a placeholder is missing, unknown, twice there or in the wrong order, or a brace is alone.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError(
            f"template: {error}. Double the braces that are not placeholders ({{{{ and }}}})."
        ) from error
    parts = []
    for literal, name, form, conversion in pieces:
        if literal:
            parts.append((None, literal))
        if name is None:
            continue
        if name not in ("query", "output", "instruction") or form or conversion:
            raise PromptError(
                f"template: unknown placeholder {{{name}}}. Use {{query}} and {{output}}, and double the braces that are not placeholders."
            )
        parts.append((name, ""))
    names = [name for name, _ in parts if name]
    if names.count("query") != 1 or names.count("output") != 1 or names.index("query") > names.index("output"):
        raise PromptError("template: it needs {query} once and, after it, {output} once. Add what is missing.")
    if "instruction" in names[names.index("output") :] or names[names.index("query") :].count("instruction"):
        raise PromptError("template: {instruction} must stand before {query}. Move it there.")
    return parts
