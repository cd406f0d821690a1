"""Fine-tuning: an encoder that is frozen at first, and learning rates that fall from the decoder to the image."""

from collections.abc import Collection

from torch import Tensor, nn

from engine.runtime.errors import InputError
from networks.base import SegmentationNetwork


def find_stages(network: nn.Module, flag: str) -> list[dict[str, nn.Parameter]]:
    """Return the trainable parameters of the encoder by name, a dictionary for each stage from the image on.

    Args:
        network: network, with nothing frozen but what it does not use.
        flag: flag that needs them, for messages.
    Raises:
        InputError: the network names no stages.
    """
    if not isinstance(network, SegmentationNetwork) or not network.encoder_prefixes:
        expected = "a network that names the stages of its encoder (encoder_prefixes)"
        raise InputError(f"{flag}: found {type(network).__name__}, expected {expected}")
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return [
        {name: parameter for name, parameter in trainable.items() if name.startswith(prefixes)}
        for prefixes in network.encoder_prefixes
    ]


def decay_by_stage(network: nn.Module, decay: float, anew: Collection[str] = ()) -> dict[Tensor, float]:
    """Compute factors of the learning rate: ``decay`` in the last stage of the encoder, its square before, and so on.

    Source: the layer-wise decay of Clark et al., "ELECTRA", ICLR 2020, as Bao et al., "BEiT", ICLR 2022, and Liu et
    al., "A ConvNet for the 2020s", CVPR 2022, fine-tune encoders of images; with a stage for a layer.

    Args:
        network: as in ``find_stages``.
        decay: factor from a stage to the one before it.
        anew: names of parameters that start anew and keep the full rate.
    Raises:
        InputError: the network names no stages.
    """
    stages = find_stages(network, "--layer_decay")
    return {
        parameter: decay**depth
        for depth, stage in enumerate(reversed(stages), 1)
        for name, parameter in stage.items()
        if name not in anew
    }


class FreezableEncoder:
    """Encoder of a network, which can be frozen and thawed.

    A frozen encoder is in evaluation mode: neither its parameters nor its running statistics change, and dropout is
    off. Its parameters require no gradient, so that the backward pass ends where the decoder begins, and an optimiser
    touches neither them (by weight decay) nor their moments.

    Args:
        network: as in ``find_stages``.
    Raises:
        InputError: the network names no stages.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        self.parameters = {
            name: parameter for stage in find_stages(network, "--freeze_encoder") for name, parameter in stage.items()
        }
        prefixes = tuple(prefix for stage in network.encoder_prefixes for prefix in stage)
        self.modules = [module for name, module in network.named_modules() if f"{name}.".startswith(prefixes)]
        self.frozen = False

    def set_frozen(self, frozen: bool) -> bool:
        """Freeze or thaw the encoder of a network in training mode, and return whether that changed anything.

        To be called before every step while frozen: a validation leaves the whole network in training mode. If the
        answer is true, DistributedDataParallel has to wrap the network again.
        """
        changed, self.frozen = frozen != self.frozen, frozen
        if frozen or changed:
            for module in self.modules:
                module.training = not frozen
        if changed:
            for parameter in self.parameters.values():
                parameter.requires_grad_(not frozen)
        return changed

    def check_filled(self, anew: Collection[str]) -> None:
        """Make sure that the encoder is all from the file: what starts anew must learn.

        Raises:
            InputError: a parameter of the encoder is among the names ``anew``.
        """
        if found := sorted(self.parameters.keys() & set(anew)):
            kind = "that --pretrained_weights lacks or has for other channels"
            raise InputError(
                f"--freeze_encoder: found {len(found)} weights of the encoder {kind} ({found[0]}), expected none"
            )
