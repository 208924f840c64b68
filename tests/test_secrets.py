"""What is left of a configuration that leaves the process."""

import pytest
from omegaconf import OmegaConf

from ragfit.config import differences, load_config, save_config, to_yaml
from ragfit.secrets import MASK, is_secret_name, mask, masked, without_secrets
from ragfit.views import DifferencesView

SMALL = "model: {model_name_or_path: m}\ntrain: {output_dir: out}\n"
HF, GITHUB, AWS = "hf_" + "aB3" * 11 + "x", "ghp_" + "aB3" * 12, "AKIA" + "ABCD" * 4


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "c.yaml", overrides)

    return load


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "token", "use_auth_token", "api_key", "apikey", "OPENAI_API_KEY", "aws_secret_access_key",
     "password", "db-password", "client_secret", "credentials", "azure_account_key"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["eos_token", "pad_token", "stop_token", "max_new_tokens", "include_num_input_tokens_seen", "input_key", "output_key", "key", "experiment"]
)
def test_names_of_no_secrets(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"logged in with {HF}.", f"logged in with {MASK}."),
        (f"{GITHUB} {AWS}", f"{MASK} {MASK}"),
        ("s3://key:pass@host/x.jsonl", f"s3://{MASK}@host/x.jsonl"),
        ("https://host/a:b@c", "https://host/a:b@c"),
        ("./hf_checkpoints/risk-assessment-of-long-names", "./hf_checkpoints/risk-assessment-of-long-names"),
        ("the environment's plain-password-1", f"the environment's {MASK}"),
        ("and mine", f"and {MASK}"),
    ],
)
def test_masked_texts(text, shown, monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "plain-password-1")
    assert mask(text, ["mine"]) == shown


def test_keys_that_hold_a_secret_are_left_out_and_their_values_masked_elsewhere(load):
    cfg = load(SMALL, "train.hub_token=hf_mine", "train.run_name='run of hf_mine'", "+model.generation={api_key: k1234, x: [k1234]}",
               "train.eos_token=null", "experiment=hf_mine")  # fmt: skip
    shown = without_secrets(cfg)
    assert "hub_token" not in shown.train and shown.train.run_name == f"run of {MASK}" and shown.experiment == MASK
    assert OmegaConf.to_container(shown.model.generation) == {"x": [MASK]}
    assert cfg.train.hub_token == "hf_mine" and cfg.model.generation.api_key == "k1234"


def test_numbers_and_tokenizers_tokens_stay():
    assert masked({"eos_token": "</s>", "max_new_tokens": 8, "token": False, "id": ("a", 1)}) == {
        "eos_token": "</s>", "max_new_tokens": 8, "token": False, "id": ["a", 1],
    }  # fmt: skip


def test_a_token_under_its_earlier_name_is_not_told_in_the_notes(load):
    cfg = load(SMALL, "train.push_to_hub_token=hf_mine")
    assert cfg.train.hub_token == "hf_mine" and cfg.translated["train.push_to_hub_token"] == f"{MASK} -> train.hub_token"
    assert "hf_mine" not in to_yaml(without_secrets(cfg))


ENVIRONMENT = """
model: {model_name_or_path: "${oc.env:MODELS}/m", max_sequence_len: 100, generation: {a: "${data_file}", b: "${oc.decode:${oc.env:NUMBER}}", c: "${..max_sequence_len}"}}
train: {output_dir: out, run_name: "${experiment}", learning_rate: "${oc.env:RATE}", warmup_ratio: "${oc.env:RATE}", hub_token: "${oc.env:TOKEN}"}
data_file: ${oc.env:DATA,rows}.jsonl
experiment: mine
"""


@pytest.fixture
def environment(monkeypatch):
    for name, value in {"MODELS": "/models/planted", "NUMBER": "77771", "RATE": "0.0625", "DATA": "planted2", "TOKEN": "planted3"}.items():
        monkeypatch.setenv(name, value)


def test_what_the_environment_holds_is_used_but_does_not_leave(load, environment, tmp_path):
    cfg = load(ENVIRONMENT)
    assert (cfg.model.model_name_or_path, cfg.data_file, cfg.train.hub_token) == ("/models/planted/m", "planted2.jsonl", "planted3")
    assert (cfg.train.learning_rate, cfg.train.warmup_steps, cfg.model.generation.b) == (0.0625, 0.0625, 77771)
    shown = OmegaConf.to_container(without_secrets(cfg), resolve=True)
    assert not [text for text in ("planted", "77771", "0.0625") if text in str(shown)]
    assert shown["model"]["model_name_or_path"] == "${oc.env:MODELS}/m" and shown["data_file"] == "${oc.env:DATA,rows}.jsonl"
    assert shown["model"]["generation"]["a"] == "${data_file}" and "hub_token" not in shown["train"]
    assert shown["train"]["run_name"] == "mine"  # an interpolation that has nothing to do with the environment

    save_config(without_secrets(cfg), tmp_path / "saved.yaml")
    written = (tmp_path / "saved.yaml").read_text(encoding="utf-8")
    assert not [text for text in ("planted", "77771", "0.0625") if text in written]
    again = load_config(tmp_path / "saved.yaml")
    assert again.data_file == cfg.data_file and again.train.warmup_steps == 0.0625 and "hub_token" not in again.train
    other = load_config(tmp_path / "saved.yaml", ["data_file=other.jsonl"])
    assert without_secrets(other).data_file == "other.jsonl" and without_secrets(again).data_file == "${oc.env:DATA,rows}.jsonl"


def test_a_notebook_shows_the_interpolation(load, environment, tmp_path):
    cfg = load(ENVIRONMENT)
    assert "planted" not in to_yaml(cfg)
    assert "planted" not in str(differences(cfg, tmp_path / "c.yaml"))


def test_a_notebook_shows_no_token(load, tmp_path):
    cfg = load(SMALL, "train.hub_token=hf_mine", "train.run_name='run of hf_mine'", f"experiment={GITHUB}", "+model.generation.api_key=k1234")
    view = DifferencesView(cfg, differences(cfg, tmp_path / "c.yaml"), "c")
    for shown in (view.html(), view.text()):
        assert not [text for text in (GITHUB, "k1234") if text in shown]
        assert "train.hub_token" in shown and MASK in shown
    assert "hf_mine" not in view._yaml() and "run_name" in view._yaml()


def test_without_the_environment_nothing_changes(load):
    cfg = load(SMALL + "experiment: a\n", "+train.run_name='${experiment}'", "+model.generation.text='\\${oc.env:X}'")
    assert without_secrets(cfg) == cfg and cfg.train.run_name == "a"
