"""What only a GPU can prove: `pytest tests/gpu`, some minutes on one GPU, without a network.

`RAGFIT_GPU_TESTS_ON=cpu pytest tests/gpu` runs the same tests on a CPU, for all of it that a CPU can do. (A package, so
that its conftest.py does not hide that of `tests`.)
"""
