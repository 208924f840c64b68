"""The loss of each token, under the base model and the tuned one."""

import pytest
import torch
from tiny_runs import tiny_config, tiny_trainer

from ragfit.errors import ConfigError
from ragfit.views import TokenView, load_tuned, token_losses

ROWS = [
    {"prompt": "Question: which?\n\nDocuments:\n[1] Paris is the capital.", "answers": ["Paris [1]"]},
    {"prompt": "Question: who?\n\nDocuments:\n[1] Ada.\n[2] no idea.", "answers": ["no   idea"]},
]


@pytest.fixture
def trainer(request, write_rows, tmp_path):
    model, *keys = request.param
    return tiny_trainer(tiny_config(request.getfixturevalue(model), write_rows(ROWS), tmp_path / "out", *keys))


def known(losses):
    return [loss for loss in losses if loss is not None]


@pytest.mark.parametrize("trainer", [("tiny_llama",), ("tiny_phi3",)], indirect=True, ids=["llama", "phi3"])
def test_token_losses_are_the_cross_entropy(trainer, tmp_path):
    assert set(token_losses(trainer)) == {"base"}  # an adapter that has learned nothing changes nothing
    assert "no trained adapter" in load_tuned(trainer)
    torch.manual_seed(1)
    learned = [weight for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    for weight in learned:
        torch.nn.init.normal_(weight)
    for index in range(2):
        row, losses = trainer.prepared.train[index], token_losses(trainer, index)
        assert list(losses) == ["base", "tuned"] and losses["base"] != losses["tuned"]
        ids, logs = torch.tensor([row["input_ids"]]), {}
        with torch.no_grad():
            logs["tuned"] = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
            with trainer.model.disable_adapter():
                logs["base"] = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
        for name, values in losses.items():
            for position, (label, value) in enumerate(zip(row["labels"], values, strict=True)):
                expected = None if label == -100 else pytest.approx(-logs[name][position - 1, label].item(), abs=1e-4)
                assert value == expected
        assert f"{known(losses['tuned'])[0]:.2f}" in TokenView(trainer.prepared, index, losses=losses).html()
    # A finished run's adapter gives the same losses in a fresh model.
    trainer.model.save_pretrained(tmp_path / "out" / "checkpoint")
    for weight in learned:
        torch.nn.init.zeros_(weight)
    for _ in range(2):  # a second time in the same kernel
        assert "checkpoint" in load_tuned(trainer, tmp_path / "out" / "checkpoint")
    assert known(token_losses(trainer, 1)["tuned"]) == pytest.approx(known(losses["tuned"]), abs=1e-4)


@pytest.mark.parametrize("trainer", [("tiny_llama", "model.lora=null")], indirect=True, ids=["full"])
def test_losses_without_an_adapter(trainer, tmp_path):
    assert set(token_losses(trainer)) == {"model"}
    for folder, message in (("nowhere", "checkpoint"), (str(tmp_path), "model.lora is empty")):
        with pytest.raises(ConfigError, match=message):
            load_tuned(trainer, folder)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model.lora is empty"):
        load_tuned(trainer, str(tmp_path))
