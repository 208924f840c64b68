"""Importing this silences a few notes of the libraries to each other, which a user of this kit can do nothing about."""

import logging
import warnings

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU.*")
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
