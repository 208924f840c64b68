"""What is said: a row's prompt and training text, and the places in them between which there is loss."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragfit.data.template import KWARGS_KEY, ChatTemplate, Placed, TextTemplate, stripped
from ragfit.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """One row as text. All places are characters of `text`."""

    prompt: str  # what the model is given at inference
    text: str  # the training text: prompt, completion and, where the template brings none, EOS
    completion_char: int  # the first one with loss
    end_char: int  # one past the last one with loss: the end of the assistant's turn
    output: tuple[int, int]
    user: tuple[int, int] | None  # the row's prompt; None where the template changed it
    marker: tuple[int, int] | None  # `completion_start`; None where it does not stand before this output
    matches: bool  # whether `text` begins with `prompt`
    changed: tuple[str, str] | None = None  # what of the output (white space at its ends aside) became what, if any

    @property
    def extra(self) -> str:
        """Text with loss before the output, other than white space (an empty `<think>` block, say)."""
        return self.text[self.completion_char : self.output[0]].strip()


class Renderer:
    """Renders rows for one tokenizer and one set of prompt settings, named as the configuration's keys.

    `template` is a custom template's text, and `stop_ids` are what the model's generation configuration stops at.

    Attributes:
        marker: `completion_start` as it stands in the text.
        system: what became of the instruction: "kept", "dropped" (it is not in the text), "prompt", "none".
        head, middle, tail: the template's text before the row's prompt, between it and the output, and after that.
        generation: the text after the row's prompt at inference, which ends with the turn's `header`, where known.
        suggestion: a marker that this template has in every row's text, or "".
        stops: the texts of the tokens that end generation.
        bos: ids to put before the text's own.

    Raises:
        PromptError: no template, a template that refuses the messages, or a marker that does not occur.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        instruction: str = "",
        template: str | None = None,
        instruction_in_prompt: bool = False,
        completion_start: str = "",
        stop_ids: Sequence[int] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer, self.template, self.stop_ids = tokenizer, template, tuple(stop_ids)
        self.instruction, self.chat_template_kwargs = instruction or "", dict(chat_template_kwargs or {})
        in_prompt = bool(instruction_in_prompt and self.instruction)
        if template is None:
            writer = ChatTemplate(tokenizer, self.instruction, in_prompt, self.chat_template_kwargs)
        elif self.chat_template_kwargs:
            raise PromptError(KWARGS_KEY, "a template of your own reads no variables", "Leave one of the two out.")
        else:
            writer = TextTemplate(tokenizer, template, self.instruction, in_prompt)
        self.in_prompt, self.system, self.bos, self.header = writer.in_prompt, writer.system, writer.bos, writer.header
        self.head, self.middle, self.tail, self.generation = writer.head, writer.middle, writer.tail, writer.generation
        self._writer, self._added = writer, added_tokens_pattern(tokenizer)
        # EOS and what the model's generation configuration names are known to end generation. Where there is none, the
        # token that ends the user's turn is taken to end the assistant's too.
        added = tokenizer.added_tokens_decoder
        known = {tokenizer.eos_token, *(str(added[number]) for number in self.stop_ids if number in added)}
        written = self._added.findall(self.middle)[:1] if self._added and not self.stop_ids else []
        self._known_stops = known - {None, ""}
        self.stops = self._known_stops | {text for text in written if text not in self.header}
        self.marker = completion_start or ""
        if self.marker not in self.middle:  # a shell passes `assistant\n` on as a backslash and an n
            self.marker = self.marker.replace("\\n", "\n").replace("\\t", "\t")
        # Where the template has text of its own between prompt and output, a wrong marker shows before any row is
        # read. A row may lack a right one: its answer may bring the reasoning that the template would write.
        self._has_text_between, self.suggestion = template is None or bool(self.middle.strip()), ""
        if self._has_text_between:
            row = writer.render("question", "answer")
            markers = (text for text in self._suggestions() if text.strip() and self._find_marker(text, row))
            self.suggestion = next(markers, "")
            if self.marker and not self._find_marker(self.marker, row):
                raise self._no_marker(row)

    def render(self, query: str, output: str) -> Rendered:
        """Render one row: its prompt (question and documents), and the text to learn, which may be empty.

        Raises:
            PromptError: the marker does not occur.
            RowRefused: the template refuses the row, or rewrites its output so that its place is unknown.
        """
        row = self._writer.render(query, output)
        marker = self._find_marker(self.marker, row) if self.marker else None
        if self.marker and not marker and not self._has_text_between:
            raise self._no_marker(row)
        matches, text = row.full.startswith(row.prompt), row.full
        # The generation prompt may end within the output: it opens the <think> that the output begins with.
        completion = marker[1] if marker else len(row.prompt) if matches else row.start
        end, ended = self._end_of_turn(row)
        if not ended and (eos := self.tokenizer.eos_token):
            text = text[:end] + eos
            end = len(text)
        before = row.full[: row.user_end or 0]
        said = next((one for one in stripped(query) if one and before.endswith(one)), "")
        user = (len(before) - len(said), len(before)) if said else None
        changed = _difference(output.strip(), row.full[row.start : row.end].strip())
        return Rendered(row.prompt, text, completion, end, (row.start, row.end), user, marker, matches, changed)

    def kwargs_that_fit(self) -> str:
        """`chat_template_kwargs` under which the inference prompt ends as the training text before an answer, or ""."""
        return self._writer.kwargs_that_fit() if self.middle != self.generation else ""

    def _find_marker(self, marker: str, row: Placed) -> tuple[int, int] | None:
        """(start, end) of a marker's last occurrence in the template's own text between prompt and output, or None."""
        # Where the template's text cannot be told from the row's, only the text right before the output is its own.
        begin = max(row.start - len(marker), 0) if row.user_end is None else row.user_end
        at = row.full.rfind(marker, begin, row.start)
        if at < 0 and not self._has_text_between:
            # With nothing but white space between them, the prompt's own end may carry the marker ("Answer:").
            end = row.start if marker[-1].isspace() else len(row.full[: row.start].rstrip())
            at = end - len(marker) if row.full[:end].endswith(marker) else -1
        return (at, at + len(marker)) if at >= 0 else None

    def _suggestions(self) -> tuple[str, ...]:
        """Markers to suggest, the best first: the header of the turn, or what stands last before outputs."""
        headers, tokens = ([*self._added.finditer(text)] if self._added else [] for text in (self.header, self.middle))
        header = self.header[headers[0].start() :] if headers else self.header
        return header, self.middle[tokens[-1].start() if tokens else 0 :].strip(), self.middle.strip()

    def _no_marker(self, row: Placed) -> PromptError:
        """The error of a marker that does not occur."""
        around, before = row.full[max(0, row.start - 60) : row.start + 20], row.full[max(0, row.start - 20) : row.start]
        problem = f"{self.marker!r} does not occur in the template's text before the output. There the text reads "
        problem += f"{around!r} (the output begins after {before!r})"
        advice = f"Set model.completion_start to {self.suggestion!r}, or leave it" if self.suggestion else "Leave it"
        fix = f"{advice} empty to begin where the generation prompt ends."
        return PromptError("model.completion_start", problem, fix)

    def _end_of_turn(self, row: Placed) -> tuple[int, bool]:
        """Where the assistant's turn ends in `row.full`, and whether a token ends it there.

        That is the first token of `stops`, or the first added one where there is none; where it is not known to end
        generation, the tokens that follow it at once belong to the end too, up to one that is.
        """
        ends, stop = [], len(row.full)
        for match in self._added.finditer(row.full, row.end) if self._added else ():
            if match.group() in self.header and match.group() not in self._known_stops:  # a new turn begins
                stop = match.start()
                break
            ends.append(match)
        ends = ends[next((n for n, match in enumerate(ends) if match.group() in self.stops), 0) :]
        for match, following in zip(ends, [*ends[1:], None], strict=False):
            if match.group() in self._known_stops:
                return match.end(), True
            if following is None or following.start() != match.end():
                break
        return (ends[0].end(), True) if ends else (stop, False)


def added_tokens_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern | None:
    """A pattern for the texts of a tokenizer's added tokens, or None where it has none."""
    texts = {*map(str, tokenizer.added_tokens_decoder.values()), *tokenizer.all_special_tokens}
    longest_first = sorted((text for text in texts if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _difference(given: str, written: str) -> tuple[str, str] | None:
    """The parts in which two texts differ, between what they share at both ends, or None."""
    if given == written:
        return None
    start = len(os.path.commonprefix([given, written]))
    given, written = given[start:], written[start:]
    same = len(os.path.commonprefix([given[::-1], written[::-1]]))
    return given[: len(given) - same], written[: len(written) - same]
