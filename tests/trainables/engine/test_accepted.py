"""A section of DeepSpeed's settings is taken where DeepSpeed knows its keys and values."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.engine.accepted import refusal_of


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 5e8}},
        {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}},
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
        {"zero_optimization": {"stage": 1, "offload_param": None}},
        {"prescale_gradients": True, "gradient_predivide_factor": 2},
        {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}},
        {"activation_checkpointing": {"partition_activations": True, "number_checkpoints": 4}},
        {"flops_profiler": {"enabled": True, "profile_step": 3, "output_file": None}},
        {"comms_logger": {"enabled": True}, "tensorboard": {"enabled": False, "job_name": "x"}},
        {"wall_clock_breakdown": False, "steps_per_print": 100, "dump_state": False},
        {"aio": {"block_size": 1048576}, "checkpoint": {"tag_validation": "Warn"}},
        {"timers": {"throughput": {"enabled": True}}, "compile": {"deepcompile": False}},
        {"data_efficiency": {"enabled": True, "data_sampling": {"enabled": True}}},
        {"datastates_ckpt": {"host_cache_size": 16}, "pipeline": {"stages": 2}},
        {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False},
    ],
)
def test_what_deepspeed_reads_is_taken(section: dict[str, Any]) -> None:
    before = repr(section)
    assert refusal_of(section) is None
    assert repr(section) == before


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation: unknown key; did you mean 'zero_optimiz"),
        ({"zero_optimisation": None}, "zero_optimisation: unknown key; did you mean 'zero_optim"),
        ({"zero": {"stage": 1}}, "zero: unknown key; use one of zero_optimization, "),
        ({"stage": 1}, "stage: unknown key, none of DeepSpeed's; remove it"),
        ({"wall_clock_brakedown": False}, "wall_clock_brakedown: unknown key; did you mean 'wall"),
        ({"zero_optimization": {"stgae": 1}}, "zero_optimization.stgae: unknown key; did you mean"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise: unknown key; did you mean 'device'?",
        ),
        (
            {"activation_checkpointing": {"profil": True}},
            "activation_checkpointing.profil: unknown",
        ),
        ({"comms_logger": {"enabeld": True}}, "comms_logger.enabeld: unknown key; did you mean 'e"),
        ({"tensorboard": {"enable": True}}, "tensorboard.enable: unknown key; did you mean 'enab"),
        ({"data_types": {"grad_acc_dtype": "fp32"}}, "data_types.grad_acc_dtype: unknown key; did"),
        ({"timers": {"thruput": {}}}, "timers.thruput: unknown key; did you mean 'throughput'?"),
        ({"zero_optimization": None}, "zero_optimization: is nothing (null); write its keys"),
        ({"activation_checkpointing": None}, "activation_checkpointing: is nothing (null)"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "zero_optimization.reduce_bucket_s"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "zero_optimization.offload_optimizer.device: should be 'none', 'cpu' or 'nvme', not 'g",
        ),
        ({"wandb": {"project": 5}}, "wandb.project: should be a valid string, not '5'"),
        ({"prescale_gradients": "no"}, "prescale_gradients: should be true or false, not 'no'"),
        ({"gradient_predivide_factor": True}, "gradient_predivide_factor: should be a number, not"),
        ({"communication_data_type": "fp23"}, "communication_data_type: DeepSpeed does not take"),
        ({"elasticity": {"enabled": True}}, "elasticity: DeepSpeed does not take it (Elastic"),
    ],
)
def test_what_deepspeed_would_pass_over_or_fail_at_is_refused(
    section: dict[str, Any], line: str
) -> None:
    said = refusal_of(section)
    assert said is not None
    assert said.startswith(line)
    assert "\n" not in said
