"""After the run: dev loss and answers of the base model beside those of the tuned one, measured, shown and saved."""

from typing import TYPE_CHECKING, Any, Literal

from ragfit.config.explain import explained
from ragfit.config.paths import PathText
from ragfit.data.words import question_of
from ragfit.errors import ConfigError
from ragfit.evaluation.generate import answer_settings, generate
from ragfit.evaluation.losses import dev_loss
from ragfit.evaluation.metrics import SHORT_ANSWERS, Gold, gold_of, scores
from ragfit.evaluation.results import data_of, label_scores, part_of, results_folder, save_results, summarize
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
            nowhere.

    Returns:
        EvaluationView, with the attributes `rows` (as in the JSONL), `summary` and `saved`.

    Raises:
        ConfigError: `rows` is negative.
    """
    from peft import PeftModel

    if rows is not None and rows < 0:
        raise ConfigError("rows", f"{rows!r} is not a number of rows", "Give one, or None for all rows.")
    folder, part = results_folder(trainer, save), part_of(trainer)
    prepared, model, settings = trainer.prepared, trainer.model, answer_settings(trainer, part, max_new_tokens)
    measured = [_row(prepared, number, part, answer_marker) for number in prepared.report.part(part).kept[:rows]]
    table = [row for row, _ in measured]
    prompts = [prepared.rendered(index, part).prompt for index in range(len(table))]

    def answer(name: str) -> None:
        """Put the answers of the model as it is now, with their scores, under its name into the rows."""
        doing = f"answers, {name}" if trainer.is_world_process_zero() else None
        given = generate(model, prepared, prompts, settings, trainer.args.per_device_eval_batch_size, doing)
        for (row, gold), (text, cut) in zip(measured, given, strict=True):
            scored = scores(text, gold, answer_marker)
            row |= {name: text, f"{name}_cut": cut, **{f"{name}_{metric}": value for metric, value in scored.items()}}

    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base_loss = dev_loss(trainer, "base") if base_loss is None else base_loss
            answer("base")
    tuned_loss = dev_loss(trainer, "tuned")
    answer("tuned")
    summary = {"part": part, "data": data_of(trainer), "rows": len(table), "answer_marker": answer_marker}
    summary |= {"max_new_tokens": settings["max_new_tokens"], "written": now()} | summarize(table)
    if labels := label_scores(table, answer_marker):
        summary |= labels
        summary.pop("recall", None)  # of labels: "no" is a word of many an answer that says yes
    if tuned_loss is not None:
        tokens = prepared.report.dev.loss_tokens
        summary["dev_loss"] = {"rows": len(prepared.dev), "tokens": tokens, "base": base_loss, "tuned": tuned_loss}
    notes, keys = [], trainer.cfg.model
    if part == "train":
        notes.append("There is no dev set: these rows were trained on, so the answers flatter. Set dev_split.")
    if keys.get("trained_adapter"):
        notes.append(f"The base is {keys.model_name_or_path} with {keys.trained_adapter} merged into it.")
    saved = save_results(folder, "evaluation", summary, table) if folder else None
    return EvaluationView(table, summary, notes, saved)


def _row(prepared: "Prepared", number: int, part: str, marker: str | None) -> tuple[dict[str, Any], Gold]:
    """What is known of a row before anything is generated, and what it expects."""
    query, _, source = prepared.row(number, part)
    where = prepared.sources[part].where(number)
    gold = gold_of(source, prepared.cfg.output_key, where, marker)
    row = {"row": number, "source": where, "question": question_of(source, query), "expected": list(gold.answers)}
    return row | ({SHORT_ANSWERS: list(map(list, gold.short))} if SHORT_ANSWERS in source else {}), gold
