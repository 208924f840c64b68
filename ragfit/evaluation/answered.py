"""Answers that are kept as they are given, so that a long evaluation that was killed does not give them again."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfit.evaluation.generate import Answer, generate
from ragfit.evaluation.results import CLOSED_BOOK, MODELS
from ragfit.models.load import weights_digest
from ragfit.runs.records import EVALUATION, read_rows

if TYPE_CHECKING:
    from trl import SFTTrainer

GIVEN = "answered_with"  # of a saved row: the digest of the weights, the prompt and the settings
BARE = f"{CLOSED_BOOK}_{GIVEN}"  # the same of its closed_book answer, whose prompt is another
ROWS = Path(EVALUATION).with_suffix(".jsonl").name
PART = Path(EVALUATION).with_suffix(".part.jsonl").name
NAMES = (*MODELS, CLOSED_BOOK)


class Answers:
    """Answers prompts, except those that the same weights answered before with the same settings.

    Earlier answers are read from `evaluation.jsonl` and, of an evaluation that was killed, `evaluation.part.jsonl`.
    Where several processes generate, each answer is given again, since all of them have to take part in it.

    Args:
        trainer: whose model answers.
        settings: of `ragfit.evaluation.generate.answer_settings`.
        folder: where earlier answers are looked for; None for nowhere.
        keep: whether new answers are kept there too, until `done`.

    Attributes:
        reused: how many answers were not given again.
    """

    def __init__(self, trainer: "SFTTrainer", settings: Mapping[str, Any], folder: Path | None, keep: bool = False):
        self.trainer, self.settings, self.reused = trainer, dict(settings), 0
        folder = folder if trainer.args.world_size == 1 else None
        self.part = folder / PART if folder and keep else None
        own = trainer.model.generation_config.to_dict()
        # Several processes reuse nothing, and each may hold a part of the weights alone.
        self.basis = [weights_digest(trainer.model) if trainer.args.world_size == 1 else None, self.settings, own]
        self.known = {} if folder is None else read_answers(folder / ROWS) | read_answers(folder / PART)

    def digest(self, prompt: str) -> str:
        """Stands for the weights, a prompt and the settings together."""
        import xxhash

        text = json.dumps([*self.basis, prompt], sort_keys=True, default=str)
        return xxhash.xxh3_128_hexdigest(text.encode())

    def to(self, prompts: Sequence[str], name: str) -> list[Answer]:
        """The answers of the model as it is now.

        Args:
            name: what the model is at present, or answers from: base, tuned or closed_book.
        """
        keys = [(self.digest(prompt), name) for prompt in prompts]
        new = [n for n, key in enumerate(keys) if key not in self.known]
        self.reused += len(prompts) - len(new)

        def keep(answers: Mapping[int, Answer]) -> None:
            given = {keys[new[n]]: answer for n, answer in answers.items()}
            self.known |= given
            rows = [{GIVEN: digest, name: text, f"{name}_cut": cut} for (digest, _), (text, cut) in given.items()]
            if self.part:
                with contextlib.suppress(OSError):  # the evaluation says it when it is saved
                    self.part.parent.mkdir(parents=True, exist_ok=True)
                    with self.part.open("a") as file:
                        file.writelines(f"\n{json.dumps(row)}" for row in rows)  # ends a line that was cut short

        if new:
            generate(
                self.trainer.model,
                self.trainer.prepared,
                [prompts[n] for n in new],
                self.settings["max_new_tokens"],
                self.settings,
                self.trainer.args.per_device_eval_batch_size,
                keep,
            )
        return [self.known[key] for key in keys]

    def done(self) -> None:
        """All answers are saved elsewhere."""
        if self.part:
            with contextlib.suppress(OSError):
                self.part.unlink(missing_ok=True)


def read_answers(path: Path) -> dict[tuple[str, str], Answer]:
    """The answers in a file of rows, by (digest, name)."""
    shape = {GIVEN: str, BARE: str} | dict.fromkeys(NAMES, str) | dict.fromkeys((f"{name}_cut" for name in NAMES), bool)
    answers = {}
    for row in read_rows(path, shape):
        for name in NAMES:
            digest = row.get(GIVEN) if name != CLOSED_BOOK else row.get(BARE, row.get(GIVEN))
            if digest and name in row:
                answers[digest, name] = row[name], row.get(f"{name}_cut", False)
    return answers
