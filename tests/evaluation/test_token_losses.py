"""The loss of each token, under the base model and the tuned one."""

import pytest
from tiny_runs import MARKER

from ragfit.config.load import load_config
from ragfit.config.overrides import override
from ragfit.data.prepare import prepare

ROWS = [
    {"prompt": "Question: which?\n\nDocuments:\n[1] Paris is the capital.", "answers": ["Paris [1]"]},
    {"prompt": "Question: who?\n\nDocuments:\n[1] Ada.\n[2] no idea.", "answers": ["no   idea"]},
]


@pytest.fixture
def trainer(tiny_model, write_rows, tmp_path, request):
    import ragfit

    arch, lora = request.param
    keys = {"data_file": str(write_rows(ROWS)), "output_key": "answers", "model.model_name_or_path": str(tiny_model(arch)),
            "model.load_in_8bit": False, "model.completion_start": MARKER, "train.optim": "adamw_torch", "train.bf16": False,
            "train.output_dir": str(tmp_path / "out"), "model.lora": lora}  # fmt: skip
    cfg = load_config("training", [override(key, value) for key, value in keys.items()])
    return ragfit.build_trainer(cfg, prepare(cfg))


LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("trainer", [("llama", LORA), ("phi3", LORA)], indirect=True, ids=lambda value: value[0])
def test_token_losses_are_the_cross_entropy(trainer, tmp_path):
    import torch

    from ragfit.views import TokenView, load_tuned, token_losses

    assert set(token_losses(trainer)) == {"base"}  # an adapter that has learned nothing changes nothing
    assert "no trained adapter" in load_tuned(trainer)
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    for index in range(2):
        row = trainer.prepared.train[index]
        losses = token_losses(trainer, index)
        assert list(losses) == ["base", "tuned"] and losses["base"] != losses["tuned"]
        trainer.model.eval()
        with torch.no_grad():
            tuned = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            with trainer.model.disable_adapter():
                base = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for values, logs in ((losses["tuned"], tuned), (losses["base"], base)):
            for position, (label, value) in enumerate(zip(row["labels"], values, strict=True)):
                expected = None if label == -100 else pytest.approx(-logs[position - 1, label].item(), abs=1e-4)
                assert value == expected
        first = next(value for value in losses["tuned"] if value is not None)
        assert f"{first:.2f}" in TokenView(trainer.prepared, index, losses=losses).html()
    # A finished run's adapter gives the same losses in a fresh model.
    trainer.model.save_pretrained(tmp_path / "out" / "checkpoint")
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    assert "checkpoint" in load_tuned(trainer, tmp_path / "out" / "checkpoint")
    again = token_losses(trainer, 1)
    assert [v for v in again["tuned"] if v is not None] == pytest.approx(
        [v for v in losses["tuned"] if v is not None], abs=1e-4
    )
    load_tuned(trainer, str(tmp_path / "out" / "checkpoint"))  # a second time in the same kernel


@pytest.mark.parametrize("trainer", [("llama", None)], indirect=True, ids=["full"])
def test_losses_without_an_adapter(trainer, tmp_path):
    from ragfit.errors import ConfigError
    from ragfit.views import load_tuned, token_losses

    assert set(token_losses(trainer)) == {"model"}
    for folder, message in (("nowhere", "checkpoint"), (str(tmp_path), "model.lora is empty")):
        with pytest.raises(ConfigError, match=message):
            load_tuned(trainer, folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model.lora is empty"):
        load_tuned(trainer, str(tmp_path))
