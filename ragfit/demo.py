"""A door to `ragfit.models.demo`, which published model cards import."""

from ragfit.config.paths import DEMO_PREFIX, is_demo  # noqa: F401
from ragfit.models.demo import DEMO_MODEL, model_folder  # noqa: F401
from ragfit.models.demo import model_folder as tokenizer_folder  # noqa: F401  (the model's folder holds the tokenizer)
