"""Whether a sweep fits, what would make it, and whose memory it is."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ray.util.accelerators import accelerators
from rich.console import Console

from search.cli.dry_run_view import drawn_memory
from search.config.gpus import GPU_BYTES, gpu_bytes
from search.config.reading import parse_sweep
from search.launch import memory_plan
from search.launch.memory_plan import Memory, MemoryPlan, Planning, largest_plan
from search.launch.prepare import prepare
from spaces.errors import ConfigError
from spaces.planner import Planner
from tests.trainables.families import Made, make
from trainables.footprint.footprint import PROCESS_BYTES

MIB, GIB = 2**20, 2**30
ON_GPU = {"address": "auto", "resources_per_worker": {"CPU": 1, "GPU": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("albert", tmp_path_factory.mktemp("albert"))


def sweep(made: Made, **sections: Any) -> Any:
    return parse_sweep({
        "base": made.uri,
        "task": made.settings.model_dump(mode="json"),
        "profile": {"target_modules": list(made.suffixes), "rank": 2, "batch_size": 8},
        "space": {"methods": {"lora": {"rank": [1, 2, 4]}}},
        "store": f"file://{made.uri.removeprefix('path:')}/../store",
        "confirm": None,
        **sections,
    })  # fmt: skip


def planned(made: Made, *, profiled: bool = True, **sections: Any) -> MemoryPlan:
    config = sweep(made, **sections)
    return Planning(config, prepare(config), profiled=profiled).plan()


def on(size: int) -> dict[str, Any]:
    """Workers on GPUs with so many bytes beside CUDA's own; a plan fills 95 % of all."""
    return {**ON_GPU, "gpu": str(int((PROCESS_BYTES["cuda"] + size) / 0.95) + 1)}


def test_the_largest_plan_is_that_of_the_highest_rank(made: Made) -> None:
    config = sweep(made)
    inputs = prepare(config)
    most = Planner(inputs.targets).params({"method": "lora", "rank": 4})
    assert largest_plan(config, inputs) == most
    bounded = sweep(made, search={"max_params": most - 1})
    assert largest_plan(bounded, inputs) == most - 1


def test_activations_are_computed_again_only_where_they_do_not_fit(made: Made) -> None:
    train = {"batch_size": 16}
    kept = planned(made, profiled=False, cluster=on(GIB), train=train)
    assert kept.fits
    assert not kept.activation_checkpointing
    beside = kept.stages["training"] - kept.process
    less = on(beside - 1024)
    tight = planned(made, profiled=False, cluster=less, train=train)
    assert tight.activation_checkpointing
    assert tight.stages["training"] < kept.stages["training"]
    off = planned(
        made, profiled=False, cluster=less, train={**train, "activation_checkpointing": "off"}
    )
    assert not off.fits
    said = [change.what for change in off.changes]
    assert said[0] == "train.activation_checkpointing: on"
    assert "train.gradient_accumulation_steps: 2" in said
    assert all(change.peak < max(off.stages.values()) for change in off.changes)
    assert off.least_gpus is not None


def test_a_profile_takes_turns_where_its_sums_do_not_fit(made: Made) -> None:
    whole = planned(made, cluster=on(GIB))
    assert whole.profile_passes == 1
    rest = whole.stages["profile"] - whole.process - whole.parts["accumulators"]
    half = on(rest + whole.parts["accumulators"] // 2)
    some = planned(made, cluster=half, train={"batch_size": 1})
    assert some.profile_passes == 2


def test_workers_are_told_what_they_would_hold_beside_the_base(made: Made) -> None:
    config = sweep(made, cluster=on(GIB))
    planning = Planning(config, prepare(config), profiled=False)
    plan = planning.plan()
    assert planning.beside_base() == plan.stages["training"] - plan.process - plan.parts["base"]


def test_what_nothing_helps_is_said_without_a_remedy(made: Made) -> None:
    plan = planned(made, cluster={**ON_GPU, "gpu": "512MiB"})
    assert (plan.fits, plan.changes, plan.least_gpus) == (False, (), None)


def test_without_a_gpu_to_be_seen_it_is_not_known(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = planned(made, cluster=ON_GPU)
    assert (plan.limit, plan.fits) == (None, None)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '81559, NVIDIA H100'\necho '23028, NVIDIA A10G'\n")
    tool.chmod(0o755)
    cluster = sweep(made, cluster=ON_GPU).cluster
    assert Memory.of_workers(cluster) == Memory("NVIDIA A10G", 23028 * MIB)
    half = sweep(made, cluster={**ON_GPU, "resources_per_worker": {"GPU": 0.5}, "gpu": "A10G"})
    assert Memory.of_workers(half.cluster) == Memory("A10G", 23028 * MIB // 2)


def test_workers_on_cpus_share_the_machine(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{GIB}\n")
    monkeypatch.setattr(memory_plan, "CGROUP_LIMIT", limit)
    cluster = sweep(made, cluster={"groups": 2, "workers_per_group": 2}).cluster
    assert Memory.of_workers(cluster) == Memory("this machine", GIB // 4)
    limit.write_text("max\n")
    assert (Memory.of_workers(cluster).limit or 0) > GIB // 4


def test_it_is_drawn_and_is_json(made: Made) -> None:
    plan = planned(made, cluster=on(64 * 1024), train={"activation_checkpointing": "off"})
    assert json.loads(json.dumps(asdict(plan)))["device"] == plan.device
    console = Console(file=io.StringIO(), width=140)
    console.print(drawn_memory(plan))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "does not fit into" in shown
    assert len(shown.splitlines()) <= 12


def test_gpus_have_rays_names_or_a_size(made: Made) -> None:
    known = {each for each in vars(accelerators).values() if isinstance(each, str)}
    assert GPU_BYTES.keys() <= known
    assert gpu_bytes("24GiB") == 24 * GIB
    with pytest.raises(ValueError, match="'24' is 24 bytes, less than any GPU has; write 24GiB"):
        gpu_bytes("24")
    assert sweep(made, cluster={**ON_GPU, "gpu": "H100"}).cluster.accelerator_type == "H100"
    assert sweep(made, cluster={**ON_GPU, "gpu": "24GiB"}).cluster.accelerator_type is None
    with pytest.raises(ConfigError, match=r"cluster\.gpu: .*H1000.* or one of .*H100"):
        sweep(made, cluster={**ON_GPU, "gpu": "H1000"})
    with pytest.raises(ConfigError, match=r"cluster\.gpu: H100 is named, but a worker asks"):
        sweep(made, cluster={"gpu": "H100"})


def test_a_family_that_cannot_is_not_asked_to(albert: Made) -> None:
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing: .*set auto or off"):
        prepare(sweep(albert, train={"activation_checkpointing": "on"}))
    assert not planned(albert, cluster={**ON_GPU, "gpu": "512MiB"}).activation_checkpointing
