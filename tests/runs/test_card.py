"""The model card: what it says of a run, its example as it stands, and texts that would like to be something else."""

import html.parser
import json
import re

import pytest
import yaml
from markdown_it import MarkdownIt
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.config.overrides import override
from ragfit.runs import card
from ragfit.runs.save import save_checkpoint

FAST = ("train.max_steps=2", "train.save_strategy=no")
TAGS = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "ul", "li"}


render = MarkdownIt("commonmark", {"html": True}).enable("table").render  # as a reader that lets HTML through


@pytest.fixture
def build(tiny_phi3, write_rows, tmp_path):
    """A trainer that has not trained, which is enough for a card."""

    def build(*overrides, name="rows.jsonl"):
        instruction = tmp_path / "instruction.txt"
        if not instruction.exists():
            instruction.write_text("Be brief.", encoding="utf-8")
        rows = write_rows(question_rows(6), name)
        return tiny_trainer(
            tiny_config(tiny_phi3, rows, tmp_path / "out", *FAST, override("instruction", str(instruction)), *overrides)
        )

    return build


def parts(text):
    """(header, body) of a card."""
    _, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header), body


def tags(body):
    """The HTML tags of a rendered card, raw HTML in it included."""
    found = set()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.add(tag)
            names = [name for name, _ in attributes]
            assert not [name for name in names if name.startswith("on") or name in ("src", "href")], (tag, attributes)

    Reader().feed(render(body))
    return found


def test_a_run_s_card(build, tmp_path, tiny_phi3):
    """Figures are those of the weights that are saved: the highest loss is called the best here, which is the first."""
    keys = "dev_split=2 train.eval_strategy=steps train.eval_steps=1 train.save_strategy=steps train.save_steps=1"
    more = "train.load_best_model_at_end=true train.max_steps=4 train.metric_for_best_model=loss train.greater_is_better=true"
    trainer = build(*keys.split(), *more.split(), "model.load_in_8bit=true")
    folder = ragfit.train(trainer)
    header, body = parts((folder / "README.md").read_text(encoding="utf-8"))
    tags_told = ["ragfit", "trl", "sft", "rag", "lora"]
    assert header == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": tags_told}
    report, best, state = trainer.prepared.report, trainer.state.best_global_step, trainer.state
    assert best < state.global_step == 4
    logged = {
        (entry["step"], key): entry[key] for entry in state.log_history for key in ("loss", "eval_loss") if key in entry
    }
    share = f"{report.train.loss_tokens / report.train.tokens:.1%}"
    for line in (
        f"# LoRA adapter for `{tiny_phi3.name}`",
        "| file | `rows.jsonl` |",
        "| train: rows kept | `4 of 4` |",
        f"| train: tokens with loss | `{report.train.loss_tokens:,} of {report.train.tokens:,} ({share})` |",
        "| steps | `4 (2.00 epochs)` |",
        f"| saved weights | `those of step {best}, the best by loss` |",
        f"| training loss | `{logged[best, 'loss']:.4f} at step {best}` |",
        f"| dev loss | `{logged[best, 'eval_loss']:.4f} at step {best}` |",
        "| load_in_8bit | `True` |",
        "| learning_rate | `0.0001` |",
        "| r | `16` |",
        "No findings: every check on every row passed.",
    ):
        assert line in body.splitlines(), line
    assert "```text\nBe brief.\n```" in body
    assert str(tmp_path) not in body and str(tiny_phi3.parent) not in body
    assert tags(body) <= TAGS


def test_what_was_changed_on_the_way_and_keys_of_the_template(build):
    trainer = build()
    trainer.cfg.model.chat_template_kwargs = {"thinking": False}
    trainer.changed = {"train.learning_rate": [(0, 0.5), (2, 5.0)]}  # as of a run that went on with another
    body = card.model_card(trainer)
    assert "| learning_rate | `0.5 from step 0 on, 5.0 from step 2 on` |" in body
    assert "| chat_template_kwargs | `{'thinking': False}` |" in body
    assert "add_generation_prompt=True, **{'thinking': False})" in body


VARIANTS = {
    "system message": ([], None),
    "in the prompt": (["model.instruction_in_prompt=true"], None),
    "no instruction": (["instruction=null"], None),
    "template": (["model.completion_start=''"], "Answer {{briefly}}.\n{query}\n=>{output}"),
    "template with instruction": (["model.completion_start=''"], "{instruction}\n\n{query}\n=> {output} {{end}}"),
    "template, instruction in the prompt": (["model.completion_start=''", "model.instruction_in_prompt=true"], "{query} => {output}"),
}  # fmt: skip


@pytest.mark.parametrize(("variant", "lora"), [*((name, True) for name in VARIANTS), ("system message", False)])
def test_the_example_reads_what_was_trained_on(build, tmp_path, tiny_phi3, variant, lora, capsys):
    overrides, template = VARIANTS[variant]
    if template:
        (tmp_path / "template.txt").write_text(template, encoding="utf-8")
        overrides = [*overrides, override("template", str(tmp_path / "template.txt"))]
    trainer = build(*overrides, *([] if lora else ["model.lora=null"]))
    folder = save_checkpoint(trainer)
    header, body = parts((folder / "README.md").read_text(encoding="utf-8"))
    assert header["library_name"] == ("peft" if lora else "transformers")
    example = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    query = trainer.prepared.row(trainer.prepared.report.train.kept[1])[0]
    for written, here in (
        ('"path/to/checkpoint"', repr(str(folder))), (f'"path/to/{tiny_phi3.name}"', repr(str(tiny_phi3))), ('"..."', repr(query)),
    ):  # fmt: skip
        assert written in example or written.startswith('"path/to/tiny') and not lora
        example = example.replace(written, here)
    names = {}
    exec(example.replace("max_new_tokens=256", "max_new_tokens=4"), names)  # noqa: S102
    rendered = trainer.prepared.rendered(1)
    assert names["text"] == rendered.prompt
    ids = names["inputs"]["input_ids"][0].tolist()
    encoder = trainer.prepared.encoder
    assert ids == list(encoder.bos) + list(encoder.spans(rendered.prompt)[0])
    assert capsys.readouterr().out
    assert type(names["model"]).__name__ == ("PeftModelForCausalLM" if lora else "Phi3ForCausalLM")


HOSTILE = "```\n</code><script>alert(1)</script>\n~~~~\n````` <img src=x onerror=alert(1)>\n---\nbase_model: evil\n---\n[x](javascript:alert(1))"


def test_hostile_texts_stay_texts(build, tmp_path):
    (tmp_path / "instruction.txt").write_text(HOSTILE, encoding="utf-8")
    trainer = build(name="`a` | <img src=x onerror=alert(1)> ``\n---\nlicense: evil\n.jsonl")
    trainer.cfg.hfhub_tag = '"); import os; #`<script>'
    trainer.cfg.model.trained_adapter = "`|<script>alert(1)</script>"
    trainer.prepared.renderer.marker = "`|</td><script>"
    header, body = parts(card.model_card(trainer))
    assert set(header) == {"library_name", "pipeline_tag", "tags"}
    assert tags(body) <= TAGS
    rendered = render(body)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered and "&lt;img src=x onerror=alert(1)&gt;" in rendered
    compile(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1], "example", "exec")


@pytest.mark.parametrize("text", ["", "``a`", "a`|`b", "<b>", "a\nb", "\u202eevil", "\\`|", "*a* _b_ [c](d)"])
def test_code_in_a_table_is_read_back(text):
    rendered = render(card.table([("name", text), ("next", "x")]))
    cells = [html.unescape(cell) for cell in re.findall(r"<code>(.*?)</code>", rendered, re.DOTALL)]
    assert len(cells) == 2 and cells[1] == "x" and rendered.count("<tr>") == 3
    wanted = " ".join(text.split()).replace("\u202e", "⟨RLO⟩")
    assert cells[0].strip() == wanted or "\\" in text


def test_the_base_model_is_named_as_it_was_configured(build, tmp_path):
    trainer = build()
    for name, base in (
        ("org/model-1.5B", "org/model-1.5B"), ("gpt2", "gpt2"), ("demo:smollm2-135m-instruct", None),
        ("/home/me/llama", None), ("./llama", None), ("a/b/c", None),
    ):  # fmt: skip
        trainer.cfg.model.model_name_or_path = name
        header, body = parts(card.model_card(trainer))
        assert header.get("base_model") == base and header.get("base_model_relation") == ("adapter" if base else None)
        assert "/home/me" not in body and (f'base = "{base}"' in body) == bool(base)
    for name in ("demo:smollm2-135m-instruct", "org/name"):
        trainer.cfg.model.model_name_or_path = name
        settings = json.loads((save_checkpoint(trainer) / "adapter_config.json").read_text(encoding="utf-8"))
        assert settings["base_model_name_or_path"] == name and settings["r"] == 16


def test_nothing_of_the_environment_is_in_a_card(build, tmp_path, tiny_phi3, monkeypatch):
    monkeypatch.setenv("MODELS", str(tiny_phi3))
    (tmp_path / "instruction.txt").write_text(f"Never say hf_{'a' * 34}.", encoding="utf-8")
    trainer = build("model.model_name_or_path='${oc.env:MODELS}'")
    folder = save_checkpoint(trainer)
    names = ("README.md", "ragfit.yaml", "adapter_config.json")
    written = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    assert str(tiny_phi3) not in written and tiny_phi3.name not in written and "hf_aaa" not in written
    assert "Never say •••." in written


def test_findings_are_told_without_what_was_seen(build, write_rows, tmp_path):
    trainer = build()
    rows = [*question_rows(3), question_rows(1)[0], {"prompt": "private <|im_end|> text", "answers": ["x"]}]
    cfg = tiny_config(trainer.cfg.model.model_name_or_path, write_rows(rows, "other.jsonl"), tmp_path)
    trainer.prepared = ragfit.prepare(cfg)
    body = parts(card.model_card(trainer))[1]
    assert "- note: **duplicate rows**" in body and "- warning: **special tokens in data**, 1 rows" in body
    assert "private" not in body


def test_an_adapter_is_not_lost_for_want_of_a_card(build, monkeypatch, caplog):
    trainer = build()
    monkeypatch.setattr(trainer.prepared.report, "findings", 5)  # not a list: the card cannot be written
    folder = save_checkpoint(trainer)
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "README.md").exists()
    assert "README.md could not be written (TypeError: " in caplog.text
