"""LoRA and AdaLoRA as the trained parameters of a fine-tuning editor; peft makes the adapters."""

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from peft import AdaLoraConfig, AdaLoraModel, LoraConfig, LoraModel, TaskType, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from kedit.common.errors import InputError, first_line
from kedit.common.options import Amount, Count, CountOrNone, Name, Rank, ShareBelowOne
from kedit.editors.finetune.adapter_holders import NAME, PeftAdapter, VariantAdapter
from kedit.lm import LM
from kedit.lm.dropout import EditDropout
from kedit.lm.matrices import is_matrix, widths_of
from kedit.lm.saving import no_adapter


@dataclass(kw_only=True, eq=False)
class LoRA:
    """Low-rank changes of `target_modules` (default: peft's choice for the architecture, mostly q_proj and v_proj;
    "all-linear": every linear module but the head).

    `merge`: after each edit the change is added to the weights and the next edit has a new adapter (KDPO's code);
    otherwise one adapter stays in the model and every edit trains it on (EasyEdit).
    """

    rank: Rank
    alpha: Count
    dropout: ShareBelowOne = 0.0
    target_modules: Sequence[Name] | Name | None = None
    merge: bool = False
    _held: PeftAdapter | VariantAdapter | None = field(default=None, init=False, repr=False)
    _matrices: "WeakKeyDictionary[nn.Module, list[str] | None]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def open(
        self, lm: LM, layers: Sequence[int] | None, single: bool = True, by_edit: bool = False
    ) -> dict[str, nn.Parameter]:
        """The adapter's parameters, ready to be trained; put into the model if it has none. `single`: in float32,
        whatever the model's precision. `by_edit`: dropout's draws are each edit's own (kedit.lm.dropout)."""
        if self._held is None:
            self._attach(lm, layers, single)
        if isinstance(self._held, PeftAdapter):
            for layer in self._held.layers.values():
                if by_edit and self.dropout:
                    layer.lora_dropout[NAME] = EditDropout(lm.dropping, self.dropout)
                layer.lora_dropout.train()
        return self._adapted()

    def stepped(self, step: int) -> None:
        """Called after each optimiser step, while the gradients are there."""

    def regulariser(self) -> Float[Tensor, ""] | None:
        """What training adds to the loss; None: nothing."""
        return None

    def close(self, lm: LM) -> None:
        """The edit is made."""
        if isinstance(self._held, PeftAdapter):
            for layer in self._held.layers.values():
                layer.lora_dropout.eval()
        if not all_finite(list(self._adapted().values())):
            raise FloatingPointError("an edit left an adapter that is not finite")
        if self.merge and self._held is not None:
            self._merge(lm)

    def abandon(self, lm: LM) -> None:
        """The edit has failed: a new adapter is taken out; one that stays is restored by the caller."""
        if self.merge and self._held is not None:
            self._detach(lm)

    def fork(self) -> "LoRA":
        """An adapter of the same kind, not yet in a model."""
        other = copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """`lm.restore` has taken the adapter out."""
        self._held = None

    def state(self) -> dict[str, Tensor]:
        """The adapter that stays in the model."""
        return {name: p.detach().clone() for name, p in self._adapted().items()}

    @torch.no_grad()
    def load_state(self, lm: LM, layers: Sequence[int] | None, state: Mapping[str, Tensor]) -> None:
        """The adapter as it was saved; none if there was none."""
        if not state:
            self.reset()
            return
        if self._held is None:
            self._attach(lm, layers, single=False)
        parameters = self._adapted()
        for name, value in state.items():
            parameter = parameters[name]  # in its own precision: it was trained in float32
            parameter.data = value.to(parameter.device, copy=True)

    # --- side by side ------------------------------------------------------------------------------------------------

    side_by_side: ClassVar[bool] = True  # can it be held for several variants of a model?

    def variant_bytes(self, lm: LM, layers: Sequence[int] | None) -> int:
        """What the adapter of one variant needs: five numbers an entry (see Tuner.variant_bytes); if it is merged, the
        changed matrices. More than any machine has where a part of the model is adapted that is no matrix."""
        matrices = self._targets(lm, layers)
        if matrices is None:
            return sys.maxsize
        entries = sum(self.rank * sum(widths_of(lm.model.get_submodule(name))) for name in matrices)
        weights = [lm.parameter(f"{name}.weight") for name in matrices]
        merged = sum(weight.numel() * max(4, weight.element_size()) for weight in weights)
        return 5 * 4 * entries + (merged if self.merge else 0)

    def _targets(self, lm: LM, layers: Sequence[int] | None) -> list[str] | None:
        """The matrices that peft would adapt, seen once by letting it; None if it would also adapt something else."""
        if lm.model not in self._matrices:
            trial = PeftAdapter(lm, self._wrap_checked(lm, layers))
            names = list(trial.layers)
            trial.remove()
            matrices = all(is_matrix(lm.model.get_submodule(name)) for name in names)
            self._matrices[lm.model] = names if matrices else None
        return self._matrices[lm.model]

    def save(self, folder: Path) -> None:
        """The adapter that is in the model, as peft writes one: `PeftModel.from_pretrained` loads the folder, and
        `AutoPeftModelForCausalLM.from_pretrained` loads it with its base model. The same bytes in every process."""
        assert isinstance(self._held, PeftAdapter), "no adapter is in the model"
        config = copy(self._held.tuner.peft_config[NAME])
        config.task_type, config.inference_mode = TaskType.CAUSAL_LM, True
        config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
        config.save_pretrained(folder)
        state = get_peft_model_state_dict(self._held.tuner, adapter_name=NAME, save_embedding_layers=False)
        named = {f"base_model.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(named, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})

    # --- with peft ---------------------------------------------------------------------------------------------------

    def _config(self, lm: LM, layers: Sequence[int] | None) -> LoraConfig:
        return LoraConfig(r=self.rank, **self._shared(lm, layers))

    def _shared(self, lm: LM, layers: Sequence[int] | None) -> dict[str, Any]:
        targets = self.target_modules or None
        if not isinstance(targets, str | None):
            targets = list(targets)
        chosen = list(layers) if layers else None
        return {
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets,
            "layers_to_transform": chosen,
            **base_model(lm),
        }

    def _wrap(self, lm: LM, config: LoraConfig) -> Any:
        return LoraModel(lm.model, config, NAME)

    def _wrap_checked(self, lm: LM, layers: Sequence[int] | None) -> Any:
        try:
            with torch.random.fork_rng(devices=[]):  # peft draws initial values
                return self._wrap(lm, self._config(lm, layers))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"editor.adapter does not fit ({first_line(error)}); change {self}") from error

    def _attach(self, lm: LM, layers: Sequence[int] | None, single: bool) -> None:
        if lm.variants is not None:
            matrices = self._targets(lm, layers)
            assert matrices is not None, "variant_bytes has said that this adapter does not go side by side"
            dtype = torch.float32 if single else lm.dtype
            self._held = VariantAdapter(lm, matrices, self.rank, self.alpha / self.rank, self.dropout, dtype)
        else:
            self._held = PeftAdapter(lm, self._wrap_checked(lm, layers))
            lm.save_adapter = self.save
        parameters = self._adapted()
        for parameter in parameters.values() if single else ():
            parameter.data = parameter.data.float()
        self._begin(parameters)
        if not self.merge:
            lm.on_restore(lambda: self._detach(lm), list(parameters))

    @torch.no_grad()
    def _begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Initial values, as peft has them (B is zero), but drawn from the CPU's generator, matrix after matrix: the
        same on every device, and side by side."""
        for name, parameter in parameters.items():
            if "lora_A" in name:
                drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=5**0.5)
                parameter.copy_(drawn)

    def _detach(self, lm: LM) -> None:
        """The model's own modules again."""
        if self._held is not None:
            self._held.remove()
        lm.save_adapter = no_adapter
        self._held = None

    def _merge(self, lm: LM) -> None:
        assert self._held is not None, "no adapter is in the model"
        self._held.merge()
        lm.save_adapter = no_adapter
        self._held = None

    def _adapted(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters, by their names in the model."""
        return {} if self._held is None else self._held.parameters()


@dataclass(kw_only=True, eq=False)
class AdaLoRA(LoRA):
    """LoRA as B · diag(E) · A, whose rank per matrix falls from `init_rank` to `rank` on average (arXiv 2303.10512).

    `total_steps` is the length of the training; ranks fall from step `warmup_steps` on, every `every` steps, until
    `final_steps` before the end. Without total_steps, as in EasyEdit's code, the allocator is never called: every
    matrix keeps `init_rank`. The loss gets peft's penalty that keeps A and B orthogonal, times `orthogonality`.
    """

    init_rank: Rank = 12
    total_steps: Count | None = None
    warmup_steps: CountOrNone = 0
    final_steps: CountOrNone = 0
    every: Count = 1
    orthogonality: Amount = 0.5

    side_by_side: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.total_steps is not None and self.warmup_steps + self.final_steps >= self.total_steps:
            raise InputError(
                f"editor.adapter.warmup_steps={self.warmup_steps} and final_steps={self.final_steps} leave no step of "
                f"total_steps={self.total_steps} in which ranks can fall; lower them, or train for more steps"
            )

    def stepped(self, step: int) -> None:
        if self.total_steps is not None:
            self._peft.tuner.update_and_allocate(step)

    def regulariser(self) -> Float[Tensor, ""]:
        named = [(name, p) for name, p in self._adapted().items() if "lora_A" in name or "lora_B" in name]
        grams = [p @ p.T if "lora_A" in name else p.T @ p for name, p in named]
        distances = [torch.linalg.norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype)) for g in grams]
        return self.orthogonality * torch.stack([d.to(distances[0].device) for d in distances]).mean()

    def ranks(self) -> list[int]:
        """How many singular values of each adapted matrix are not zero."""
        return [int((layer.lora_E[NAME] != 0).sum()) for layer in self._peft.layers.values()]

    @property
    def _peft(self) -> PeftAdapter:
        assert isinstance(self._held, PeftAdapter), "no adapter is in the model"
        return self._held

    def _begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Initial values are peft's."""

    def _config(self, lm: LM, layers: Sequence[int] | None) -> LoraConfig:
        steps: dict[str, Any] = {"tinit": 0, "tfinal": 0, "total_step": 1}  # the allocator is never called
        if self.total_steps is not None:
            steps = {"tinit": self.warmup_steps, "tfinal": self.final_steps, "total_step": self.total_steps}
        return AdaLoraConfig(
            init_r=self.init_rank, target_r=self.rank, deltaT=self.every, **steps, **self._shared(lm, layers)
        )

    def _wrap(self, lm: LM, config: LoraConfig) -> Any:
        made = AdaLoraModel(lm.model, config, NAME)
        if self.total_steps is not None and len({p.device for n, p in made.named_parameters() if "lora_" in n}) > 1:
            made.unload()
            raise InputError(
                "AdaLoRA's rank allocator (peft) needs all adapted layers on one device; load the model on one, choose "
                "editor.layers there, or use editor=adalora_released, which keeps every rank"
            )
        return made


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Asked of the device once."""
    device = tensors[0].device
    return bool(torch.stack([tensor.isfinite().all().to(device) for tensor in tensors]).all())


def base_model(lm: LM) -> dict[str, str | None]:
    """Where an adapter's base model is found from any folder: an absolute path, or a hub id with its commit."""
    name = str(getattr(lm.model.config, "name_or_path", ""))
    if name and Path(name).is_dir():
        return {"base_model_name_or_path": str(Path(name).resolve()), "revision": None}
    return {"base_model_name_or_path": name, "revision": getattr(lm.model.config, "_commit_hash", None)}
