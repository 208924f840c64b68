"""Settings that must be made before torch is imported: how threads wait and how memory is reused on a CPU, and which
notes stay unseen. `import ragfit` makes them.

Torch's threads wait for each other at the end of each operation, and by default they compute while they do, which takes
the time that the awaited thread needs where a machine has other jobs. Where they sleep at once, a quiet machine loses
the time that waking takes. So they look around for a fraction of a millisecond, and then sleep. OpenMP's runtime
(libgomp in torch's wheels) reads how to wait when it is loaded, which importing torch does.

A training step takes and frees gigabytes in blocks of a few MB. glibc returns them to the system and can't reuse them
for tensors of the same size, so peak memory doubles. torch reads its own setting when it takes its first memory.
"""

import ctypes
import logging
import os
import platform
import warnings

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # OpenMP: sleep while waiting. "active" does not.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # libgomp: but only after so many looks; 0 by that policy
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch: large pages for large tensors. 0 turns it off.

# A few notes of the libraries to each other, which a user of this kit can do nothing about.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU.*")
# One line for each product, hundreds of thousands in a run; LLM.int8 works in float16, whatever the input.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(lambda said: "will be cast" not in said.getMessage())
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda said: "kernels-comm" not in said.getMessage())

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3), from malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, so that the next step takes it again; another C library is left as it is."""
    if libc := _glibc():
        libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the largest there is
        libc.mallopt(_TRIM_THRESHOLD, -1)  # never


def give_back_memory() -> None:
    """Return to the system what is kept: a notebook's kernel lives on after the training."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
