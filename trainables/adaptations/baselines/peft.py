"""The baselines that PEFT trains: rsLoRA, DoRA, AdaLoRA, IA3 and VeRA, on a base left as it is.

PEFT builds its layers around shallow copies of the target modules, which hold the base's own
Parameters; while attached, a module of the base forwards to the layer around its copy. The base's
module tree, its Parameters and its configuration stay what they are.

With W [out, in], A [r, in], B [out, r]:

rsLoRA (Kalajdzievski, 2023):    W + (alpha / sqrt(r)) B A
DoRA (Liu et al., 2024, Eq. 5):  m V / ||V||,  V = W + (alpha / r) B A, norms of rows, m = ||W|| at
                                 first; the norm is a constant for the gradient (section 4.3)
AdaLoRA (Zhang et al., 2023, Eqs. 3 to 12):  W + (alpha / r) B diag(E) A; the least important
                                 entries of E, of all modules together, are masked to a budget
IA3 (Liu et al., 2022, section 3.3):  l * (W x + b), or W (l * x) + b where the input is scaled
VeRA (Kopiczko et al., 2024, Eq. 2):  W + diag(b) B diag(d) A, with A, B drawn once for all modules
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import peft
import torch
from peft.tuners import AdaLoraModel, IA3Model, LoraModel, VeraModel
from peft.tuners.adalora.layer import RankAllocator
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.errors import UsageError
from trainables.adaptations.adaptation import Factors, Part, stage_seed
from trainables.adaptations.baselines.tuner import TunerAdaptation
from trainables.adaptations.lora_config import PREFIX
from trainables.bases.loading import seeded
from trainables.engine.masters import at_least_float, full_gradient, rewrite

ADAPTER = "default"


class PeftAdaptation(TunerAdaptation):
    """PEFT's layers of one kind on every target module."""

    _tuner_class: type[BaseTuner] = LoraModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers: dict[str, Any] = {}
        self._skeleton = nn.ModuleDict()
        self._routed: list[nn.Module] = []
        self._dropouts: list[nn.Dropout] = []

    @abstractmethod
    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        """PEFT's config for target modules called `names[target]`."""

    def _build(self, fresh: bool) -> None:
        # Names of its own: PEFT takes a name also for the end of a longer one.
        names = {name: f"m{i}" for i, name in enumerate(self._targets)}
        self._skeleton = nn.ModuleDict(
            {key: _shallow_copy(self._model.get_submodule(name)) for name, key in names.items()}
        )
        config = self._config(names, fresh)
        with seeded(stage_seed(self._seed, 0)), warnings.catch_warnings():
            # PEFT warns that it finds by itself how a layer stores its weight.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            self._tuner_class(self._skeleton, config, ADAPTER)
        self._layers = {name: self._skeleton[key] for name, key in names.items()}
        self.trained, self._constants = {}, {}
        for name, layer in self._layers.items():
            for path, parameter in layer.named_parameters():
                part = path.partition(".")[0]
                # In 16 bits PEFT would also train AdaLoRA's ranknum, which is none of its names.
                parameter.requires_grad_(part in layer.adapter_layer_names)
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(self._dtype).contiguous()
                    self.trained[f"{name}/{part}"] = parameter
        self._dropouts = [
            module for module in self._skeleton.modules() if isinstance(module, nn.Dropout)
        ]

    def _put_in_place(self) -> None:
        for name, layer in self._layers.items():
            for alias in self._targets[name].names:
                resident = self._model.get_submodule(alias)
                if resident in self._routed:  # one module under two names
                    continue
                own = layer if alias == name else self._beside(layer, resident)
                # The module stays in its place in the base; a call of it runs PEFT's layer.
                resident.forward = own.forward
                self._routed.append(resident)

    def _beside(self, layer: Any, resident: nn.Module) -> Any:
        """The same adapter around another layer on the same matrix, which has its own bias."""
        beside = _shallow_copy(layer)
        beside.base_layer = _shallow_copy(resident)
        return beside

    def _registered(self) -> Sequence[nn.Module]:
        return [*super()._registered(), *self._dropouts]

    def eval(self) -> None:
        for dropout in self._dropouts:
            dropout.eval()

    def detach(self) -> None:
        for resident in self._routed:
            del resident.forward
        self._routed = []

    def _freeze(self) -> None:
        super()._freeze()
        for dropout in self._dropouts:
            dropout.p = 0.0

    def _lora_settings(self, names: Mapping[str, str]) -> dict[str, Any]:
        return {
            "target_modules": list(names.values()),
            "r": self._settings["rank"],
            "lora_dropout": self._dropout,
        }

    def _part(self, name: str, part: str) -> torch.Tensor:
        """A trained tensor or a constant of a module, float64 on the CPU."""
        place = f"{name}/{part}"
        tensor = self.trained[place] if place in self.trained else self._constants[place]
        return tensor.detach().double().cpu()

    def _saved_parts(self, **keys: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """PEFT's config, and the trained parts that it saves, each under the key that it gives it.

        Every layer that uses a target's matrix has them under its own name.
        """
        aliases = {alias: name for name in self._layers for alias in self._targets[name].names}
        config: Any = self._config({alias: alias for alias in aliases}, fresh=True)
        config.fan_in_fan_out = any(
            isinstance(self._model.get_submodule(name), Conv1D) for name in self._targets
        )
        plain = {  # as the file has it
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
        }
        return plain, {
            f"{PREFIX}{alias}.{key}": self.trained[f"{name}/{part}"].detach()
            for alias, name in aliases.items()
            for part, key in keys.items()
        }


class RsloraAdaptation(PeftAdaptation):
    """rsLoRA: LoRA whose scale is alpha / sqrt(rank)."""

    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        return peft.LoraConfig(
            **self._lora_settings(names), lora_alpha=self._settings["alpha"], use_rslora=True
        )

    def factors(self) -> dict[str, Factors]:
        scale = self._settings["alpha"] / math.sqrt(self._settings["rank"])
        return {
            name: (self._part(name, "lora_A"), self._part(name, "lora_B") * scale)
            for name in self._layers
        }


class DoraAdaptation(PeftAdaptation):
    """DoRA: a low-rank update of the direction of every row, and the row's length."""

    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        return peft.LoraConfig(
            **self._lora_settings(names), lora_alpha=self._settings["alpha"], use_dora=True
        )

    def factors(self) -> dict[str, Factors]:
        raise UsageError(
            "method: dora scales every row of a weight after its update, which is not of low "
            "rank; use --to merged, or --to peft for PEFT's own checkpoint of DoRA"
        )

    def updates(self) -> dict[str, torch.Tensor]:
        scale, found = self._settings["alpha"] / self._settings["rank"], {}
        for name in self._layers:
            weight = self._weight(name).double().cpu()
            V = weight + scale * self._part(name, "lora_B") @ self._part(name, "lora_A")
            magnitude = self._part(name, "lora_magnitude_vector")
            found[name] = (magnitude / V.norm(dim=1))[:, None] * V - weight
        return found

    def peft_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The config and the tensors that PEFT saves for this adapter."""
        return self._saved_parts(
            lora_A="lora_A.weight",
            lora_B="lora_B.weight",
            lora_magnitude_vector="lora_magnitude_vector",
        )


class AdaloraAdaptation(PeftAdaptation):
    """AdaLoRA: after a step, the entries of E that matter least are masked to the step's budget.

    Budgets fall from the initial rank to `rank` per module between the shares of the steps that
    the plan gives, as PEFT's schedule has it, steps counted from 1. The final pattern is in force
    at the last step, however few there are.
    """

    _tuner_class = AdaLoraModel

    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        steps = max(self._steps, 1)
        settled = min(math.floor(self._settings["final_share"] * steps), steps - 1)
        before = math.floor(self._settings["initial_share"] * steps)
        return peft.AdaLoraConfig(
            target_modules=list(names.values()),
            init_r=self._settings["initial_rank"],
            target_r=self._settings["rank"],
            lora_alpha=self._settings["alpha"],
            lora_dropout=self._dropout,
            total_step=steps,
            tinit=min(before, steps - settled - 1),
            tfinal=settled,
            deltaT=self._settings["interval"],
        )

    def _build(self, fresh: bool) -> None:
        super()._build(fresh)
        config: Any = self._skeleton.peft_config[ADAPTER]  # type: ignore[index]
        self._allocator = _Allocator(self._skeleton, config, ADAPTER)

    def penalty(self) -> torch.Tensor | None:
        """orthogonal_weight times the mean of ||A A^T - I|| and ||B^T B - I|| (Eq. 4)."""
        if self._settings["orthogonal_weight"] == 0:
            return None
        norms = []
        for layer in self._layers.values():
            A, B = at_least_float(layer.lora_A[ADAPTER]), at_least_float(layer.lora_B[ADAPTER])
            for gram in (A @ A.T, B.T @ B):
                identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                norms.append(torch.linalg.norm(gram - identity))
        return torch.stack(norms).mean() * float(self._settings["orthogonal_weight"])

    def after_backward(self, engine: Any) -> None:
        super().after_backward(engine)
        self._allocator.gradients = {}
        if self._allocator.measures_next:
            self._allocator.gradients = {
                name: full_gradient(engine, parameter)
                for name, parameter in self._skeleton.named_parameters()
                if parameter.requires_grad
            }

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        kept = self._allocator.step(self._skeleton, measure=not skipped)
        parameters = dict(self._skeleton.named_parameters())
        for name, pattern in (kept or {}).items():
            masked = ~torch.tensor(pattern, device=self._device)[:, None]
            mask = partial(torch.masked_fill, mask=masked, value=0.0)
            rewrite(self._engine, parameters[name], mask)

    def factors(self) -> dict[str, Factors]:
        """Those of the ranks that are not masked."""
        found = {}
        for name, layer in self._layers.items():
            A, E, B = (self._part(name, f"lora_{part}") for part in "AEB")
            kept = E[:, 0] != 0
            rank = float(layer.ranknum[ADAPTER] + 1e-5)  # PEFT's own guard against rank 0
            scale = self._settings["alpha"] / rank
            if kept.any():
                found[name] = ((E * A)[kept], B[:, kept] * scale)
        return found


class _Allocator(RankAllocator):
    """PEFT's allocation of ranks, fed with gradients that are averaged over workers.

    Importance is kept in float32 at least.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gradients: dict[str, torch.Tensor] = {}
        self._done = 0
        self._informed = False  # whether any entry has ever mattered: not at a learning rate of 0
        self._final: dict[str, list[bool]] | None = None

    @property
    def _last_allocation(self) -> int:
        return int(self.peft_config.total_step - self.peft_config.tfinal)

    @property
    def measures_next(self) -> bool:
        """Whether the next step's gradients matter."""
        return self._done + 1 < self._last_allocation or not self._informed

    def step(self, model: nn.Module, measure: bool) -> dict[str, list[bool]] | None:
        """After an optimizer step: which entries of E are to be kept, None for all of them."""
        if measure and self.measures_next:
            self.update_ipt(model)
        self._done += 1
        if self.target_bgt == self.init_bgt or not self._informed:
            return None
        if self._done < self._last_allocation:
            budget, allocates = self.budget_schedule(self._done)
            return self.mask_to_budget(model, budget) if allocates else None
        if self._final is None:
            self._final = self.mask_to_budget(model, self.target_bgt)
        return self._final

    @torch.no_grad()
    def update_ipt(self, model: nn.Module) -> None:
        """Smoothed sensitivity and its uncertainty, of every entry (Eqs. 8 to 10)."""
        for name, parameter in model.named_parameters():
            if name not in self.gradients:
                continue
            ipt = (at_least_float(parameter) * self.gradients[name]).abs()
            mean = self.exp_avg_ipt.get(name, torch.zeros_like(ipt))
            spread = self.exp_avg_unc.get(name, torch.zeros_like(ipt))
            self.exp_avg_ipt[name] = self.beta1 * mean + (1 - self.beta1) * ipt
            self._informed = self._informed or bool(ipt.any())
            distance = (ipt - self.exp_avg_ipt[name]).abs()
            self.exp_avg_unc[name] = self.beta2 * spread + (1 - self.beta2) * distance


class Ia3Adaptation(PeftAdaptation):
    """IA3: a factor on every output of a module, or on every input; it has no dropout."""

    _tuner_class = IA3Model

    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        return peft.IA3Config(
            target_modules=list(names.values()),
            feedforward_modules=[
                key for name, key in names.items() if self._scales_input(self._owner(name))
            ],
        )

    def factors(self) -> dict[str, Factors]:
        raise UsageError(
            "method: ia3 multiplies the rows or columns of a weight, which is no low-rank update; "
            "use --to merged, or --to peft for PEFT's own checkpoint of IA3"
        )

    def merged(self) -> dict[str, torch.Tensor]:
        changed = {}
        for name in self._layers:
            scales = self._part(name, "ia3_l")  # [1, in] or [out, 1]
            layer: Any = self._model.get_submodule(name)
            laid_out = scales.T if isinstance(layer, Conv1D) else scales
            changed[f"{name}.weight"] = _scaled(layer.weight, laid_out)
            if self._scales_input(name):
                continue
            for alias in self._targets[name].names:
                bias: Any = self._model.get_submodule(alias).bias
                if bias is not None:
                    changed[f"{alias}.bias"] = _scaled(bias, scales[:, 0])
        return changed

    def peft_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The config and the tensors that PEFT saves for this adapter."""
        return self._saved_parts(ia3_l="ia3_l")

    def _scales_input(self, name: str) -> bool:
        return name in json.loads(self._settings["input_modules"])

    def _owner(self, alias: str) -> str:
        """The target module that a layer's name belongs to."""
        return next(name for name, t in self._targets.items() if alias in t.names)


def _scaled(tensor: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (tensor.detach().double().cpu() * scales).to(tensor.dtype)


class VeraAdaptation(PeftAdaptation):
    """VeRA: two vectors per module that scale one random pair of factors."""

    _tuner_class = VeraModel

    def _config(self, names: Mapping[str, str], fresh: bool) -> peft.PeftConfig:
        return peft.VeraConfig(
            target_modules=list(names.values()),
            r=self._settings["rank"],
            d_initial=self._settings["initial"],
            vera_dropout=self._dropout,
            projection_prng_key=stage_seed(self._seed, 0),
            save_projection=True,
        )

    def _build(self, fresh: bool) -> None:
        super()._build(fresh)
        layer = next(iter(self._layers.values()))
        for name in ("vera_A", "vera_B"):
            shared = getattr(layer, name)
            shared[ADAPTER] = shared[ADAPTER].to(self._dtype)
            self._constants[name] = shared[ADAPTER]

    def factors(self) -> dict[str, Factors]:
        A, B = (self._constants[f"vera_{factor}"].double().cpu() for factor in "AB")
        found = {}
        for name in self._layers:
            out, in_ = self._targets[name].shape
            d, b = self._part(name, "vera_lambda_d"), self._part(name, "vera_lambda_b")
            found[name] = (d[:, None] * A[:, :in_], b[:, None] * B[:out])
        return found

    def parts(self) -> dict[str, list[Part]]:
        raise UsageError(
            "method: vera keeps two vectors per module, which ranks that are cut would not make "
            "fewer; export it whole"
        )


def _shallow_copy(module: Any) -> Any:
    """A module of its own that holds the same Parameters, buffers and children, but no hooks.

    The hooks are those of the module whose call comes first.
    """
    twin = copy.copy(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        setattr(twin, kind, dict(getattr(module, kind)))
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(twin, kind, type(getattr(module, kind))())
    return twin
