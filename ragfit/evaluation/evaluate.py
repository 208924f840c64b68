"""After the run: dev loss and answers of the base model beside those of the tuned one, measured, shown and saved."""

import contextlib
from typing import TYPE_CHECKING, Any

from ragfit.config.explain import explained
from ragfit.data.words import question_of
from ragfit.evaluation.generate import answer_settings, generate
from ragfit.evaluation.labels import label_scores
from ragfit.evaluation.losses import dev_loss
from ragfit.evaluation.metrics import SHORT_ANSWERS, Gold, gold_of, scores
from ragfit.evaluation.results import MODELS, Save, measured_rows, save_results, summarize
from ragfit.evaluation.view import EvaluationView

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
    save: Save = None,
) -> EvaluationView:
    """Compare the base model with the tuned model: dev loss, and answers to the same inference prompts, drawn greedily.

    The rows are the first of the dev set, or of the training set where there is none (which the view says). What the
    metrics measure, and against which expected answers, is said in `ragfit.evaluation.metrics`.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not. Where all weights are trained there is no base any more.
        rows: how many rows to answer; None for all.
        answer_marker: text such as `<ANSWER>:`; only what follows it in an answer is compared.
        base_loss: the dev loss from before training, where it is known; else it is measured with the adapter off.
        max_new_tokens: the longest answer, in tokens; by default that of `model.generation`, and where there is none
            as `ragfit.evaluation.generate.answer_settings` says.
        save: a folder for `evaluation.jsonl` (a line for each row) and `evaluation.json` (the summary); by default the
            run's output folder where the trainer has trained. False: nowhere.

    Returns:
        EvaluationView, with the attributes `rows` (as in the JSONL), `summary` and `saved`.
    """
    from peft import PeftModel

    prepared, cfg, about = trainer.prepared, trainer.cfg, measured_rows(trainer)
    settings = answer_settings(trainer, part := about["part"], max_new_tokens)
    measured = [_row(prepared, number, part, answer_marker) for number in prepared.report.part(part).kept[:rows]]
    table, losses = [row for row, _ in measured], {"base": base_loss}
    prompts = [prepared.rendered(index, part).prompt for index in range(len(table))]
    names = MODELS if isinstance(trainer.model, PeftModel) else MODELS[1:]
    for name in names:
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            if losses.get(name) is None:
                losses[name] = dev_loss(trainer, name)
            answers = generate(trainer, prompts, settings, name)
        for (row, gold), (text, cut) in zip(measured, answers, strict=True):
            found = scores(text, gold, answer_marker)
            row |= {name: text, f"{name}_cut": cut, **{f"{name}_{metric}": value for metric, value in found.items()}}
    labels = label_scores(table, answer_marker)
    summary = about | {"rows": len(table), "answer_marker": answer_marker}
    summary |= {"max_new_tokens": settings["max_new_tokens"], **summarize(table), **labels}
    if labels:
        summary.pop("recall", None)  # "no" is a word of many an answer that says yes
    if part == "dev":
        dev = prepared.report.dev
        summary["dev_loss"] = {"rows": len(dev.kept), "tokens": dev.loss_tokens, **losses}
    saved = save_results(trainer, save, "evaluation", summary, table)
    merged = cfg.model.get("trained_adapter")
    notes = {
        "There is no dev set: these rows were trained on, so the answers flatter. Set dev_split.": part == "train",
        f"The base is {cfg.model.model_name_or_path} with {merged} merged into it.": merged,
        "All weights were trained, so the base model is not here any more.": names == MODELS[1:],
    }
    return EvaluationView(table, summary, [note for note, holds in notes.items() if holds], saved)


def _row(prepared: "Prepared", number: int, part: str, marker: str | None) -> tuple[dict[str, Any], Gold]:
    """What is known of a row before anything is generated, and what it expects."""
    query, _, source = prepared.row(number, part)
    where, question = prepared.sources[part].where(number), question_of(source, query)
    gold = gold_of(source, prepared.cfg.output_key, where, marker)
    short = {SHORT_ANSWERS: list(map(list, gold.short))} if SHORT_ANSWERS in source else {}
    return {"row": number, "source": where, "question": question, "expected": list(gold.answers), **short}, gold
