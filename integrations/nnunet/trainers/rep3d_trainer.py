"""Trainer of nnU-Net with the recipe of ``main_train.py``.

nnU-Net takes this module from ``sys.modules`` once it has found the class, so everything is imported at the top.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rep3d.nnunet.adapter import CLASS, WRITE_PLANS, NetworkFromPlans
from rep3d.nnunet.errors import PlansError, exit_on_mistake
from rep3d.nnunet.recipe import WarmupCosine, default_autocast, make_adamw
from torch.optim import AdamW


class nnUNetTrainerRep3D(nnUNetTrainerNoDeepSupervision):
    """Trainer for plans of ``rep3d.nnunet.write_plans``: AdamW, warm-up and cosine, bf16, no deep supervision.

    Everything else is nnU-Net's: its augmentation, Dice and cross-entropy, gradients clipped to a norm of 12, mirroring
    in prediction. GPUs with native bf16 train in it, others in nnU-Net's fp16, and CPUs in float32. The validation
    after the last epoch is a prediction, which nnU-Net computes in fp16 on every GPU.

    A subclass changes the length and the rates of a training by the attributes below.
    """

    epochs = 1000
    iterations_per_epoch = 250
    peak_rate = 1e-4
    decay = 0.08

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        with exit_on_mistake():
            check_plans(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = self.epochs, self.iterations_per_epoch
        self.initial_lr, self.weight_decay = self.peak_rate, self.decay
        self.precision: torch.dtype | None = None  # that of nnU-Net
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            self.precision = torch.bfloat16
            self.grad_scaler = None  # gradients underflow in fp16 only

    def configure_optimizers(self) -> tuple[AdamW, WarmupCosine]:
        optimizer = make_adamw(self.network, self.initial_lr, self.weight_decay)
        return optimizer, WarmupCosine(optimizer, self.initial_lr, self.num_iterations_per_epoch, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.lr_scheduler.advance()
        with default_autocast(self.device.type, self.precision):
            return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with default_autocast(self.device.type, self.precision):
            return super().validation_step(batch)


def check_plans(plans: dict[str, Any], configuration: str) -> None:
    """Raise ``PlansError`` if this trainer cannot train a configuration, before nnU-Net makes any folder."""
    name = plans["plans_name"]
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise PlansError(f"{name}: found no configuration {configuration}, expected one of {known}")
    manager = PlansManager(plans).get_configuration(configuration)
    if manager.network_arch_class_name != CLASS:
        found = manager.network_arch_class_name
        raise PlansError(f"{name}: found the network {found}, expected {CLASS}; {WRITE_PLANS} writes such plans")
    if manager.previous_stage_name is not None:
        raise PlansError(f"{name}: found {configuration}, a stage of a cascade, expected a configuration of its own")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise PlansError("found several GPUs, expected one: training on several was not tested")
    arguments = manager.network_arch_init_kwargs
    found, expected = arguments.get("patch_size"), list(manager.patch_size)
    if found != expected:
        raise PlansError(f"{name}: found patch_size {found} in the arch_kwargs of {configuration}, expected {expected}")
    with torch.device("meta"):
        NetworkFromPlans(input_channels=1, num_classes=2, **arguments)
