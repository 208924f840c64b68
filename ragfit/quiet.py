"""Importing this silences a few notes of the libraries to each other, which a user of this kit can do nothing about."""

import logging
import warnings

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU.*")
for name, text in (
    ("bitsandbytes.backends.cpu.ops", "kernels-community"),
    # One line for each product, hundreds of thousands in a run; LLM.int8 works in float16, whatever the input.
    ("bitsandbytes.autograd._functions", "inputs will be cast"),
):
    logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())
