"""What has to be set before torch and the libraries on it are imported: memory on a CPU, and their notes to each other.

Freed tensors are used again instead of going back to the system.

A training step takes and frees gigabytes in blocks of a few MB. glibc returns them to the system and asks for them
again, page by page. It can't reuse freed blocks for tensors of the same size, so peak memory doubles (README, "How fast").

Import this before torch, which reads its setting when it takes its first memory.
"""

import ctypes
import logging
import os
import warnings

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch: large pages for large tensors. 0 turns it off.

# A few notes of the libraries to each other, which a user of this kit can do nothing about.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU.*")
for name, text in (
    ("bitsandbytes.backends.cpu.ops", "kernels-community"),
    # One line for each product, hundreds of thousands in a run; LLM.int8 works in float16, whatever the input.
    ("bitsandbytes.autograd._functions", "inputs will be cast"),
):
    logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory():
    """Have glibc keep what is freed; nothing happens with another C library."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, -1)  # never


def give_back_memory():
    """Return what is kept to the system: a notebook's kernel lives on after the training."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc():
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
