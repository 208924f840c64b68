"""After the run: dev loss and answers of the base model beside those of the tuned one, measured, shown and saved.

python -m ragfit.evaluation trained_models/checkpoint --data test.jsonl --rows 100
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ragfit.config.explain import explained
from ragfit.config.paths import PathText, user_path
from ragfit.data.documents import find_documents
from ragfit.errors import ConfigError
from ragfit.evaluation.answered import BARE, GIVEN, ROWS, Answers
from ragfit.evaluation.generate import Answer, answer_settings, dev_loss
from ragfit.evaluation.label_scores import label_scores
from ragfit.evaluation.metrics import SHORT_ANSWERS, Gold, gold_of, question_of, scores
from ragfit.evaluation.results import CLOSED_BOOK, MODELS, save_evaluation, summarize
from ragfit.evaluation.view import EvaluationView
from ragfit.runs.records import now

if TYPE_CHECKING:
    from trl import SFTTrainer

    from ragfit.data.report import Prepared


@explained("The evaluation")
def evaluate(
    trainer: "SFTTrainer",
    rows: int | None = 16,
    answer_marker: str | None = None,
    base_loss: float | None = None,
    max_new_tokens: int | None = None,
    save: PathText | Literal[False] | None = None,
    closed_book: bool = False,
) -> EvaluationView:
    """Compare the base model with the tuned model: dev loss, and answers to the same inference prompts, drawn greedily.

    The rows are the first of the dev set, or of the training set where there is none (which the view says). What the
    metrics measure, and against which expected answers, is said in `ragfit.evaluation.metrics.scores` and `gold_of`.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not. Where all weights are trained there is no base any more.
        rows: how many rows to answer; None for all.
        answer_marker: text such as `<ANSWER>:`; only what follows it in an answer is compared.
        base_loss: the dev loss from before training, where it is known; else it is measured with the adapter off.
        max_new_tokens: the longest answer, in tokens; by default that of `model.generation`, and where there is none
            as `ragfit.evaluation.generate.longest_answer` says.
        save: a folder for `evaluation.jsonl` (a line for each row) and `evaluation.json` (the summary), which replace
            those of an earlier evaluation; by default the run's output folder where the trainer has trained. False:
            nowhere. Answers that are there already, or that an evaluation gave before it was killed, are not given
            again where weights, prompt and settings are the same (`ragfit.evaluation.answered`).
        closed_book: whether the tuned model answers a second time without the documents in its prompt, so that what the
            documents gave can be told from what the training gave.

    Returns:
        EvaluationView, with the attributes `rows` (as in the JSONL), `summary` and `saved`.

    Raises:
        ConfigError: `rows` is negative, or `max_new_tokens` not above 0.
    """
    from peft import PeftModel

    if rows is not None and (not isinstance(rows, int) or rows < 0):
        raise ConfigError("rows", f"{rows!r} is not a number of rows", "Give one, or None for all rows.")
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
        fix = "Give a number of tokens above 0, or None for the default."
        raise ConfigError("max_new_tokens", f"{max_new_tokens!r} is not a number of tokens", fix)
    prepared, cfg = trainer.prepared, trainer.cfg
    if save is None and trainer.state.global_step:
        save = trainer.args.output_dir
    folder = user_path(save, "save") if save else None  # refused before the answers are generated, not after
    part = "dev" if prepared.dev is not None else "train"
    settings = answer_settings(trainer, part, max_new_tokens)
    answers = Answers(trainer, settings, folder, keep=trainer.is_world_process_zero())

    measured = [_row(prepared, number, part, answer_marker) for number in prepared.report.part(part).kept[:rows]]
    table = [row for row, _ in measured]
    prompts = [prepared.rendered(index, part).prompt for index in range(len(table))]
    for (row, _), prompt in zip(measured, prompts, strict=True):
        row[GIVEN] = answers.digest(prompt)
    losses = {"base": base_loss, "tuned": dev_loss(trainer)}
    for name in MODELS if isinstance(trainer.model, PeftModel) else ("tuned",):
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            if name == "base" and base_loss is None:
                losses["base"] = dev_loss(trainer)
            given = answers.to(prompts, name)
        _score(measured, given, name, answer_marker)
    if closed_book:
        bare = {n: prompt for n, row in enumerate(table) if (prompt := _without_documents(prepared, row["row"], part))}
        for n, prompt in bare.items():
            table[n][BARE] = answers.digest(prompt)
        given = answers.to(list(bare.values()), CLOSED_BOOK)
        _score([measured[n] for n in bare], given, CLOSED_BOOK, answer_marker)
    summary = {
        "part": part,
        "data": str(cfg.dev_split if part == "dev" and isinstance(cfg.dev_split, str) else cfg.data_file),
        "rows": len(table),
        "answer_marker": answer_marker,
        "max_new_tokens": settings["max_new_tokens"],
        "written": now(),
        **summarize(table),
        **label_scores(table, answer_marker),
    }
    if losses["tuned"] is not None:
        summary["dev_loss"] = {"rows": len(prepared.dev), **losses}
    notes, saved = [], None
    if part == "train":
        notes.append("There is no dev set: these rows were trained on, so the answers flatter. Set dev_split.")
    if cfg.model.get("trained_adapter"):
        notes.append(f"The base is {cfg.model.model_name_or_path} with {cfg.model.trained_adapter} merged into it.")
    if closed_book and len(bare) < len(table):
        notes.append(f"The documents of {len(table) - len(bare)} rows were not found: they have no closed_book answer.")
    if answers.reused:
        notes.append(
            f"{answers.reused:,} answers were already in {folder}, given by the same weights to the same prompts with "
            f"the same settings. To have them given again, delete {ROWS} there."
        )
    if folder and trainer.is_world_process_zero():
        try:
            saved = save_evaluation(folder, summary, table)
            answers.done()
        except OSError as error:
            notes.append(f"The evaluation could not be saved in {folder}: {error.strerror}.")
    return EvaluationView(table, summary, notes, saved)


def _score(measured: list[tuple[dict, Gold]], answers: Sequence[Answer], name: str, marker: str | None) -> None:
    """Put answers and their scores into their rows, under a name."""
    for (row, gold), (answer, cut) in zip(measured, answers, strict=True):
        scored = scores(answer, gold, marker).as_dict()
        row |= {name: answer, f"{name}_cut": cut, **{f"{name}_{metric}": value for metric, value in scored.items()}}


def _without_documents(prepared: "Prepared", number: int, part: str) -> str | None:
    """The inference prompt of a row without its documents; None where they cannot be found in it."""
    query, output, source = prepared.row(number, part)
    passages = find_documents(query, source)
    return prepared.renderer.render(passages.prompt([]), output).prompt if passages else None


def _row(prepared: "Prepared", number: int, part: str, marker: str | None) -> tuple[dict[str, Any], Gold]:
    """What is known of a row before anything is generated, and what it expects."""
    query, _, source = prepared.row(number, part)
    where = prepared.sources[part].where(number)
    gold = gold_of(source, prepared.cfg.output_key, where, marker)
    question = question_of(source, query)
    row = {"row": number, "source": where, "question": question, "expected": list(gold.answers)}
    if SHORT_ANSWERS in source:
        row[SHORT_ANSWERS] = [list(spellings) for spellings in gold.short]
    return row, gold
