"""A worker computes on its own device, whatever else its node has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.engine.accelerator import tensor_float_32

ON_A_GPU_HOST = """
import os
import torch

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 4

"""

A_CPU_JOB = """
from tests.trainables.conftest import adapters_of, head_of, hearing, tiny_bert, tiny_task
from tests.trainables.training.test_finetune import SETTINGS, lora
from trainables.adaptations.blocks import BlockAdaptation
from trainables.engine.workers import join
from trainables.training.finetune import finetune

workers, model, engines = join(torch.device("cpu")), tiny_bert(torch.float32), []
observer = hearing(keep=lambda step, engine, schedule: engines.append(engine))
with BlockAdaptation(model, lora(model), seed=0, head=head_of(model)) as adaptation:
    finetune(model, adaptation, tiny_task(), SETTINGS, learning_rate=1e-2, seed=0,
             workers=workers, observer=observer)
    devices = {each.device.type for each in adaptation.weights().values()}
assert devices == {engines[0].device.type} == {"cpu"}, (devices, engines[0].device)
"""

A_DEVICE_OF_RAYS = """
from deepspeed.accelerator import get_accelerator
assert get_accelerator().device_name() == "cuda"
from trainables.engine.accelerator import follow
follow(torch.device("cpu"))
assert get_accelerator().device_name() == "cpu"

# Ray's rank 0 of a node may have any of its GPUs, and so any number among those that are visible.
import ray
from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager
os.environ |= {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0,10,2,7"}
ray.get_gpu_ids = lambda: [2]
chosen = []
torch.cuda.set_device, torch.cuda.current_device = chosen.append, lambda: chosen[-1].index
torch.distributed.init_process_group(
    "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
)
from trainables.engine.workers import join
(device,) = CUDATorchDeviceManager().get_devices()
workers = join(device)
assert chosen == [workers.device] == [torch.device("cuda", 2)]
assert get_accelerator().device_name(int(os.environ["LOCAL_RANK"])) == "cuda:2"
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(A_CPU_JOB, id="a job on a CPU"),
        pytest.param(A_DEVICE_OF_RAYS, id="DeepSpeed imported before, and a device of Ray's"),
    ],
)
def test_deepspeed_computes_on_the_workers_device_on_a_host_with_gpus(program: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU_HOST + program],
        env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_tf32_is_for_a_while_and_for_gpus_alone() -> None:
    mkldnn: Any = torch.backends.mkldnn
    cuda, on_cpu = torch.backends.cuda.matmul, mkldnn.matmul
    before = cuda.allow_tf32, torch.backends.cudnn.allow_tf32, on_cpu.fp32_precision
    for allowed in (True, False):
        with tensor_float_32(allowed):
            assert cuda.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
            assert on_cpu.fp32_precision == before[2]
        assert before[:2] == (cuda.allow_tf32, torch.backends.cudnn.allow_tf32)
