"""Baselines on the singular values of the base's weights: LoRA-XS, MiLoRA, PiSSA, LoRA-Dash.

W [out, in] = U diag(S) V^T, singular values descending. The first three take components that are
found once for all trials on a base (decompositions.py).

LoRA-XS (Balazy et al., 2024, section 3) trains a matrix R [r, r] between two frozen ones, which are
the r largest singular components; the paper writes h = x W, so that its A is on our right:

    W + (alpha / r) B R A,    B = U_r,    A = diag(S_r) V_r^T

R starts at 0 and not, as in the paper, at N(0, 1e-5^2): R alone trains, so that its gradient does
not vanish there, and a trial starts from the base itself.

MiLoRA (Wang et al., 2024, Eqs. 4 to 6) starts LoRA from the r smallest components and freezes the
others; PiSSA (Meng et al., 2024, Eqs. 2 to 4) does so from the r largest ones:

    W + B A - B_0 A_0,    B_0 = U_m diag(S_m)^(1/2),    A_0 = diag(S_m)^(1/2) V_m^T

What is frozen is written as W less the start, so that no copy of W is needed and a trial starts
from the base itself.

LoRA-Dash (Si et al., 2024, section 4) trains LoRA alone for some steps (pre-launch), then finds the
task's directions, the s singular directions of W with the largest change rate

    delta_i = |u_i^T dW v_i| / (sigma_i + eps),    dW = (alpha / r) B A,

and trains a change c_i of their singular values along with LoRA (dash):

    W + (alpha / r) B A + sum_i c_i u_i v_i^T,    c = 0 at the launch

Any direction may be chosen, so that every weight is decomposed at every trial's launch: all
components of a base take more than twice the memory of its weights.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import nn
from torch.nn.functional import linear

from spaces.target import TargetModule
from trainables.adaptations.adaptation import Factors
from trainables.adaptations.baselines.decompositions import (
    Components,
    largest_components,
    singular_components,
    smallest_components,
)
from trainables.adaptations.baselines.factors import FactorAdaptation, FactorTuner
from trainables.adaptations.baselines.tuner import take_from_first_worker

EPSILON = 1e-6  # of LoRA-Dash's change rate: a direction that W lacks divides by nearly nothing


class LoraXsTuner(FactorTuner):
    """A small matrix R between two frozen factors."""

    def __init__(
        self, A: torch.Tensor, R: nn.Parameter, B: torch.Tensor, scale: float, dropout: float
    ) -> None:
        super().__init__(dropout)
        self.R, self.scale = R, scale
        self.constants = {"A": A, "B": B}

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B = self.constants["A"], self.constants["B"]
        inner = linear(linear(self.dropped(x).to(A.dtype), A), self.R)
        return linear(inner, B) * self.scale

    def factors(self) -> Factors:
        R = self.R.double()
        return self.constants["A"], self.constants["B"].double() @ R * self.scale


class LoraXsAdaptation(FactorAdaptation[LoraXsTuner]):
    """LoRA-XS on every target module."""

    def _tuned(self, target: TargetModule, fresh: bool) -> LoraXsTuner:
        (out, in_), rank = target.shape, self._settings["rank"]
        A, B = torch.zeros(rank, in_), torch.zeros(out, rank)
        if fresh:
            of = largest_components(self._model, *self._named_weight(target), rank)
            A, B = of.S[:, None] * of.Vt, of.U
        R = self._parameter(torch.zeros(rank, rank))
        scale = self._settings["alpha"] / rank
        return LoraXsTuner(self._placed(A), R, self._placed(B), scale, self._dropout)


class StartedTuner(FactorTuner):
    """Two factors less what they started from; `names` are those of A and B among the weights."""

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, names: tuple[str, str], dropout: float
    ) -> None:
        super().__init__(dropout)
        self._names = names
        for name, factor in zip(names, (A, B), strict=True):
            self.register_parameter(name, factor)
        self.constants = {"initial_A": A.detach().clone(), "initial_B": B.detach().clone()}

    @property
    def trained(self) -> Factors:
        """A and B as they are now."""
        A, B = (self.get_parameter(name) for name in self._names)
        return A, B

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B = self.trained
        x = x.to(A.dtype)
        start = linear(linear(x, self.constants["initial_A"]), self.constants["initial_B"])
        return linear(linear(self.dropped(x), A), B) - start

    def factors(self) -> Factors:
        A, B = self.trained
        return (
            torch.cat([A, self.constants["initial_A"]]),
            torch.cat([B, -self.constants["initial_B"]], dim=1),
        )


class StartedAdaptation(FactorAdaptation[StartedTuner]):
    """Two factors that start from singular components, on every target module."""

    _names = ("A", "B")

    @abstractmethod
    def _components(self, target: TargetModule, rank: int) -> Components:
        """Those that the factors of a module start from."""

    def _tuned(self, target: TargetModule, fresh: bool) -> StartedTuner:
        (out, in_), rank = target.shape, self._settings["rank"]
        A, B = torch.zeros(rank, in_), torch.zeros(out, rank)
        if fresh:
            of = self._components(target, rank)
            root = of.S.sqrt()
            A, B = root[:, None] * of.Vt, of.U * root
        return StartedTuner(self._parameter(A), self._parameter(B), self._names, self._dropout)


class MiloraAdaptation(StartedAdaptation):
    """MiLoRA: from the smallest components."""

    def _components(self, target: TargetModule, rank: int) -> Components:
        return smallest_components(self._model, *self._named_weight(target), rank)


class PissaAdaptation(StartedAdaptation):
    """PiSSA: from the largest components."""

    _names = ("lora_A", "lora_B")

    def _components(self, target: TargetModule, rank: int) -> Components:
        return largest_components(self._model, *self._named_weight(target), rank)


class LoraDashTuner(FactorTuner):
    """Two factors, and a coefficient for each of some singular directions of the weight.

    Before the launch the directions are zero, so that the coefficients get no gradient and stay.
    """

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, coefficients: nn.Parameter, scale: float,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__(dropout)
        self.A, self.B, self.coefficients, self.scale = A, B, coefficients, scale
        out, in_, directions = len(B), A.shape[1], len(coefficients)
        self.constants = {
            "left": A.new_zeros(out, directions).detach(),
            "right": A.new_zeros(directions, in_).detach(),
        }

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.dropped(x).to(self.A.dtype)
        along = self.coefficients * linear(x, self.constants["right"])
        lora = linear(linear(x, self.A), self.B) * self.scale
        return lora + linear(along, self.constants["left"])

    @torch.no_grad()
    def launch(self, weight: torch.Tensor) -> None:
        """Choose the directions by the change that the two factors make now."""
        of = singular_components(weight)
        B, A = self.B.to(of.U.dtype), self.A.to(of.U.dtype)
        # u_i^T B A v_i for every i, without the matrix B A
        change = self.scale * ((of.U.T @ B) * (of.Vt @ A.T)).sum(1)
        rate = change.abs() / (of.S + EPSILON)
        chosen = torch.topk(rate, len(self.coefficients)).indices
        self.constants["left"].copy_(of.U[:, chosen])
        self.constants["right"].copy_(of.Vt[chosen])

    def factors(self) -> Factors:
        left = self.constants["left"] * self.coefficients
        return (
            torch.cat([self.A, self.constants["right"]]),
            torch.cat([self.B * self.scale, left], dim=1),
        )


class LoraDashAdaptation(FactorAdaptation[LoraDashTuner]):
    """LoRA-Dash: the launch comes after a share of the steps, but at least one."""

    def _tuned(self, target: TargetModule, fresh: bool) -> LoraDashTuner:
        A, B = self._lora_factors(target)
        coefficients = self._parameter(torch.zeros(self._settings["directions"]))
        scale = self._settings["alpha"] / self._settings["rank"]
        return LoraDashTuner(A, B, coefficients, scale, self._dropout)

    def _build(self, fresh: bool) -> None:
        super()._build(fresh)
        launch = math.floor(self._settings["launch_share"] * self._steps + 0.5)
        self._steps_to_launch = max(launch, 1)

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        self._steps_to_launch -= 1
        if self._steps_to_launch == 0:
            for name, tuned in self.tuners.items():
                tuned.launch(self._weight(name))
            take_from_first_worker(self._constants.values())
