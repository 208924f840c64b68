"""The model card: what it says of a run, its example as it stands, and texts that would like to be something else."""

import html
import json
import re

import pytest
import yaml
from harmless import assert_harmless
from markdown_it import MarkdownIt
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config.overrides import override
from ragfit.runs import card
from ragfit.runs.save import save_checkpoint

render = MarkdownIt("commonmark", {"html": True}).render  # as a reader that lets HTML through


@pytest.fixture
def build(tiny_phi3, write_rows, tmp_path):
    """A trainer that has not trained, which is enough for a card."""

    def build(*overrides, name="rows.jsonl", instruction="Be brief.", rows=None):
        (tmp_path / "instruction.txt").write_text(instruction, encoding="utf-8")
        rows = write_rows(rows or question_rows(6), name)
        keys = ["train.max_steps=2", "train.save_strategy=no"]
        keys.append(override("instruction", str(tmp_path / "instruction.txt")))
        return tiny_trainer(tiny_config(tiny_phi3, rows, tmp_path / "out", *keys, *overrides))

    return build


def parts(folder):
    """(header, body) of a saved card."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header), body


def test_a_run_s_card(build, tmp_path, tiny_phi3):
    """Figures are those of the weights that are saved: the highest loss is called the best here, which is the first."""
    keys = "dev_split=2 train.eval_strategy=steps train.eval_steps=1 train.save_strategy=steps train.save_steps=1"
    more = "train.load_best_model_at_end=true train.max_steps=4 train.metric_for_best_model=loss train.greater_is_better=true"
    trainer = build(*keys.split(), *more.split(), "model.load_in_8bit=true")
    folder = ragfit.train(trainer)
    header, body = parts(folder)
    assert header["library_name"] == "peft" and header["tags"] == ["ragfit", "trl", "sft", "rag", "lora"]
    report, best, logged = trainer.prepared.report.train, trainer.state.best_global_step, {}
    for entry in trainer.state.log_history:
        logged |= entry if entry["step"] == best else {}
    assert best < trainer.state.global_step == 4
    for line in (
        f"# LoRA adapter for ` {tiny_phi3.name} `", f"- steps: 4, and the saved weights are those of step {best}",
        f"- training loss: {logged['loss']:.4f} at step {best}", f"- dev loss: {logged['eval_loss']:.4f} at step {best}",
        f"- train: 4 of 4 rows kept, 0 cut; loss on {report.loss_tokens} of {report.tokens} tokens",
        "data_file: rows.jsonl", "  learning_rate: 0.0001",
    ):  # fmt: skip
        assert line in body.splitlines(), line
    digest = re.search(r"^# data_file sha256 \w{64}$", body, re.MULTILINE)[0]
    assert digest in (folder / "ragfit.yaml").read_text()
    assert str(tmp_path) not in body and str(tiny_phi3.parent) not in body
    assert_harmless(f"<div>{render(body)}</div>")


VARIANTS = {
    "system message": ([], None),
    "in the prompt": (["model.instruction_in_prompt=true"], None),
    "no instruction": (["instruction=null"], None),
    "template": (["model.completion_start=''"], "Answer {{briefly}}.\n{query}\n=>{output}"),
    "template with instruction": (["model.completion_start=''"], "{instruction}\n\n{query}\n=> {output} {{end}}"),
    "template, instruction in the prompt": (["model.completion_start=''", "model.instruction_in_prompt=true"], "{query} => {output}"),
}  # fmt: skip


@pytest.mark.parametrize(("variant", "lora"), [*((name, True) for name in VARIANTS), ("system message", False)])
def test_the_example_reads_what_was_trained_on(build, tmp_path, tiny_phi3, variant, lora):
    overrides, template = VARIANTS[variant]
    if template:
        (tmp_path / "template.txt").write_text(template, encoding="utf-8")
        overrides = [*overrides, override("template", str(tmp_path / "template.txt"))]
    trainer = build(*overrides, *([] if lora else ["model.lora=null"]))
    folder = save_checkpoint(trainer)
    header, body = parts(folder)
    assert header["library_name"] == ("peft" if lora else "transformers")
    example = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    query = trainer.prepared.row(trainer.prepared.report.train.kept[1])[0]
    here = {'"path/to/checkpoint"': str(folder), '"..."': query}
    for written, text in (here | ({f'"path/to/{tiny_phi3.name}"': str(tiny_phi3)} if lora else {})).items():
        assert written in example
        example = example.replace(written, repr(text))
    names = {}
    exec(example.replace("max_new_tokens=256", "max_new_tokens=4"), names)  # noqa: S102
    rendered, encoder = trainer.prepared.rendered(1), trainer.prepared.encoder
    assert names["text"] == rendered.prompt
    ids = names["inputs"]["input_ids"][0].tolist()
    assert ids == list(encoder.bos) + list(encoder.spans(rendered.prompt)[0])
    assert type(names["model"]).__name__ == ("PeftModelForCausalLM" if lora else "Phi3ForCausalLM")


HOSTILE = "```\n</code><script>alert(1)</script>\n~~~~\n````` <img src=x onerror=alert(1)>\n---\nbase_model: evil\n---\n[x](javascript:alert(1))"


def test_hostile_texts_stay_texts_and_changes_are_told(build, tmp_path):
    trainer = build(name="`a` | <img src=x onerror=alert(1)> ``\n---\nlicense: evil\n.jsonl")
    trainer.cfg.hfhub_tag = HOSTILE
    trainer.cfg.model.trained_adapter = "`|<script>alert(1)</script>"
    trainer.cfg.model.chat_template_kwargs = {"thinking": False}
    trainer.changed = {"train.learning_rate": [(0, 0.5), (2, HOSTILE)]}  # as of a run that went on with another
    header, body = parts(save_checkpoint(trainer))
    assert set(header) == {"library_name", "pipeline_tag", "tags"}
    assert_harmless(f"<div>{render(body)}</div>")
    rendered = render(body)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered and "&lt;img src=x onerror=alert(1)&gt;" in rendered
    example = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    compile(example, "example", "exec")
    assert "add_generation_prompt=True, **{'thinking': False})" in example and "on top of the adapter" in body
    assert "- train.learning_rate: ` 0.5 ` from step 0 on, `````` ``` <" in body


@pytest.mark.parametrize("text", ["", "``a`", "a`|`b", "<b>", "a\nb", "\u202eevil", "\\`|", "*a* _b_ [c](d)", "` `"])
def test_code_is_read_back(text):
    [cell] = re.findall(r"<code>(.*?)</code>", render(f"x {card.code(text)} y"), re.DOTALL)
    assert html.unescape(cell).strip() == " ".join(text.split()).replace("\u202e", "⟨RLO⟩")


def test_what_a_card_tells_of_base_and_rows(build, tmp_path, tiny_phi3, monkeypatch):
    """The base as it was configured, nothing of the environment, and no text of the rows."""
    monkeypatch.setenv("MODELS", str(tiny_phi3))
    rows = [*question_rows(3), question_rows(1)[0], {"prompt": "private <|im_end|> text", "answers": ["x"]}]
    trainer = build("model.model_name_or_path='${oc.env:MODELS}'", rows=rows)
    for name, base in {"org/model-1.5B": "org/model-1.5B", "gpt2": "gpt2"}.items() | {
        (name, None) for name in ("${oc.env:MODELS}", "demo:smollm2-135m-instruct", "a/b/c", "./llama")
    }:
        trainer.cfg.model.model_name_or_path = name
        folder = save_checkpoint(trainer)
        header, body = parts(folder)
        assert header.get("base_model") == base and (f'base = "{base}"' in body) == bool(base)
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert settings["base_model_name_or_path"] == name and settings["r"] == 16
        files = (folder / name for name in ("README.md", "ragfit.yaml", "adapter_config.json"))
        written = "".join(file.read_text("utf-8") for file in files)
        assert tiny_phi3.name not in written and "private" not in body
        assert "- note: **duplicate rows**" in body and "- warning: **special tokens in data**, 1 rows" in body


def test_an_adapter_is_not_lost_for_want_of_a_card(build, monkeypatch, caplog):
    trainer = build()
    monkeypatch.setattr(trainer.prepared.report, "findings", 5)  # not a list: the card cannot be written
    folder = save_checkpoint(trainer)
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "README.md").exists()
    assert "The card could not be written (TypeError: " in caplog.text
