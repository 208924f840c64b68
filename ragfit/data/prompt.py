"""What is said: a row's prompt and training text, and the places in them that masking needs.

The places are known from rendering, never searched for in the data: the template is rendered once with
stand-ins for the row's texts, which shows the template's own text before, between and after them.
"""

import os
import re
import string
from dataclasses import dataclass

from ragfit.errors import PromptError

_QUERY, _OUTPUT, _SYSTEM = "qRAGFITqueryq", "oRAGFIToutputo", "sRAGFITsystems"


class RowRefused(PromptError):
    """The template refuses a row that it takes from other rows. That row is dropped, and the run goes on."""

    reason = "refused by the template"


class PlaceUnknown(RowRefused):
    """The template rewrites a row's answer, so that its place in the text cannot be known."""

    reason = "place of output unknown"


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
        marker: (start, end) of `completion_start` in `text`, or None where there is none before this output.
        matches: whether `text` begins with `prompt`.
        changed: (what the row's output has, what the text has instead) where the template rewrote the output, white
            space at its ends aside, or None.
    """

    prompt: str
    text: str
    completion_char: int
    end_char: int
    output: tuple[int, int]
    user: tuple[int, int] | None
    marker: tuple[int, int] | None
    matches: bool
    changed: tuple[str, str] | None = None

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
        stop_ids: the ids that the model's generation configuration stops at, where it is known.

    Attributes:
        marker: `completion_start` as it stands in the text (`\\n` and `\\t` of a shell are a newline and a tab).
        system: what became of the instruction: "kept", "dropped" (not in the rendered text), "prompt"
            (it stands in the prompt), "none" (there is none).
        middle: the template's text between the row's prompt and its output.
        tail: the template's text after the output.
        suggestion: a marker that this template has in every row's text, or "".
        stops: the texts of the tokens that end generation.
        dated: whether the text changes with the date.
        bos: ids to put before the text's own (a custom template with a tokenizer that adds BOS by itself).

    Raises:
        PromptError: no template, a template that refuses the messages, or a marker that does not occur.
    """

    def __init__(
        self, tokenizer, instruction="", template=None, instruction_in_prompt=False, completion_start="", stop_ids=()
    ):
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
        self.stop_ids = tuple(stop_ids)
        self.stops = self._stops()
        # Where the template has text of its own between prompt and output, a wrong marker shows before any row is read.
        # A row that lacks a right one (its answer brings the reasoning that the template would write) is no error.
        self._marker_is_the_templates = template is None or bool(self.middle.strip())
        self.suggestion = ""
        if self._marker_is_the_templates:
            row = self._render("question", "answer")
            self.suggestion = next(
                (text for text in self._suggestions() if text.strip() and self._find_marker(text, *row)), ""
            )
            if self.marker and not self._find_marker(self.marker, *row):
                raise self._no_marker(*row)

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
        self.system = (
            "none" if not self.instruction else "prompt" if self.in_prompt or "instruction" in names else "dropped"
        )
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

    def _suggestions(self):
        """Markers to suggest, the best first: the last piece of the generation prompt that starts with a token of its own.

        Where the training text has another one (without the `<think>` of the prompt, say), its piece from the same token.
        """
        text, middle = self._header or self.generation, self.middle
        specials = [match for match in self._specials.finditer(text)] if self._specials else []
        if specials:
            first = specials[0] if self._header else specials[-1]
            text = text[first.start() :]
            middle = middle[max(middle.rfind(first.group()), 0) :]
        return [text if self._header else text.strip(), middle, middle.strip()]

    def _stops(self):
        """The texts of the tokens that end generation: EOS and those that the model's generation configuration names.

        Where that is not known, the token that ends the user's turn is taken to end the assistant's too.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        stops = {self.tokenizer.eos_token, *(str(added[number]) for number in self.stop_ids if number in added)}
        if not self.stop_ids and self._specials:
            written = self._specials.findall(self.middle)
            if written and written[0] not in self._header:
                stops.add(written[0])
        return stops - {None, ""}

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
        prompt, full, user_end, start, end, tail = self._render(query, output)
        matches = full.startswith(prompt)
        marker = self._find_marker(self.marker, prompt, full, user_end, start) if self.marker else None
        if self.marker and not marker and not self._marker_is_the_templates:
            raise self._no_marker(prompt, full, user_end, start)
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
            changed=_difference(output.strip(), full[start:end].strip()),
        )

    def _render(self, query, output):
        """(prompt, full, user_end, start, end, tail): a row's texts, and the places of its two messages in the full one.

        `full[start:end]` is the output and `tail` what follows it. `user_end` is where the template's own text before the
        output begins, or None where the template writes it in another way for this row.
        """
        if self.template is not None:
            user = f"{self.instruction}\n{query}" if self.in_prompt else query
            prompt = f"{self.head}{user}{self.middle}"
            start = len(prompt)
            end = start + len(output)
            return prompt, f"{prompt}{output}{self.tail}", start - len(self.middle), start, end, self.tail
        messages = self._messages(query)
        try:
            prompt = self._apply(messages, generation=True)
            full = self._answered(messages, output)
            if full is not None:
                for variant in (output, output.strip(), output.rstrip(), output.lstrip()):
                    if full.endswith(self.middle + variant + self.tail):
                        end = len(full) - len(self.tail)
                        start = end - len(variant)
                        return prompt, full, start - len(self.middle), start, end, self.tail
            # The template treats this answer in its own way (a </think> in it, say): ask it with a stand-in instead.
            before, _, after = self._answered(messages, _OUTPUT).rpartition(_OUTPUT)
        except PromptError as error:
            raise RowRefused(str(error)) from error
        user_end = len(before) - len(self.middle) if before.endswith(self.middle) else None
        if user_end is None and prompt.endswith(self.generation) and before.startswith(prompt):
            user_end = len(prompt) - len(self.generation)
        places = full and _place_output(full, before, after, user_end, output)
        if places:
            return prompt, full, user_end, *places, after
        if not output.strip():
            # Some templates refuse an empty answer or leave its turn open: it gets the turn of any other answer.
            return prompt, before + after, user_end, len(before), len(before), after
        raise PlaceUnknown(
            "The chat template rewrites this answer so that its place in the text cannot be known: "
            f"it begins {output[:60]!r}. Change the row, or set template to a file of your own."
        )

    def _answered(self, messages, output):
        """The training text of messages and an answer, or None where the template refuses an empty one."""
        try:
            return self._apply([*messages, {"role": "assistant", "content": output}])
        except PromptError:
            if output.strip():
                raise
            return None

    def _find_marker(self, marker, prompt, full, user_end, start, *_):
        """(start, end) of a marker's last occurrence in the template's own text between prompt and output, or None."""
        # Where the template's text cannot be told from the row's prompt, only the text right before the output is its own.
        at = full.rfind(marker, max(start - len(marker), 0) if user_end is None else user_end, start)
        if at < 0 and self.template is not None and not self.middle.strip():
            # With nothing but white space between them, the prompt's own end may carry the marker ("Answer:").
            end = len(full[:start].rstrip()) if not marker[-1].isspace() else start
            at = end - len(marker) if full[:end].endswith(marker) else -1
        return (at, at + len(marker)) if at >= 0 else None

    def _no_marker(self, prompt, full, user_end, start, *_):
        """The error of a marker that does not occur."""
        advice = "Leave model.completion_start"
        if self.suggestion:
            advice = f"Set model.completion_start to {self.suggestion!r}, or leave it"
        around = full[max(0, start - 60) : start + 20]
        return PromptError(
            f"completion_start {self.marker!r} does not occur in the template's text before the output. "
            f"There the text reads {around!r} (the output begins after {full[max(0, start - 20) : start]!r}). "
            f"{advice} empty to begin where the generation prompt ends."
        )

    def _end_of_turn(self, tail):
        """How much of the text after the output belongs to the turn, and the EOS to append if it has none.

        The turn ends with the first token that generation stops at, or with the first added token where there is none.
        """
        first = None
        for match in self._specials.finditer(tail) if self._specials else ():
            if match.group() in self.stops:
                return match.end(), ""
            if match.group() in self._header:  # a new turn begins
                return (first, "") if first else (match.start(), self.tokenizer.eos_token or "")
            first = first or match.end()
        return (first, "") if first else (len(tail), self.tokenizer.eos_token or "")


def _place_output(full, before, after, user_end, output):
    """(start, end) of an output in the text, known from the text around a stand-in, or None."""
    end = len(full) - len(after)
    if not full.endswith(after):
        return None
    if full.startswith(before) and len(before) <= end:
        return len(before), end
    # The template writes something else before this answer. The output begins where the texts part, or before that, where
    # it begins like the template's own text (both with <think>): wherever it agrees with the text for longest.
    shared = len(os.path.commonprefix([full[:end], before]))
    output = output.strip()
    if user_end is None or shared < user_end or not output:
        return None
    places = range(shared, user_end - 1, -1)
    return max(places, key=lambda at: len(os.path.commonprefix([full[at:end], output]))), end


def _difference(given, written):
    """The parts in which two texts differ, between what they share at both ends, or None."""
    if given == written:
        return None
    start = len(os.path.commonprefix([given, written]))
    given, written = given[start:], written[start:]
    same = len(os.path.commonprefix([given[::-1], written[::-1]]))
    return given[: len(given) - same], written[: len(written) - same]


def _pattern(tokenizer, special_only):
    """A pattern for the texts of the tokenizer's added tokens that are not white space, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in added if token.special or not special_only}
    texts |= set(tokenizer.all_special_tokens)
    texts = sorted((text for text in texts if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _place_user(full, end, query):
    if end is None:
        return None
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
        raise PromptError(f"template: {error}. Double the braces that are not placeholders ({{{{ and }}}}).") from error
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
