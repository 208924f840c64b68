"""What is left of a configuration that leaves the process."""

import pytest
from omegaconf import OmegaConf

from ragfit.__main__ import main
from ragfit.config.load import differences, load_config
from ragfit.config.save import save_config, to_yaml, without_secrets
from ragfit.config.trust import believed
from ragfit.errors import ConfigError
from ragfit.secrets import MASK, is_secret_name, mask, masked
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
    "name",
    [
        "eos_token",
        "pad_token",
        "stop_token",
        "max_new_tokens",
        "include_num_input_tokens_seen",
        "input_key",
        "output_key",
        "key",
        "experiment",
    ],
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
        ("postgres://me:p@ss@db/x", f"postgres://{MASK}@db/x"),
        ("and mine", f"and {MASK}"),
    ],
)
def test_masked_texts(text, shown):
    assert mask(text, ["mine"]) == shown


OPENAI, WANDB, JWT = (
    "sk-proj-" + "aB3" * 16,
    "wandb_v1_" + "aB3" * 12,
    ".".join(["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxIn0x", "aB3_-" * 6]),
)


@pytest.mark.parametrize(
    "token",
    [HF, GITHUB, AWS, OPENAI, WANDB, JWT, "sk-" + "aB3" * 16, "sk-ant-api03-" + "aB3-" * 2 + "aB3" * 8, "github_pat_" + "aB3_" * 10,
     "glpat-" + "aB3-" * 6, "xoxb-12345678901-aBcDeFgHiJkL", "AIza" + "aB3_-" * 7],
)  # fmt: skip
def test_forms_of_tokens(token):
    for text, shown in (("{}", MASK), ("run_{}.jsonl", f"run_{MASK}.jsonl"), ("hub?token={}&x", f"hub?token={MASK}&x")):
        assert mask(text.format(token)) == shown


@pytest.mark.parametrize(
    "text",
    ["/data/sk-learn-models-and-many-more-things-v2", "org/sk-proj-llama-3.1-8b-instruct-for-asqa", "./hf_trained_models/qwen3-8b-instruct-2507",
     "0123456789abcdef0123456789abcdef01234567", "meta-llama/Llama-3.1-8B-Instruct", "http://host:8080/a@b", "eyJ/models.of.mine", "xoxb-and-others",
     "AKIA/models", "org/name:train", "s3://bucket/rows@v2.jsonl"],
)  # fmt: skip
def test_paths_and_names_are_no_tokens(text):
    assert mask(text) == text


def test_keys_that_hold_a_secret_are_left_out(load):
    cfg = load(SMALL, "train.hub_token=hf_mine", f"train.run_name='run of {HF}'", "+model.generation={api_key: k1234, x: [k1234]}",
               "train.eos_token=null", f"experiment={GITHUB}")  # fmt: skip
    shown = without_secrets(cfg)
    assert (
        "hub_token" not in shown["train"]
        and shown["train"]["run_name"] == f"run of {MASK}"
        and shown["experiment"] == MASK
    )
    assert shown["model"]["generation"] == {"x": ["k1234"]}
    assert cfg.train.hub_token == "hf_mine" and cfg.model.generation.api_key == "k1234"


def test_numbers_and_tokenizers_tokens_stay():
    tree = {
        "eos_token": "</s>",
        "max_new_tokens": 8,
        "token": False,
        "id": ["a", 1],
        "tokens": ["<a>"],
        "hub_tokens": 3,
    }
    assert masked(tree | {"pass": 1, "password": 12345678}) == tree | {"pass": 1}


def test_what_the_environment_holds_is_looked_for_in_no_other_text(load, monkeypatch, tmp_path):
    monkeypatch.setenv("RAGFIT_TOKENIZERS", "/data/models")
    monkeypatch.setenv("DB_PASSWORD", "training")
    cfg = load(
        "model: {model_name_or_path: /data/models/qwen3}\ntrain: {output_dir: training}\ndata_file: training-rows.jsonl\n"
    )
    save_config(cfg, tmp_path / "ragfit.yaml")
    saved = load_config(tmp_path / "ragfit.yaml")
    assert (saved.model.model_name_or_path, saved.train.output_dir, saved.data_file) == (
        "/data/models/qwen3",
        "training",
        "training-rows.jsonl",
    )
    assert believed(tmp_path)[0]["model"]["model_name_or_path"] == "/data/models/qwen3"
    assert (
        MASK not in str(without_secrets(cfg)) + DifferencesView(cfg, differences(cfg, tmp_path / "c.yaml"), "c").text()
    )


def test_a_token_under_its_earlier_name_is_not_told_in_the_notes(load):
    cfg = load(SMALL, "train.push_to_hub_token=hf_mine")
    assert (
        cfg.train.hub_token == "hf_mine" and cfg.translated["train.push_to_hub_token"] == f"{MASK} -> train.hub_token"
    )
    assert "hf_mine" not in to_yaml(cfg)


ENVIRONMENT = """
model: {model_name_or_path: "${oc.env:MODELS}/m", max_sequence_len: 100, generation: {a: "${data_file}", b: "${oc.decode:${oc.env:NUMBER}}", c: "${..max_sequence_len}"}}
train: {output_dir: out, run_name: "${experiment}", learning_rate: "${oc.env:RATE}", warmup_ratio: "${oc.env:RATE}", hub_token: "${oc.env:TOKEN}"}
data_file: ${oc.env:DATA,rows}.jsonl
experiment: mine
"""


@pytest.fixture
def environment(monkeypatch):
    for name, value in {
        "MODELS": "/models/planted",
        "NUMBER": "77771",
        "RATE": "0.0625",
        "DATA": "planted2",
        "TOKEN": "planted3",
    }.items():
        monkeypatch.setenv(name, value)


def test_what_the_environment_holds_is_used_but_does_not_leave(load, environment, tmp_path):
    cfg = load(ENVIRONMENT)
    assert (cfg.model.model_name_or_path, cfg.data_file, cfg.train.hub_token) == (
        "/models/planted/m",
        "planted2.jsonl",
        "planted3",
    )
    assert (cfg.train.learning_rate, cfg.train.warmup_steps, cfg.model.generation.b) == (0.0625, 0.0625, 77771)
    shown = without_secrets(cfg)
    assert not [text for text in ("planted", "77771", "0.0625") if text in str(shown)]
    assert (
        shown["model"]["model_name_or_path"] == "${oc.env:MODELS}/m"
        and shown["data_file"] == "${oc.env:DATA,rows}.jsonl"
    )
    assert shown["model"]["generation"]["a"] == "${data_file}" and "hub_token" not in shown["train"]
    assert shown["train"]["run_name"] == "mine"  # an interpolation that has nothing to do with the environment

    save_config(cfg, tmp_path / "saved.yaml")
    written = (tmp_path / "saved.yaml").read_text(encoding="utf-8")
    assert not [text for text in ("planted", "77771", "0.0625") if text in written]
    again = load_config(tmp_path / "saved.yaml")
    assert again.data_file == cfg.data_file and again.train.warmup_steps == 0.0625 and "hub_token" not in again.train
    other = load_config(tmp_path / "saved.yaml", ["data_file=other.jsonl"])
    assert (
        without_secrets(other)["data_file"] == "other.jsonl"
        and without_secrets(again)["data_file"] == "${oc.env:DATA,rows}.jsonl"
    )


@pytest.mark.parametrize(("model", "train"), [
    ("lora: null", "run_name: '${oc.env:DATA}'"),
    ("lora: {rank_pattern: {layers.0.q_proj: '${oc.env:DATA}'}}", "seed: 1"),  # keys with dots and brackets of their own
    ("generation: {'a[0]': '${oc.env:DATA}', 1: '${oc.env:DATA}', x: [[{b.c: '${oc.env:DATA}'}]]}", "seed: 1"),
    ("generation: {a: '${oc.env:DATA}'}, lora: {rank_pattern: '${model.generation}'}", "seed: 1"),
    ("lora: {rank_pattern: '${oc.decode:${oc.env:MAPPING}}'}", "seed: 1"),
])  # fmt: skip
@pytest.mark.parametrize("overrides", [[], ["limit=3"]])
def test_wherever_the_environment_is_asked(load, environment, monkeypatch, model, train, overrides, tmp_path):
    monkeypatch.setenv("MAPPING", "{layers.0: planted4}")
    cfg = load(f"model: {{model_name_or_path: m, {model}}}\ntrain: {{{train}}}\n", *overrides)
    save_config(cfg, tmp_path / "saved.yaml")
    assert "planted" in str(cfg) and "planted" not in (tmp_path / "saved.yaml").read_text()
    again = load_config(tmp_path / "saved.yaml")
    assert (again.model, again.train) == (cfg.model, cfg.train)


@pytest.mark.parametrize("part", ["model", "train"])
def test_a_part_is_not_all_of_the_environment(load, monkeypatch, part):
    monkeypatch.setenv("PART", "{seed: 1}")
    with pytest.raises(ConfigError, match=f"^{part}: .*, all of it from the environment .*Write keys under {part}:"):
        load(f"{part}: ${{oc.decode:${{oc.env:PART}}}}\n")


def test_notes_of_a_file_are_told_and_not_followed(load, environment):
    note = "${oc.env:DATA} -> what the environment holds"
    cfg = load(SMALL + f"translated: {{model.revision: '{note}', translated.x: '\\{note}', train.seed: 1 -> 2}}\n")
    assert "planted" not in to_yaml(cfg) and cfg.translated["train.seed"] == "1 -> 2"


def test_a_value_that_was_set_since_is_its_own(load, environment, monkeypatch):
    cfg = load(ENVIRONMENT)
    cfg.data_file, cfg.model.generation.a = "mine.jsonl", None
    monkeypatch.delenv("MODELS")
    shown = without_secrets(cfg)
    assert (shown["data_file"], shown["model"]["generation"]["a"]) == ("mine.jsonl", None)
    assert (shown["model"]["model_name_or_path"], shown["train"]["learning_rate"]) == (
        "${oc.env:MODELS}/m",
        "${oc.env:RATE}",
    )


def test_lists_and_what_has_nothing_to_do_with_the_environment(load, environment):
    text = SMALL + "data_file: ${oc.env:DATA}\nexperiment: ${oc.decode:'e1'}\n"
    cfg = load(
        text,
        "+model.lora={r: 8, target_modules: ['${oc.env:DATA}', b]}",
        "+train.run_name='${experiment}-${model.lora.r}'",
    )
    shown = without_secrets(cfg)
    assert shown["model"]["lora"]["target_modules"] == ["${oc.env:DATA}", "b"] and cfg.model.lora.target_modules == [
        "planted2",
        "b",
    ]
    assert (shown["experiment"], shown["train"]["run_name"]) == (
        "e1",
        "e1-8",
    )  # read again elsewhere, they would be others


def test_a_notebook_shows_the_interpolation(load, environment, tmp_path):
    cfg = load(ENVIRONMENT)
    assert "planted" not in to_yaml(cfg)
    assert "planted" not in str(differences(cfg, tmp_path / "c.yaml"))


def test_a_notebook_shows_no_token(load, tmp_path):
    cfg = load(
        SMALL,
        "train.hub_token=hf_mine",
        f"train.run_name='run of {HF}'",
        f"experiment={GITHUB}",
        "+model.generation.api_key=k1234",
    )
    view = DifferencesView(cfg, differences(cfg, tmp_path / "c.yaml"), "c")
    for shown in (view.html(), view.text()):
        assert not [text for text in (GITHUB, HF, "k1234") if text in shown]
        assert "train.hub_token" in shown and MASK in shown
    assert "hf_mine" not in view._yaml() and "run_name" in view._yaml()


def test_without_the_environment_nothing_changes(load):
    cfg = load(SMALL + "experiment: a\n", "+train.run_name='${experiment}'", "+model.generation.text='\\${oc.env:X}'")
    assert OmegaConf.create(without_secrets(cfg)) == cfg and cfg.train.run_name == "a"


def test_an_evaluation_takes_no_secret():
    with pytest.raises(
        SystemExit, match="^error: train.hub_token: a command line is kept by shells, and this is a secret"
    ):
        main(["evaluate", "checkpoint", "train.hub_token=mine"])
