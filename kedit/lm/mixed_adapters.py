"""Saved low-rank adapters in the model, each switched on for some rows of a batch: peft's mixed-adapter batches."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel

from kedit.common.errors import InputError, first_line
from kedit.lm.check import check_adapter
from kedit.lm.hooks import hook

BASE = "__base__"  # peft's name for the model without any adapter


class MixedAdapters:
    """Low-rank adapters by name. None of them is active but inside `reading`."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._inside: PeftModel | None = None
        self._layers: list[Any] = []

    def __contains__(self, name: str) -> bool:
        return self._inside is not None and name in self._inside.peft_config

    @property
    def active(self) -> bool:
        return self._inside is not None

    def add(self, name: str, folder: Path) -> None:
        """From a folder in peft's form. Raises InputError if it is none, not whole, not LoRA's, or of another model."""
        before = self._lora_layers()
        try:
            if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
                raise FileNotFoundError(f"there is no {SAFETENSORS_WEIGHTS_NAME}")
            kind = PeftConfig.from_pretrained(str(folder)).peft_type
            if kind != "LORA":
                raise InputError(f"{folder}: an adapter of type {kind}; only LoRA's can share a batch with the model")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft only warns of missing tensors; they are refused below
                self._inside = self._with(name, str(folder)).eval()
            check_adapter(self._inside, name, folder)
        except InputError:
            self.remove()
            raise
        except Exception as error:  # whatever peft raises for files that it cannot read, or that do not fit
            self.remove()
            self._remove_all_but(before)
            raise InputError(
                f"{folder}: no adapter that fits this model ({first_line(error)}); give a folder that peft has saved "
                "for it"
            ) from error
        self._layers = list(self._lora_layers().values())
        for layer in self._layers:
            layer.set_adapter([], inference_mode=True)

    def _with(self, name: str, folder: str) -> PeftModel:
        if self._inside is None:
            return PeftModel.from_pretrained(self._model, folder, adapter_name=name)
        self._inside.load_adapter(folder, name)
        return self._inside

    def remove(self) -> None:
        """The model's own modules again."""
        if self._inside is not None:
            self._inside.unload()
        self._inside, self._layers = None, []

    def _remove_all_but(self, layers: Collection[str]) -> None:
        """The modules without the layers that peft has put in but could not load."""
        for name, layer in self._lora_layers().items():
            if name not in layers:
                self._model.set_submodule(name, layer.get_base_layer())
        if not layers:
            vars(self._model).pop("peft_config", None)

    def _lora_layers(self) -> dict[str, LoraLayer]:
        return {name: module for name, module in self._model.named_modules() if isinstance(module, LoraLayer)}

    @contextmanager
    def reading(self, names: Sequence[str | None]) -> Iterator[None]:
        """In a pass inside, row i of the batch is read with the adapter `names[i]`, None: with the model alone."""
        if not any(names):
            yield
            return
        chosen = [name or BASE for name in names]

        def choose(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return args, {**kwargs, "adapter_names": chosen}

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(hook(layer.register_forward_pre_hook(choose, with_kwargs=True)))
            yield
