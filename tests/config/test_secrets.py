"""What is left of a configuration that leaves the process."""

import pytest
from omegaconf import OmegaConf

from ragfit.config.load import differences, load_config
from ragfit.config.overrides import refuse_secrets
from ragfit.config.save import save_config, to_yaml, without_secrets
from ragfit.errors import ConfigError
from ragfit.secrets import MASK, holds_secret, mask, masked
from ragfit.views import DifferencesView

SMALL = "model: {model_name_or_path: m}\ntrain: {output_dir: out}\n"
HF, GITHUB, AWS = "hf_" + "aB3" * 11 + "x", "ghp_" + "aB3" * 12, "AKIA" + "ABCD" * 4


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "c.yaml", overrides)

    return load


def test_names_of_secrets():
    names = "hub_token token use_auth_token api_key OPENAI_API_KEY aws_secret_access_key db-password credentials"
    assert all(holds_secret(name, "x") for name in names.split())
    others = "eos_token pad_token max_new_tokens include_num_input_tokens_seen input_key key experiment"
    assert not any(holds_secret(name, "x") for name in others.split())


MASKED = {f"logged in with {HF}.": f"logged in with {MASK}.", "and mine": f"and {MASK}", "s3://key:pass@host/x": f"s3://{MASK}@host/x",
          "postgres://me:p@ss@db/x": f"postgres://{MASK}@db/x"}  # fmt: skip
PLAIN = """/data/sk-learn-models-and-many-more-things-v2 org/sk-proj-llama-3.1-8b-instruct-for-asqa s3://bucket/rows@v2.jsonl
./hf_trained_models/qwen3-8b-instruct-2507 0123456789abcdef0123456789abcdef01234567 meta-llama/Llama-3.1-8B-Instruct
http://host:8080/a@b https://host/a:b@c eyJ/models.of.ours xoxb-and-others AKIA/models org/name:train"""


@pytest.mark.parametrize(("text", "shown"), [*MASKED.items(), *zip(PLAIN.split(), PLAIN.split(), strict=True)])
def test_masked_texts(text, shown):
    assert mask(text, ["mine"]) == shown


JWT = ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxIn0x", "aB3_-" * 6])
TOKENS = [HF, GITHUB, AWS, JWT, "sk-proj-" + "aB3" * 16, "wandb_v1_" + "aB3" * 12, "sk-" + "aB3" * 16, "github_pat_" + "aB3_" * 10,
          "sk-ant-api03-" + "aB3-" * 2 + "aB3" * 8, "glpat-" + "aB3-" * 6, "xoxb-12345678901-aBcDeFgHiJkL", "AIza" + "aB3_-" * 7]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_forms_of_tokens(token):
    for text, shown in (("{}", MASK), ("run_{}.jsonl", f"run_{MASK}.jsonl"), ("hub?token={}&x", f"hub?token={MASK}&x")):
        assert mask(text.format(token)) == shown


def test_keys_that_hold_a_secret_are_left_out(load, tmp_path):
    cfg = load(SMALL, "train.hub_token=hf_mine", f"train.run_name='run of {HF}'", "+model.generation={api_key: k1234, x: [k1234]}",
               "train.eos_token=null", f"experiment={GITHUB}")  # fmt: skip
    assert cfg.train.hub_token == "hf_mine" and cfg.model.generation.api_key == "k1234"
    shown = without_secrets(cfg)
    assert "hub_token" not in shown["train"] and shown["train"]["run_name"] == f"run of {MASK}"
    assert shown["experiment"] == MASK and shown["model"]["generation"] == {"x": ["k1234"]}
    view = DifferencesView(cfg, differences(cfg, tmp_path / "c.yaml"), "c")
    for text in (view.html(), view.text()):
        assert "train.hub_token" in text and MASK in text
        assert not [token for token in (GITHUB, HF, "hf_mine") if token in text]


def test_numbers_and_tokenizers_tokens_stay():
    tree = {"eos_token": "</s>", "max_new_tokens": 8, "token": False, "id": ["a", 1], "tokens": ["<a>"]}
    assert masked(tree | {"pass": 1, "password": 12345678}) == tree | {"pass": 1}


ENVIRONMENT = """
model: {model_name_or_path: "${oc.env:MODELS}/m", generation: {a: "${data_file}", b: "${oc.decode:${oc.env:NUMBER}}", 'c[0].d': "${oc.env:DATA}"},
        lora: {rank_pattern: {layers.0.q_proj: "${oc.env:NUMBER}"}, target_modules: ["${oc.env:DATA}", b]}}
train: {output_dir: out, run_name: "${experiment}", learning_rate: "${oc.env:RATE}", warmup_ratio: "${oc.env:RATE}", hub_token: "${oc.env:TOKEN}"}
data_file: ${oc.env:DATA,rows}.jsonl
experiment: mine
limit: ${oc.env:NUMBER}
"""


def test_what_the_environment_holds_is_used_but_does_not_leave(load, monkeypatch, tmp_path):
    given = {"MODELS": "/planted", "NUMBER": "77771", "RATE": "0.0625", "DATA": "planted2", "TOKEN": "planted3"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for overrides in ([], ["limit=3"]):
        cfg = load(ENVIRONMENT, *overrides)
        found = (cfg.model.model_name_or_path, cfg.data_file, cfg.train.hub_token)
        assert found == ("/planted/m", "planted2.jsonl", "planted3")
        assert (cfg.train.learning_rate, cfg.train.warmup_steps, cfg.model.generation.b) == (0.0625, 0.0625, 77771)
        assert cfg.model.lora.target_modules == ["planted2", "b"] and (cfg.limit == 77771 or overrides)
        save_config(cfg, tmp_path / "saved.yaml")
        shown = (tmp_path / "saved.yaml").read_text()
        shown += f"{without_secrets(cfg)} {differences(cfg, tmp_path / 'c.yaml')}"
        assert not [text for text in ("planted", "77771", "0.0625") if text in shown]
        again = load_config(tmp_path / "saved.yaml")
        assert (again.model, again.data_file, again.train.warmup_steps) == (cfg.model, cfg.data_file, 0.0625)
        assert "hub_token" not in again.train
    cfg.data_file = "mine.jsonl"
    assert without_secrets(cfg)["data_file"] == "mine.jsonl" and "generation:\n    a: ${data_file}" in to_yaml(cfg)


REFUSED = [  # with --multirun, for Hydra writes the configuration; and the key that is named
    ("train.hub_token=mine", "train.hub_token"),
    ("+train.hub_token=mine,other", "train.hub_token"),
    ("+model.generation={a: [1, {b: {password: mine}}]}", "model.generation.a"),
    (f"train.run_name='run of {HF}'", "train.run_name"),
    ("data_file=https://me:mine@example.org/x.jsonl", "data_file"),
    ("hydra.job.env_set.HF_TOKEN=mine", "hydra.job.env_set.HF_TOKEN"),
]


@pytest.mark.parametrize(("word", "key"), REFUSED)
def test_secrets_in_overrides(word, key):
    cfg = OmegaConf.create({})
    refuse_secrets(cfg, ["train.hub_token=${oc.env:TOKEN}", "train.hub_token=null", "limit=3"], "kept")
    with pytest.raises(ConfigError, match=f"^{key}: kept, and this is a secret. Remove it; log in with") as caught:
        refuse_secrets(cfg, [word], "kept")
    assert "mine" not in str(caught.value) and HF not in str(caught.value)
