"""Weights into a network: from other people's files, and across class and channel counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.errors import InputError
from networks import SegmentationNetwork

WRAPPERS = ("model", "state_dict", "network_weights")  # where main_train, most others, and nnU-Net keep the weights
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and wrapping modules
LEAST_MATCH = 0.9


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of a network.

    Args:
        loaded: tensors that the network took over.
        skipped: names of the file's tensors that it did not.
        missing: names of the network's tensors that keep their initial values.
        changes: what had to be changed, a sentence each.
    """

    loaded: int
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    changes: tuple[str, ...]

    def __str__(self) -> str:
        def listed(names: tuple[str, ...]) -> str:
            return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "0"

        counts = f"{self.loaded} tensors loaded, skipped {listed(self.skipped)}, missing {listed(self.missing)}"
        return "; ".join((counts, *self.changes))


def load_weights(
    network: SegmentationNetwork, content: Mapping[str, Any], source: str, strict: bool = False
) -> LoadReport:
    """Load the weights of a checkpoint, or a bare state dict, into a network.

    Wrapping dictionaries (``WRAPPERS``) and the prefixes of wrapped networks (``PREFIXES``) are taken off. Parameters
    that are officially unused may be missing.

    Args:
        network: receives the weights.
        content: what ``load_checkpoint`` returned.
        source: where it came from, for messages.
        strict: every other tensor has to fit. Otherwise, for fine-tuning, the head is skipped where it has another
            number of classes, the stem's kernels are averaged over their input channels and repeated where it has
            another number of channels, and single tensors may be missing or left over.
    Raises:
        InputError: no weights; less than ``LEAST_MATCH`` of the network's tensors among them; a tensor of another shape
            outside stem and head; with ``strict`` any that does not fit. The network may be half loaded by then.
    """
    weights = _take_off_prefixes(weights_of(content, source), network)
    own = network.state_dict()
    unused = {key: value for key, value in own.items() if key.startswith(network.unused_prefixes)}
    filled = {**unused, **weights}
    changes: tuple[str, ...] = ()
    if not strict:
        _check_match(network, weights, source)
        filled, changes = _fit_shapes(network, filled)
    try:
        result = network.load_state_dict(filled, strict=strict)
    except RuntimeError as error:
        raise InputError(f"{source} does not fit the network: {_describe(network, weights)}") from error
    skipped = {key for key in weights if key not in filled} | set(result.unexpected_keys)
    missing = {key for key in result.missing_keys if key not in unused}
    untouched = len(missing) + len(unused.keys() - weights.keys())
    return LoadReport(len(own) - untouched, tuple(sorted(skipped)), tuple(sorted(missing)), changes)


def weights_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The weights of a checkpoint or of a bare state dict; InputError where there are none."""
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        names = ", ".join(WRAPPERS)
        raise InputError(f"{source} holds no weights, expected them under one of {names} or as a bare state dict")
    return dict(content)


def _take_off_prefixes(weights: dict[str, Tensor], network: SegmentationNetwork) -> dict[str, Tensor]:
    """Take prefixes off as long as that lets the network know more of the names; its own may begin with one of them."""
    own = network.state_dict().keys()
    best = weights
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        best = max(best, weights, key=lambda candidate: len(own & candidate.keys()))
    return best


def _check_match(network: SegmentationNetwork, weights: dict[str, Tensor], source: str) -> None:
    # Masks are folded or unfolded while loading, so their tensors say nothing.
    own = [key for key in network.state_dict() if ".lrbm." not in key and not key.startswith(network.unused_prefixes)]
    if sum(key in weights for key in own) < LEAST_MATCH * len(own):
        raise InputError(
            f"{source} does not fit the network: {_describe(network, weights)}, at least {LEAST_MATCH:.0%} by name"
        )


def _fit_shapes(network: SegmentationNetwork, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Average and repeat the stem, leave out the head, where the network has other channels or classes."""
    own = network.state_dict()
    differing = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    fitted, changes = dict(weights), []
    for key in differing:
        if key.startswith(network.unused_prefixes):
            fitted[key] = own[key]
        elif key.startswith(network.stem_prefixes) and _differs_in_channels(weights[key], own[key], network.in_chans):
            fitted[key] = _average_and_repeat(weights[key], own[key].shape[1], network.in_chans)
            changes.append(f"other channels, {key} averaged and repeated")
    if heads := [key for key in differing if key.startswith(network.head_prefixes)]:
        fitted = {key: value for key, value in fitted.items() if not key.startswith(network.head_prefixes)}
        example = f"{heads[0]} {tuple(weights[heads[0]].shape)}, expected {tuple(own[heads[0]].shape)}"
        changes.append(f"other classes, the head starts anew: found {example}")
    return fitted, tuple(changes)


def _differs_in_channels(weight: Tensor, expected: Tensor, in_chans: int) -> bool:
    """Whether two kernels (out, k * channels, ...) differ in the number of channels alone."""
    sides = [(*tensor.shape[:1], *tensor.shape[2:]) for tensor in (weight, expected)]
    return sides[0] == sides[1] and weight.dim() > 1 and weight.shape[1] % (expected.shape[1] // in_chans) == 0


def _average_and_repeat(weight: Tensor, width: int, in_chans: int) -> Tensor:
    """(out, k * c, ...) -> (out, k * in_chans, ...), where dimension 1 holds, channels fastest, k values of a patch."""
    per_channel = width // in_chans
    patch = weight.unflatten(1, (per_channel, -1))
    return patch.mean(2, keepdim=True).expand(-1, -1, in_chans, *patch.shape[3:]).flatten(1, 2)


def _describe(network: SegmentationNetwork, weights: dict[str, Tensor]) -> str:
    own = network.state_dict()
    shared = [key for key in weights if key in own]
    resized = [key for key in shared if own[key].shape != weights[key].shape]
    example = f", such as {resized[0]} {tuple(weights[resized[0]].shape)}" if resized else ""
    return (
        f"found {len(weights)} tensors, {len(shared)} of them known and {len(resized)} of other shape{example}; "
        f"expected the {len(own)} of this architecture and class count"
    )
