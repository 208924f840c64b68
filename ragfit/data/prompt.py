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
    def extra(self) -> str:
        """Text with loss before the output, other than white space (an empty `<think>` block, say)."""
        return self.text[self.completion_char : self.output[0]].strip()


class Renderer:
    """Renders rows for one tokenizer and one set of prompt settings.

    Args:
        tokenizer: a `transformers` tokenizer; its chat template is used unless `template` is given.
        instruction: the system instruction, or "".
        template: a custom template's text, as `ragfit.data.template.TextTemplate` takes it.
        instruction_in_prompt: put the instruction before the prompt (`instruction + "\\n" + prompt`)
            instead of into a system message.
        completion_start: the marker that ends right where loss begins, or "" to begin where the generation
            prompt ends.
        stop_ids: the ids that the model's generation configuration stops at, where it is known.
        chat_template_kwargs: variables of the chat template, at inference as in training.

    Attributes:
        marker: `completion_start` as it stands in the text (`\\n` and `\\t` of a shell are a newline and a tab).
        system: what became of the instruction: "kept", "dropped" (not in the rendered text), "prompt"
            (it stands in the prompt), "none" (there is none).
        head, middle, tail: the template's text before the row's prompt, between it and the output, and after that.
        generation: the template's text after the row's prompt at inference.
        header: of that text, what begins the assistant's turn; "" where it is not known.
        suggestion: a marker that this template has in every row's text, or "".
        stops: the texts of the tokens that end generation.
        bos: ids to put before the text's own (a custom template with a tokenizer that adds BOS by itself).

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
        self._known_stops, self.stops = self._stops()
        self.marker = completion_start or ""
        if self.marker not in self.middle:  # a shell passes `assistant\n` on as a backslash and an n
            self.marker = self.marker.replace("\\n", "\n").replace("\\t", "\t")
        # Where the template has text of its own between prompt and output, a wrong marker shows before any row is
        # read. A row may lack a right one: its answer may bring the reasoning that the template would write.
        self._has_text_between = template is None or bool(self.middle.strip())
        self.suggestion = ""
        if self._has_text_between:
            row = writer.render("question", "answer")
            markers = (text for text in self._suggestions() if text.strip() and self._find_marker(text, row))
            self.suggestion = next(markers, "")
            if self.marker and not self._find_marker(self.marker, row):
                raise self._no_marker(row)

    def render(self, query: str, output: str) -> Rendered:
        """Render one row.

        Args:
            query: the row's prompt (question and documents).
            output: the text to learn; may be empty.

        Raises:
            PromptError: the marker does not occur.
            RowRefused: the template refuses the row, or rewrites its output so that its place is unknown.
        """
        row = self._writer.render(query, output)
        matches = row.full.startswith(row.prompt)
        marker = self._find_marker(self.marker, row) if self.marker else None
        if self.marker and not marker and not self._has_text_between:
            raise self._no_marker(row)
        # The generation prompt may end within the output: it opens the <think> that the output begins with.
        completion = marker[1] if marker else len(row.prompt) if matches else row.start
        end, eos = self._end_of_turn(row)
        return Rendered(
            prompt=row.prompt,
            text=row.full[:end] + eos if eos else row.full,
            completion_char=completion,
            end_char=end + len(eos),
            output=(row.start, row.end),
            user=_place_of_user(row, query),
            marker=marker,
            matches=matches,
            changed=_difference(output.strip(), row.full[row.start : row.end].strip()),
        )

    def kwargs_that_fit(self) -> str:
        """`chat_template_kwargs` under which the inference prompt ends as the training text before an answer, or ""."""
        return self._writer.kwargs_that_fit() if self.middle != self.generation else ""

    # The marker.

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
        first = self._added.search(self.header) if self._added else None
        tokens = list(self._added.finditer(self.middle)) if self._added else []
        last = self.middle[tokens[-1].start() :] if tokens else self.middle
        return self.header[first.start() :] if first else self.header, last.strip(), self.middle.strip()

    def _no_marker(self, row: Placed) -> PromptError:
        """The error of a marker that does not occur."""
        around, before = row.full[max(0, row.start - 60) : row.start + 20], row.full[max(0, row.start - 20) : row.start]
        advice = f"Set model.completion_start to {self.suggestion!r}, or leave it" if self.suggestion else ""
        return PromptError(
            "model.completion_start",
            f"{self.marker!r} does not occur in the template's text before the output. "
            f"There the text reads {around!r} (the output begins after {before!r})",
            f"{advice or 'Leave model.completion_start'} empty to begin where the generation prompt ends.",
        )

    # The end of the assistant's turn.

    def _stops(self) -> tuple[set[str], set[str]]:
        """The texts of the tokens that are known to end generation, and of those that are taken to end a turn.

        The former are EOS and those that the model's generation configuration names. Where there is none, the token
        that ends the user's turn is taken to end the assistant's too.
        """
        added = self.tokenizer.added_tokens_decoder
        known = {self.tokenizer.eos_token, *(str(added[number]) for number in self.stop_ids if number in added)}
        known -= {None, ""}
        written = self._added.findall(self.middle) if self._added and not self.stop_ids else []
        return known, known | {text for text in written[:1] if text not in self.header}

    def _end_of_turn(self, row: Placed) -> tuple[int, str]:
        """Where the turn ends in `row.full`, and the EOS to append there if the template brings no end.

        The turn ends with the first token of `stops`, or with the first added token where there is none. Where that one
        is not known to end generation, the tokens that follow it at once do so too, up to one that is.
        """
        tail, ends = row.full[row.end :], []
        for match in self._added.finditer(tail) if self._added else ():
            if match.group() in self.header and match.group() not in self._known_stops:  # a new turn begins
                tail = tail[: match.start()]
                break
            ends.append(match)
        if ends:
            first = next((n for n, match in enumerate(ends) if match.group() in self.stops), 0)
            last = first
            while ends[last].group() not in self._known_stops and ends[last].end() in [one.start() for one in ends]:
                last += 1
            end = ends[last] if ends[last].group() in self._known_stops else ends[first]
            return row.end + end.end(), ""
        return row.end + len(tail), self.tokenizer.eos_token or ""


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


def _place_of_user(row: Placed, query: str) -> tuple[int, int] | None:
    if row.user_end is None:
        return None
    for variant in stripped(query):
        if variant and row.full[: row.user_end].endswith(variant):
            return row.user_end - len(variant), row.user_end
    return None
