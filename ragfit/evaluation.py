"""After the run: dev loss and answers of the base model beside those of the tuned one, measured, shown and saved.

    python -m ragfit.evaluation trained_models/checkpoint --data test.jsonl --rows 100
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from ragfit.answers import dev_loss, generate, longest_answer
from ragfit.config import find_path, user_path
from ragfit.errors import ConfigError, RagfitError, explained, for_terminal
from ragfit.metrics import SHORT_ANSWERS, gold_of, scores
from ragfit.overrides import override, refuse_secrets
from ragfit.trust import load_believed

ROWS, SUMMARY = "evaluation.jsonl", "evaluation.json"
METRICS = ("exact_match", "f1", "recall", "citations")
MODELS = ("base", "tuned")


@explained("The evaluation")
def evaluate(trainer, rows=16, answer_marker=None, base_loss=None, max_new_tokens=None, save=None):
    """Compare the base model with the tuned model: dev loss, and answers to the same inference prompts, drawn greedily.

    The rows are the first of the dev set, or of the training set where there is none (which the view says). What the
    metrics measure, and against which expected answers, is said in `ragfit.metrics.scores` and `gold_of`.

    Args:
        trainer: of `ragfit.build_trainer`, trained or not. Where all weights are trained there is no base any more.
        rows: how many rows to answer; None for all.
        answer_marker: text such as `<ANSWER>:`; only what follows it in an answer is compared.
        base_loss: the dev loss from before training, where it is known; else it is measured with the adapter off.
        max_new_tokens: the longest answer, in tokens; by default that of `model.generation`, and where there is none
            as `ragfit.answers.longest_answer` says.
        save: a folder for `evaluation.jsonl` (a line for each row) and `evaluation.json` (the summary), which replace
            those of an earlier evaluation; by default the run's output folder where the trainer has trained. False: none.

    Returns:
        EvaluationView, with the attributes `rows` (as in the JSONL), `summary` and `saved`.

    Raises:
        ConfigError: `rows` is negative, or `max_new_tokens` not above 0.
    """
    from omegaconf import OmegaConf

    from ragfit.views import EvaluationView

    if rows is not None and (not isinstance(rows, int) or rows < 0):
        raise ConfigError(f"rows is {rows!r}. Give the number of rows to answer, or None for all.")
    save = user_path(save, "save") if save else save  # said before the answers are generated, not after
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
        raise ConfigError(f"max_new_tokens is {max_new_tokens!r}. Give a number of tokens above 0, or None for the default.")
    prepared, trained = trainer.prepared, trainer.state.global_step > 0
    part = "dev" if prepared.dev is not None else "train"
    kept = getattr(prepared.report, part).kept[:rows]
    settings = OmegaConf.to_container(trainer.cfg.model).get("generation") or {}  # transformers asks for lists and dicts
    limit = max_new_tokens or settings.get("max_new_tokens") or longest_answer(prepared, part)
    settings["max_new_tokens"] = limit
    measured = [_row(prepared, number, part, answer_marker) for number in kept]
    table = [row for row, _ in measured]
    losses = {"base": base_loss, "tuned": dev_loss(trainer)}
    prompts = [prepared.rendered(index, part).prompt for index in range(len(kept))]
    batch = trainer.args.per_device_eval_batch_size
    for name in MODELS if hasattr(trainer.model, "disable_adapter") else MODELS[1:]:
        with trainer.model.disable_adapter() if name == "base" else contextlib.nullcontext():
            if name == "base" and base_loss is None:
                losses["base"] = dev_loss(trainer)
            answers = generate(trainer.model, prepared, prompts, limit, settings, batch)
        for (row, gold), (answer, cut) in zip(measured, answers, strict=True):
            found = scores(answer, gold, answer_marker).as_dict()
            row |= {name: answer, f"{name}_cut": cut, **{f"{name}_{metric}": found[metric] for metric in METRICS}}
    summary = {
        "part": part,
        "data": str(getattr(prepared.sources[part], "path", trainer.cfg.data_file)),
        "rows": len(table),
        "answer_marker": answer_marker,
        "max_new_tokens": limit,
        "written": _now(),
        **summarize(table),
    }
    if losses["tuned"] is not None:
        summary["dev_loss"] = {"rows": len(prepared.dev), **losses}
    notes = []
    if part == "train":
        notes.append("There is no dev set: these rows were trained on, so the answers flatter. Set dev_split.")
    if trainer.cfg.model.get("trained_adapter"):
        notes.append(f"The base is {trainer.cfg.model.model_name_or_path} with {trainer.cfg.model.trained_adapter} merged into it.")
    saved = None
    folder = trainer.args.output_dir if save is None and trained else save
    if folder and trainer.is_world_process_zero():
        try:
            saved = save_evaluation(folder, summary, table)
        except OSError as error:
            notes.append(f"The evaluation could not be saved in {folder}: {error.strerror}.")
    return EvaluationView(table, summary, notes, saved)


def _row(prepared, number, part, marker):
    """What is known of a row before anything is generated, and what it expects."""
    query, _, source = prepared.row(number, part)
    where = prepared.sources[part].where(number)
    gold = gold_of(source, prepared.cfg.output_key, where, marker)
    question = next((source[key] for key in ("query", "question") if isinstance(source.get(key), str)), query)
    row = {"row": number, "source": where, "question": question, "expected": list(gold.answers)}
    if SHORT_ANSWERS in source:
        row[SHORT_ANSWERS] = [list(spellings) for spellings in gold.short]
    return row, gold


def summarize(table):
    """The mean of each metric over the rows that have it, and on how many of them tuned is better or worse than base.

    Returns:
        `{metric: {"rows": …, "base": …, "tuned": …, "better": …, "worse": …}}`, without metrics that no row has.
    """
    summary = {}
    for metric in METRICS:
        values = {name: [row[key] for row in table if row.get(key := f"{name}_{metric}") is not None] for name in MODELS}
        values = {name: found for name, found in values.items() if found}
        if not values:
            continue
        summary[metric] = {"rows": len(values["tuned"]), **{name: sum(found) / len(found) for name, found in values.items()}}
        if "base" in values:
            pairs = list(zip(values["base"], values["tuned"], strict=True))
            summary[metric] |= {"better": sum(t > b for b, t in pairs), "worse": sum(t < b for b, t in pairs)}
    return summary


def save_loss(trainer, loss):
    """Save the dev loss alone, where a run answers no rows."""
    part = {"part": "dev", "data": str(trainer.cfg.dev_split), "rows": 0, "written": _now()}
    with contextlib.suppress(OSError):
        save_evaluation(trainer.args.output_dir, part | {"dev_loss": {"rows": len(trainer.prepared.dev), "base": None, "tuned": loss}})


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_evaluation(folder, summary, table=None):
    """Write the summary, and the rows where there are any, each file whole or not at all.

    Returns:
        The path of the rows, or of the summary where there are none.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    texts = {SUMMARY: json.dumps(summary, ensure_ascii=False, indent=1) + "\n"}
    if table:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        texts = {ROWS: lines, **texts}
    else:
        (folder / ROWS).unlink(missing_ok=True)  # of another evaluation, which the new summary does not sum up
    for name, text in texts.items():
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    return folder / next(iter(texts))


# A checkpoint of an earlier run.


@explained("Loading the checkpoint")
def load_checkpoint(checkpoint, data_file=None, overrides=()):
    """A trainer with the model of a finished run, to evaluate it.

    Args:
        checkpoint: the folder `checkpoint` of a run.
        data_file: rows to evaluate on instead of the run's own dev set.
        overrides: Hydra overrides of the run's configuration, such as `["model.load_in_8bit=false"]`. What would run code
            (`model.trust_remote_code`, a `model._target_` of one's own) counts only here, not in the checkpoint's file.

    Raises:
        ConfigError: the folder holds no configuration, or whatever loading raises.
    """
    from ragfit.preparation import prepare
    from ragfit.trainer import RagfitTrainer, training_arguments
    from ragfit.training import load_model
    from ragfit.trial import check_vocabulary
    from ragfit.views.losses import load_tuned

    folder = find_path(checkpoint, "checkpoint")
    if not (folder / "ragfit.yaml").is_file():
        raise ConfigError(f"{folder} holds no ragfit.yaml. Name the folder checkpoint of a run's train.output_dir.")
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():  # a run's output folder has a ragfit.yaml too
        raise ConfigError(f"{folder} holds no adapter and no model. Name the folder checkpoint of a run's train.output_dir.")
    keys = {"train.output_dir": str(folder.parent), "train.disable_tqdm": True}
    if not adapter:  # an earlier adapter is part of these weights
        keys |= {"model.model_name_or_path": str(folder), "model.trained_adapter": None}
    if data_file:
        keys |= {"data_file": str(find_path(data_file, "--data")), "dev_split": None, "limit": None, "shuffle": None}
    cfg = load_believed(folder, [*(override(key, value) for key, value in keys.items()), *overrides])
    prepared = prepare(cfg)
    if data_file:
        prepared.report.dev = prepared.report.train
        prepared = dataclasses.replace(prepared, dev=prepared.train, sources={**prepared.sources, "dev": prepared.sources["train"]})
    loaded = load_model(cfg)
    check_vocabulary(loaded.model, prepared)
    trainer = RagfitTrainer(cfg, prepared, loaded, training_arguments(cfg, prepared))
    if adapter:
        load_tuned(trainer, folder)
    return trainer


def main(argv=None):
    """Evaluate a checkpoint from the command line."""
    parser = argparse.ArgumentParser("python -m ragfit.evaluation", description="Base against tuned on a checkpoint of an earlier run.")
    parser.add_argument("checkpoint", help="the folder checkpoint of a run's train.output_dir")
    parser.add_argument("overrides", nargs="*", help="overrides of the run's configuration, such as model.load_in_8bit=false")
    parser.add_argument("--data", help="rows to evaluate on; the run's own dev set by default")
    parser.add_argument("--rows", type=int, help="answer so many of them; all by default")
    parser.add_argument("--marker", help="compare only what follows this text in an answer, such as '<ANSWER>:'")
    parser.add_argument("--out", help="folder for evaluation.jsonl and evaluation.json; the run's own by default, "
                        "with --data a folder evaluation-NAME in it")  # fmt: skip
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        refuse_secrets(args.overrides, "a command line is kept by shells")
        trainer = load_checkpoint(args.checkpoint, args.data, args.overrides)
        out = Path(trainer.args.output_dir)
        if args.data:
            out /= f"evaluation-{Path(args.data).name.partition('.')[0]}"
        print(evaluate(trainer, args.rows, args.marker, save=args.out or out))
    except RagfitError as error:
        sys.exit(for_terminal(error))


if __name__ == "__main__":
    main()
