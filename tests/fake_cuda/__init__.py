"""A CUDA device that computes nothing, so that what would run on one can be tested on a CPU build.

`run_on_fake_cuda` (process.py) runs a case (cases.py) in a process of its own, for the device's
guard is loaded before torch and stays. Tensors on it are fake: they have a shape, a dtype and a
device, and no values. So a host that asks for a value fails, and every operator can be counted.
What is not covered: DeepSpeed's engine, NCCL, numbers.
"""
