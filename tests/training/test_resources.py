"""The preflight against the run that follows it: padding, precision. Real TRL over tiny real models."""

from pathlib import Path

import pytest
import torch
from tiny_runs import one_thread, question_rows, tiny_config, tiny_trainer  # noqa: F401

import ragfit
from ragfit.models.hf import bf16_is_fast
from ragfit.training.preflight import padded_share


@pytest.fixture
def config(tiny_phi3, write_rows, tmp_path):
    """`config(*overrides)`: the tiny Phi-3 over 60 of 320 rows of very different lengths."""
    rows = write_rows(question_rows(320, words=30))
    return lambda *overrides: tiny_config(
        tiny_phi3, rows, tmp_path / "out", "train.save_strategy=no", "limit=60", *overrides
    )


def facts(trainer):
    return {label: (value, note) for label, value, note in ragfit.preflight(trainer).items}


# --- Padding --------------------------------------------------------------------------------------------------------

FOUR = "train.per_device_train_batch_size=4"
GROUPED = "train.group_by_length=true"
BATCHES = [
    [],
    [FOUR],
    [FOUR, GROUPED],
    [FOUR, "train.train_sampling_strategy=sequential"],
    [FOUR, GROUPED, "+train.pad_to_multiple_of=64"],
    [FOUR, "train.seed=7", "+train.data_seed=8", "train.dataloader_drop_last=true", "limit=43"],
]


@pytest.mark.slow
@pytest.mark.parametrize("keys", BATCHES, ids=[" ".join(keys) or "one row" for keys in BATCHES])
def test_padding_is_that_of_the_batches_that_are_trained(config, keys):
    trainer = tiny_trainer(config(*keys))
    said = facts(trainer)["padding"]
    masks, collator = [], trainer.data_collator

    def recorded(rows):
        masks.append(collator(rows)["attention_mask"])
        return collator(rows)

    trainer.data_collator = recorded
    trainer.train()
    real, positions = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert said[0] == f"{1 - real / positions:.1%}"
    assert said[1].startswith(f"of the positions in batches of {len(masks[0])} row")
    assert ("similar length" in said[1]) == (GROUPED in keys)


@pytest.mark.slow
def test_the_hint_keeps_its_word(config):
    loose = tiny_trainer(config(FOUR, "limit=320"))
    view, share = ragfit.preflight(loose), float(facts(loose)["padding"][0].rstrip("%"))
    hint = next(warning for warning in view.warnings if "train.group_by_length=true" in warning)
    assert share > 20 and hint.startswith(f"{share:.0f}% of what is computed is padding")
    grouped = tiny_trainer(config(FOUR, GROUPED, "limit=320"))
    less = float(facts(grouped)["padding"][0].rstrip("%"))
    promised = float(hint.partition("about ")[2].partition("%")[0])
    assert less < share / 2 and abs(less - promised) < 5
    for trainer in (
        grouped,
        tiny_trainer(config("limit=320")),
        tiny_trainer(config(FOUR, "limit=4")),
    ):  # where it would not help
        assert not [warning for warning in ragfit.preflight(trainer).warnings if "group_by_length" in warning]


@pytest.mark.parametrize("key", [GROUPED, "+train.accelerator_config={use_seedable_sampler: false}"])
def test_a_look_changes_nothing(config, key):
    trainer = tiny_trainer(config(FOUR, key, "limit=320"))
    before = torch.random.get_rng_state()
    assert facts(trainer)["padding"] == facts(trainer)["padding"]
    assert torch.equal(before, torch.random.get_rng_state())


def test_lengths_of_groups_are_those_of_the_rows_and_are_not_read_from_them(config):
    trainer = tiny_trainer(config(FOUR, GROUPED))
    expected = [len(ids) for ids in trainer.train_dataset["input_ids"]]

    class Unread:
        """A data set whose rows nobody may read."""

        def __len__(self):
            return len(expected)

    assert trainer._get_train_sampler(Unread()).lengths == expected


def test_padded_share():
    assert padded_share([[0, 1], [2]], [10, 5, 7]) == 1 - 22 / 27
    assert padded_share([[0, 1], [2]], [10, 5, 7], multiple=8) == 1 - 22 / 40
    assert padded_share([[0], [1]], [10, 5]) == 0 and padded_share([], []) == 0


# --- Precision ------------------------------------------------------------------------------------------------------

PRECISIONS = [
    (["~train.bf16"], None),
    (["train.bf16=null"], None),
    (["train.bf16=true"], True),
    (["train.bf16=false"], False),
]


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("keys", "asked"), PRECISIONS, ids=[keys[0] for keys, _ in PRECISIONS])
def test_precision_is_said_and_done(config, monkeypatch, keys, asked, fast):
    for module in ("ragfit.training.memory", "ragfit.training.arguments"):
        monkeypatch.setattr(f"{module}.bf16_is_fast", lambda: fast)
    trainer = tiny_trainer(config(*keys, "train.max_steps=1"))
    compute, note = facts(trainer)["precision"]
    seen = set()
    projection = next(module for name, module in trainer.model.named_modules() if name.endswith("down_proj"))
    projection.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer.train()
    expected = fast if asked is None else asked
    assert seen == {torch.bfloat16 if expected else torch.float32}
    assert compute == ("bfloat16 autocast" if expected else "no autocast")
    assert note.endswith("; float32 weights, float32 adapter")
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    if asked is None:
        does = "multiplies" if fast else "does not multiply"
        assert f"chosen because this processor {does} bfloat16 in hardware and train.bf16 is empty" in note
    else:
        assert note.startswith(f"train.bf16 is {str(asked).lower()}")
        assert ("though this processor multiplies" in note) == (fast and not asked)


def test_what_this_processor_is_asked_for():
    """Where the flags of a Linux machine are known, they say the same."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    if torch.cuda.is_available():
        pytest.skip("a GPU decides")
    assert bf16_is_fast() == ("avx512_bf16" in flags)


@pytest.mark.parametrize("keys", [["model.dtype=bfloat16"], ["model.dtype=float32"], []])
@pytest.mark.parametrize("lora", [True, False])
def test_full_fine_tuning_in_bfloat16_is_warned_of(config, keys, lora):
    trainer = tiny_trainer(config(*keys, *([] if lora else ["model.lora=null"])))
    warned = [warning for warning in ragfit.preflight(trainer).warnings if "Set model.dtype=float32" in warning]
    assert bool(warned) == (keys == ["model.dtype=bfloat16"] and not lora)
    note = facts(trainer)["precision"][1]
    loaded = "bfloat16" if keys == ["model.dtype=bfloat16"] else "float32"
    assert note.endswith(f"; {loaded} weights" + (", float32 adapter" if lora else ""))
