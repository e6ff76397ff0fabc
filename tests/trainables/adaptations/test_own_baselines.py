"""The baselines of our own, against dense float64 references written from the papers' formulas."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, relu

from tests.trainables.conftest import adapters_of, head_of, hearing, tiny_bert, tiny_task
from tests.trainables.tuner_examples import Layered, plan_of, plan_of_first
from trainables.adaptations.adaptation import Adaptation, StageParameters
from trainables.adaptations.baselines.tuner import HookedAdaptation
from trainables.adaptations.registry import adaptation_for
from trainables.engine.workers import Workers
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=6, dropout=0.0, warmup_ratio=0.0)
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
STORED = pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])


def filled(stage: StageParameters) -> list[torch.Tensor]:
    """The parameters of a stage, each moved away from where it started."""
    parameters: list[torch.Tensor] = list(stage.adapters.parameters())
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return parameters


def tuners_of(adaptation: Adaptation) -> list[Any]:
    """What the method adds to each adapted module."""
    assert isinstance(adaptation, HookedAdaptation)
    return list(adaptation.tuners.values())


def decomposition(model: Layered) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, S, Vt = np.linalg.svd(model.weight.numpy(), full_matrices=False)
    return torch.tensor(U), torch.tensor(S), torch.tensor(Vt)


def lora_xs(model: Layered, R: torch.Tensor) -> torch.Tensor:
    """W + (alpha / r) U_r R S_r V_r^T."""
    U, S, Vt = decomposition(model)
    return model.weight + 16 / 3 * U[:, :3] @ R @ torch.diag(S[:3]) @ Vt[:3]


def milora(model: Layered, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The weight without its 3 smallest components, and B A."""
    U, S, Vt = decomposition(model)
    return U[:, :-3] @ torch.diag(S[:-3]) @ Vt[:-3] + B @ A


def pissa(model: Layered, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """The weight without its 3 largest components, and B A."""
    U, S, Vt = decomposition(model)
    return U[:, 3:] @ torch.diag(S[3:]) @ Vt[3:] + B @ A


def sora(model: Layered, A: torch.Tensor, B: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """W + (alpha / r) B diag(g) A."""
    return model.weight + 16 / 4 * B @ torch.diag(gate) @ A


def dylora(model: Layered, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """W + (alpha / b) B[:, :b] A[:b] with b = 2 of 4."""
    return model.weight + 16 / 2 * sum(torch.outer(B[:, i], A[i]) for i in range(2))


DENSE: dict[str, Callable[..., torch.Tensor]] = {
    "lora_xs": lora_xs, "milora": milora, "pissa": pissa, "sora": sora, "dylora": dylora,
}  # fmt: skip


def signs_of(kept: dict[str, torch.Tensor], model: Layered) -> torch.Tensor:
    """+1 or -1 for each component, where torch's decomposition has it as numpy's, or turned."""
    U, _, _ = decomposition(model)
    return torch.sign((kept["B"] * U[:, :3]).sum(0))


@STORED
@pytest.mark.parametrize("method", DENSE)
def test_forward_and_gradients_equal_the_dense_reference(method: str, transposed: bool) -> None:
    model = Layered(transposed)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    with adaptation_for(plan_of_first(model, method), model, seed=1) as adaptation:
        stage = adaptation.begin_stage(0, 5)
        trained = filled(stage)
        if method == "dylora":
            adapters_of(stage)[0].active = 2
        stage.train()
        y = model(x)
        got = torch.autograd.grad(y.square().sum(), [x, *trained])
        if method == "lora_xs":
            # which way a singular vector points is the library's own choice
            signs = signs_of(adapters_of(stage)[0].constants, model)
            trained = [trained[0] * signs * signs[:, None]]
            got = (got[0], got[1] * signs * signs[:, None])
    weight = DENSE[method](model, *trained)
    expected = model.with_first(x, x @ weight.T + model.o_proj.bias)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *trained])
    torch.testing.assert_close(y, expected, **EXACT)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@STORED
@pytest.mark.parametrize(("activation", "function"), [("gelu", gelu), ("relu", relu)])
def test_a_bottleneck_is_a_network_behind_its_module(
    activation: str, function: Any, transposed: bool
) -> None:
    model = Layered(transposed)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    plan = plan_of_first(model, "bottleneck", activation=activation)
    with adaptation_for(plan, model, seed=1) as adaptation:
        trained = filled(adaptation.begin_stage(0, 5))
        down, down_bias, up, up_bias = trained
        assert (down.shape, up.shape) == ((5, 7), (7, 5))
        y = model(x)
        got = torch.autograd.grad(y.square().sum(), [x, *trained])
    first = x @ model.weight.T + model.o_proj.bias
    behind = function(first @ down.T + down_bias) @ up.T + up_bias
    expected = model.with_first(x, first + behind)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *trained])
    torch.testing.assert_close(y, expected, **EXACT)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["lora_dash", "dylora", "sora"])
def test_factors_start_as_those_of_lora(method: str) -> None:
    model = Layered(False, out=60, in_=50)
    plan = plan_of_first(model, method, rank=40)
    with adaptation_for(plan, model, seed=1) as adaptation:
        (tuned,) = adapters_of(adaptation.begin_stage(0, 5))
        A, B = tuned.A.detach(), tuned.B.detach()
    assert not B.any()
    bound = 1 / math.sqrt(50)
    assert float(A.abs().max()) <= bound
    # a uniform draw on [-b, b] has variance b^2 / 3; 2000 samples lie well within 10% of it
    assert float(A.var()) == pytest.approx(bound**2 / 3, rel=0.1)


@STORED
def test_lora_xs_and_milora_start_from_the_decomposition_of_numpy(transposed: bool) -> None:
    model = Layered(transposed)
    U, S, Vt = decomposition(model)

    def started(method: str) -> dict[str, torch.Tensor]:
        with adaptation_for(plan_of_first(model, method), model, seed=1) as adaptation:
            adaptation.begin_stage(0, 5)
            adaptation.end_stage()
            weights = adaptation.weights()
            return {name.rpartition("/")[2]: tensor for name, tensor in weights.items()}

    xs = started("lora_xs")
    assert not xs["R"].any()
    largest = U[:, :3] @ torch.diag(S[:3]) @ Vt[:3]
    torch.testing.assert_close(xs["B"] @ xs["A"], largest, **EXACT)
    torch.testing.assert_close(xs["B"].T @ xs["B"], torch.eye(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(xs["A"] @ xs["A"].T, torch.diag(S[:3] ** 2), **EXACT)

    mi = started("milora")
    smallest = U[:, -3:] @ torch.diag(S[-3:]) @ Vt[-3:]
    torch.testing.assert_close(mi["B"] @ mi["A"], smallest, **EXACT)
    torch.testing.assert_close(mi["A"] @ mi["A"].T, torch.diag(S[-3:]), **EXACT)
    torch.testing.assert_close(mi["B"].T @ mi["B"], torch.diag(S[-3:]), **EXACT)
    assert torch.equal(mi["A"], mi["initial_A"])
    assert torch.equal(mi["B"], mi["initial_B"])


@pytest.mark.parametrize("method", ["lora_xs", "milora", "pissa"])
def test_a_base_is_decomposed_once_for_all_trials(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decompose, done = torch.linalg.svd, []

    def counting(*weight: Any, **how: Any) -> Any:
        done.append(weight)
        return decompose(*weight, **how)

    monkeypatch.setattr(torch.linalg, "svd", counting)

    def started(model: Layered, rank: int) -> dict[str, torch.Tensor]:
        plan = plan_of_first(model, method, rank=rank)
        with adaptation_for(plan, model, seed=1) as adaptation:
            adaptation.begin_stage(0, 5)
            adaptation.end_stage()
            return adaptation.weights()

    model = Layered(False, out=200, in_=150)
    found = {rank: started(model, rank) for rank in (3, 64, 2)}
    assert len(done) == 1
    found[65] = started(model, 65)  # more than was kept
    assert len(done) == 2
    started(model, 128)
    assert len(done) == 2
    for rank, weights in found.items():
        afresh = started(Layered(False, out=200, in_=150), rank)
        assert all(torch.equal(weights[name], tensor) for name, tensor in afresh.items())


def test_what_is_kept_of_a_base_does_not_keep_it() -> None:
    model = Layered(False)
    with adaptation_for(plan_of_first(model, "pissa"), model, seed=1) as adaptation:
        adaptation.begin_stage(0, 5)
    base = weakref.ref(model)
    del model, adaptation
    gc.collect()
    assert base() is None


# -- LoRA-Dash -------------------------------------------------------------------------------------


@STORED
def test_lora_dash_launches_the_directions_that_changed_most(transposed: bool) -> None:
    model = Layered(transposed)
    with torch.no_grad():  # a direction that the weight nearly lacks has the highest rate of all
        U, S, Vt = decomposition(model)
        S[-1] = 1e-3
        model.weight.copy_(U @ torch.diag(S) @ Vt)
    U, S, Vt = decomposition(model)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    plan = plan_of_first(model, "lora_dash", launch_share=0.3)
    with adaptation_for(plan, model, seed=1) as adaptation:
        stage = adaptation.begin_stage(0, 10)
        (tuned,) = adapters_of(stage)
        A, B, c = tuned.A, tuned.B, tuned.coefficients
        with torch.no_grad():
            filled(stage)
            c.zero_()

        def launched() -> bool:
            return bool(tuned.constants["left"].any())

        for _ in range(3):
            assert not launched()
            adaptation.after_step(False, 1e-3)
        assert launched()
        left, right = tuned.constants["left"].clone(), tuned.constants["right"].clone()
        with torch.no_grad():
            B.add_(1.0)
        for _ in range(7):
            adaptation.after_step(False, 1e-3)
        assert torch.equal(tuned.constants["left"], left)  # launched once
        with torch.no_grad():
            B.sub_(1.0)
            c.copy_(torch.tensor([0.7, -1.3]))
        y = model(x)
        got = torch.autograd.grad(y.square().sum(), [x, A, B, c])

    dW = 16 / 3 * (B @ A).detach().numpy()
    rate = [abs(U[:, i].numpy() @ dW @ Vt[i].numpy()) / (float(S[i]) + 1e-6) for i in range(6)]
    chosen = np.argsort(rate)[::-1][:2].copy()
    assert chosen[0] == 5
    for i, direction in enumerate(chosen):
        wanted = torch.outer(U[:, direction], Vt[direction])
        torch.testing.assert_close(torch.outer(left[:, i], right[i]), wanted, **EXACT)
    weight = model.weight + 16 / 3 * B @ A
    for i, direction in enumerate(chosen):
        weight = weight + c[i] * torch.outer(U[:, direction], Vt[direction])
    expected = model.with_first(x, x @ weight.T + model.o_proj.bias)
    torch.testing.assert_close(y, expected, **EXACT)
    for one, other in zip(
        got, torch.autograd.grad(expected.square().sum(), [x, A, B, c]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("steps", "share", "launch"), [(12, 0.25, 3), (2, 0.1, 1), (12, 0.0, 1), (3, 0.5, 2)]
)
def test_coefficients_stay_zero_until_the_launch_and_train_from_then_on(
    steps: int, share: float, launch: int, alone: Workers
) -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", "lora_dash", launch_share=share)
    moved, settings = [], SETTINGS.model_copy(update={"epochs": 1})
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:

        def look(_step: int) -> None:
            coefficients = [tuned.coefficients for tuned in tuners_of(adaptation)]
            moved.append(all(bool(c.any()) for c in coefficients))
            assert moved[-1] or not any(bool(c.any()) for c in coefficients)

        finetune(
            model, adaptation, tiny_task(train=6 * steps), settings, learning_rate=1e-2, seed=3,
            workers=alone, observer=hearing(on_step=look),
        )  # fmt: skip
    assert moved == [False] * launch + [True] * (steps - launch)


# -- DyLoRA ----------------------------------------------------------------------------------------


def drawn_ranks(seed: int, steps: int = 400, rank: int = 4) -> list[int]:
    model = Layered(False)
    found = []
    plan = plan_of_first(model, "dylora", rank=rank)
    with adaptation_for(plan, model, seed=seed) as adaptation:
        (tuned,) = adapters_of(adaptation.begin_stage(0, steps))
        for _ in range(steps):
            found.append(tuned.active)
            adaptation.after_step(False, 1e-3)
    return found


def test_dylora_draws_every_rank_alike_and_from_the_seed_alone() -> None:
    ranks = drawn_ranks(5)
    torch.rand(3)
    assert drawn_ranks(5) == ranks
    assert drawn_ranks(6) != ranks
    counts = np.bincount(ranks, minlength=5)
    assert counts[0] == 0
    # 100 of each are expected of 400, and a deviation of 9; 5 of them are not by chance
    assert all(abs(count - 100) < 45 for count in counts[1:])


def test_dylora_trains_the_first_ranks_only_and_is_measured_at_the_largest() -> None:
    model = Layered(False)
    x = torch.randn(4, 6, dtype=torch.float64)
    with adaptation_for(plan_of_first(model, "dylora"), model, seed=1) as adaptation:
        stage = adaptation.begin_stage(0, 5)
        filled(stage)
        (tuned,) = adapters_of(stage)
        for rank in (1, 3, 4):
            tuned.active = rank
            stage.train()
            grad_A, grad_B = torch.autograd.grad(model(x).sum(), [tuned.A, tuned.B])
            assert grad_A[:rank].any(1).all()
            assert grad_B[:, :rank].any(0).all()
            assert not grad_A[rank:].any()
            assert not grad_B[:, rank:].any()
        tuned.active = 1
        adaptation.eval()
        weight = model.weight + 16 / 4 * tuned.B @ tuned.A
        expected = model.with_first(x, x @ weight.T + model.o_proj.bias)
        torch.testing.assert_close(model(x), expected, **EXACT)


def test_dylora_draws_one_rank_for_all_modules_and_all_parts_of_a_step(alone: Workers) -> None:
    model = tiny_bert()
    settings = SETTINGS.model_copy(update={"gradient_accumulation_steps": 3})

    def ranks(settings: TrainSettings) -> tuple[list[int], dict[str, torch.Tensor]]:
        found = []
        plan = plan_of(model, "bert", "dylora")
        with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:

            def look(_step: int) -> None:
                (rank,) = {tuned.active for tuned in tuners_of(adaptation)}
                found.append(rank)

            finetune(model, adaptation, tiny_task(), settings, learning_rate=1e-2, seed=3,
                     workers=alone, observer=hearing(on_step=look))  # fmt: skip
        return found, adaptation.weights()

    (whole, one), (parts, other) = ranks(SETTINGS), ranks(settings)
    assert whole == parts
    assert len(set(whole)) > 1
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-8)


# -- SoRA ------------------------------------------------------------------------------------------


def soft_threshold(g: float, threshold: float) -> float:
    if g > threshold:
        return g - threshold
    return g + threshold if g < -threshold else 0.0


def test_sora_s_gates_take_the_proximal_step_at_the_step_s_own_rate() -> None:
    model = Layered(False)
    plan = plan_of_first(model, "sora", sparsity=20.0)
    with adaptation_for(plan, model, seed=1) as adaptation:
        (tuned,) = adapters_of(adaptation.begin_stage(0, 5))
        with torch.no_grad():
            tuned.gate.copy_(torch.tensor([0.5, -0.5, 0.15, -0.05]))
        for rate in (1e-2, 5e-3, 0.0):
            wanted = [soft_threshold(g, 20 * rate) for g in tuned.gate.tolist()]
            adaptation.after_step(False, rate)
            assert tuned.gate.tolist() == pytest.approx(wanted, rel=1e-12)
        before = tuned.gate.detach().clone()
        adaptation.after_step(True, 1e-2)  # a step that a loss scaler has refused
        assert torch.equal(tuned.gate, before)
        assert tuned.gate.tolist() == pytest.approx([0.2, -0.2, 0.0, 0.0])
        adaptation.end_stage()
        ((A, B),) = adaptation.factors().values()
        assert (A.shape, B.shape) == ((2, 6), (7, 2))  # closed gates are left out


def test_sora_without_an_open_gate_has_no_update_left() -> None:
    model = Layered(False)
    x = torch.randn(4, 6, dtype=torch.float64)
    plan = plan_of_first(model, "sora", sparsity=1e6)
    with adaptation_for(plan, model, seed=1) as adaptation:
        filled(adaptation.begin_stage(0, 5))
        adaptation.after_step(False, 1e-2)
        adaptation.end_stage()
        y = model(x)
        assert adaptation.factors() == {}
        assert adaptation.merged() == {}
    assert torch.equal(y, model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gates_close_for_good_in_the_engine_s_masters_too(
    dtype: torch.dtype, stage: int, alone: Workers
) -> None:
    model = tiny_bert(dtype)

    def step_by_step(sparsity: float) -> list[torch.Tensor]:
        found = []
        plan = plan_of(model, "bert", "sora", sparsity=sparsity)
        with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:

            def look(_step: int) -> None:
                gates = [tuned.gate.detach() for tuned in tuners_of(adaptation)]
                found.append(torch.cat(gates).float().clone())

            finetune(
                model, adaptation, tiny_task(), SETTINGS, learning_rate=1e-2, seed=3,
                workers=alone, deepspeed={"zero_optimization": {"stage": stage}},
                observer=hearing(on_step=look),
            )  # fmt: skip
        return found

    free, sparse = step_by_step(0.0), step_by_step(30.0)
    assert all(bool(gates.all()) for gates in free)
    # 0.3 at the first step: were the masters left alone, the next step would bring it back
    assert (sparse[0] == 0).sum() > 3
    norms = [float(gates.abs().sum()) for gates in sparse]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.4 * norms[0]
    # at the first step, where both have made the same gradient step
    wanted = torch.tensor([soft_threshold(float(g), 0.3) for g in free[0]])
    close = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(sparse[0], wanted, rtol=close, atol=close)
