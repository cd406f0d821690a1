"""Load weights into a network: from files of other projects, and across class and channel counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor

from engine.runtime.errors import InputError
from networks.base import SegmentationNetwork
from networks.pretrained import fill_aliases
from networks.Rep3D.rep3d_encoder import MaskedKernelBlock

WRAPPERS = ("model", "state_dict", "network_weights")  # keys that main_train, most projects and nnU-Net use
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and wrapping modules
LEAST_MATCH = 0.9


@dataclass(frozen=True)
class LoadReport:
    """Report on the tensors of a file and of a network.

    Args:
        loaded: number of tensors that were loaded into the network.
        skipped: names of tensors in the file that were not loaded.
        missing: names of the network's tensors that were expected in the file and keep their initial values.
        changes: changes made to the file's weights, one phrase each.
        adapted: names of the network's tensors that are for another number of channels in the file.
    """

    loaded: int
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    changes: tuple[str, ...]
    adapted: tuple[str, ...] = ()

    @property
    def anew(self) -> frozenset[str]:
        """Names of the network's tensors that the file has not filled as they are."""
        return frozenset((*self.missing, *self.adapted))

    def __str__(self) -> str:
        def listed(names: tuple[str, ...]) -> str:
            return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "0"

        counts = f"{self.loaded} tensors loaded, skipped {listed(self.skipped)}, missing {listed(self.missing)}"
        return "; ".join((counts, *self.changes))


def load_weights(
    network: SegmentationNetwork, content: Mapping[str, Any], source: str, strict: bool = False
) -> LoadReport:
    """Load the weights of a checkpoint, or a bare state dict, into a network.

    Wrapping dictionaries (``WRAPPERS``) and the prefixes of wrapped networks (``PREFIXES``) are removed. Parameters
    that the network declares unused may be missing, and tensors under its ``ignored_prefixes`` are skipped.

    Args:
        network: network that receives the weights.
        content: result of ``load_checkpoint``.
        source: origin of the content, for messages.
        strict: whether all other tensors must fit. If not, as for fine-tuning, the head is skipped if the number of
            classes differs, the stem's kernels are averaged over their input channels and repeated if the number of
            channels differs, and single tensors may be missing or left over.
    Raises:
        InputError: there are no weights; less than ``LEAST_MATCH`` of the network's tensors are among them; a tensor
            outside stem and head has another shape; with ``strict``, any tensor does not fit. The network may be
            partly loaded by then.
    """
    weights = _take_off_prefixes(weights_of(content, source), network)
    fill_aliases(network, weights)
    own = network.state_dict()
    wanted = {key: value for key, value in weights.items() if not key.startswith(network.ignored_prefixes)}
    folded: set[str] = set()
    changes: list[str] = []
    adapted: list[str] = []
    try:
        if not strict:
            _check_match(network, wanted, source)
            folded = _fold_other_masks(network, wanted, changes)
            fitted = _fit_shapes(network, wanted, changes)
            adapted = sorted(key for key, value in fitted.items() if value is not wanted[key])
            wanted = fitted
        unused = {key: value for key, value in own.items() if key.startswith(network.unused_prefixes)}
        result = network.load_state_dict({**unused, **wanted}, strict=strict)
    except RuntimeError as error:
        raise InputError(f"{source} does not fit the network: {_describe(network, weights)}") from error
    skipped = (weights.keys() - wanted.keys() - folded) | set(result.unexpected_keys)
    loaded = (own.keys() & wanted.keys()) - set(result.unexpected_keys)
    missing = tuple(sorted(result.missing_keys))
    return LoadReport(len(loaded), tuple(sorted(skipped)), missing, tuple(changes), tuple(adapted))


def weights_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return the weights of a checkpoint or a bare state dict; InputError if there are none."""
    if (weights := _find_weights(content)) is None:
        names = ", ".join(WRAPPERS)
        raise InputError(f"{source} holds no weights, expected them under one of {names} or as a bare state dict")
    return weights


def _find_weights(content: object) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return dict(content)
    found = (_find_weights(content.get(key)) for key in WRAPPERS)
    return next((weights for weights in found if weights is not None), None)


def _take_off_prefixes(weights: dict[str, Tensor], network: SegmentationNetwork) -> dict[str, Tensor]:
    """Remove prefixes, up to the most matches with the network's names, which may begin with one themselves."""
    own = network.state_dict().keys()
    best = weights
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        best = max(best, weights, key=lambda candidate: len(own & candidate.keys()))
    return best


def _check_match(network: SegmentationNetwork, weights: dict[str, Tensor], source: str) -> None:
    # Masks are folded or unfolded during loading, so their tensors do not count.
    own = [key for key in network.state_dict() if ".lrbm." not in key and not key.startswith(network.unused_prefixes)]
    if sum(key in weights for key in own) < LEAST_MATCH * len(own):
        raise InputError(
            f"{source} does not fit the network: {_describe(network, weights)}, at least {LEAST_MATCH:.0%} by name"
        )


def _fold_other_masks(network: SegmentationNetwork, weights: dict[str, Tensor], changes: list[str]) -> set[str]:
    """Fold the file's masks into their kernels where the network has other masks; return the names of those masks.

    While loading, blocks with a mask divide kernels without one by theirs: the convolution stays the same.
    """
    before = set(weights)
    blocks = {name: block for name, block in network.named_modules() if isinstance(block, MaskedKernelBlock)}
    others = [name for name, block in blocks.items() if block.has_other_mask(weights, f"{name}.")]
    for name in others:
        blocks[name].fold_stored_mask(weights, f"{name}.")
    if others:
        changes.append(f"other masks, {len(others)} of them folded into the kernels")
    masked = {name: block for name, block in blocks.items() if block.lrbm is not None}
    if new := sum(block.stores_no_mask(weights, f"{name}.") for name, block in masked.items()):
        changes.append(f"{new} masks start anew, the kernels divided by them")
    return before - weights.keys()


def _fit_shapes(network: SegmentationNetwork, weights: dict[str, Tensor], changes: list[str]) -> dict[str, Tensor]:
    """Average and repeat the stem and leave out the head if the network has other channels or classes."""
    own = network.state_dict()
    differing = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    fitted = dict(weights)
    for key in differing:
        if key.startswith(network.unused_prefixes):
            del fitted[key]
        elif key.startswith(network.stem_prefixes) and _differs_in_channels(weights[key], own[key], network.in_chans):
            fitted[key] = _average_and_repeat(weights[key], own[key].shape[1], network.in_chans)
            changes.append(f"other number of channels, {key} averaged and repeated")
    heads = [(weights[key], own[key]) for key in differing if key.startswith(network.head_prefixes)]
    if heads and (classes := _other_class_count(heads, network.out_chans)):
        fitted = {key: value for key, value in fitted.items() if not key.startswith(network.head_prefixes)}
        changes.append(f"other number of classes, head not loaded: found {classes}, expected {network.out_chans}")
    return fitted


def _other_class_count(heads: list[tuple[Tensor, Tensor]], out_chans: int) -> int | None:
    """Return the class count of the first tensors of all pairs; None if the pairs differ in anything else."""
    pairs = {
        pair for found, expected in heads for pair in zip_longest(found.shape, expected.shape) if pair[0] != pair[1]
    }
    (found, expected), *others = pairs
    return found if not others and expected == out_chans else None


def _differs_in_channels(weight: Tensor, expected: Tensor, in_chans: int) -> bool:
    """Check whether two kernels (out, k * channels, ...) differ only in the number of channels."""
    sides = [(*tensor.shape[:1], *tensor.shape[2:]) for tensor in (weight, expected)]
    return sides[0] == sides[1] and weight.dim() > 1 and weight.shape[1] % (expected.shape[1] // in_chans) == 0


def _average_and_repeat(weight: Tensor, width: int, in_chans: int) -> Tensor:
    """Average and repeat channels, (out, k * c, ...) -> (out, k * in_chans, ...); k patch values, channels fastest."""
    per_channel = width // in_chans
    patch = weight.unflatten(1, (per_channel, -1))
    return patch.mean(2, keepdim=True).expand(-1, -1, in_chans, *patch.shape[3:]).flatten(1, 2)


def _describe(network: SegmentationNetwork, weights: dict[str, Tensor]) -> str:
    own = network.state_dict()
    shared = [key for key in weights if key in own]
    resized = [key for key in shared if own[key].shape != weights[key].shape]
    example = f", such as {resized[0]} {tuple(weights[resized[0]].shape)}" if resized else ""
    return (
        f"found {len(weights)} tensors, {len(shared)} of them known and {len(resized)} of another shape{example}, "
        f"{len(own) - len(shared)} missing; expected the {len(own)} of this architecture and class count"
    )
