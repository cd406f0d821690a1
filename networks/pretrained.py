"""Networks in files: ``save_pretrained`` and ``from_pretrained``, in the layout of Hugging Face's Hub.

A folder holds the weights, ``model.safetensors``; what built the network and what it was trained for, ``config.json``;
and a model card, ``README.md``. The weights alone are enough, because the file's metadata repeat the content of
``config.json`` under the key ``SETTINGS``:

    {"config": arguments of build_network, "deploy": whether it is the folded form, "description": of the dataset}

and, because safetensors files have no checksums, a digest of all of it. (A single key, because safetensors writes
several in any order, and the same network should be the same file.)

Source of the file format: https://huggingface.co/docs/safetensors (no code is in such a file, and none is run).
"""

import hashlib
import importlib
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import build_network
from .base import SegmentationNetwork
from .model_card import write_card
from .whole_files import complete_or_absent

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SETTINGS, DIGEST = "rep3d", "digest"
HALVES = (torch.float16, torch.bfloat16)
STORED = (torch.float32, *HALVES)
UNKNOWN_LICENSE = "unknown"  # the Hub's name for it
LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

Settings = dict[str, Any]
Weights = dict[str, Tensor]


def save_pretrained(
    network: SegmentationNetwork,
    folder: str | os.PathLike[str],
    description: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    license: str = UNKNOWN_LICENSE,
) -> None:
    """Write a network to a new folder, as a whole or not at all.

    Args:
        network: network of ``build_network`` or ``from_pretrained``, in its training form or its deployed form.
        folder: folder to create.
        description: description of the dataset (spacing, intensities, classes) in the form of ``--dataset``, without
            which nobody can prepare an input; by default ``network.description``.
        dtype: type of the stored weights, float32, float16 or bfloat16; half precision halves the file. Tensors with
            one axis, those of normalisations among them, keep theirs.
        license: licence of the weights for the model card, by its name on the Hub, such as "cc-by-4.0".
    Raises:
        ValueError: the folder exists and is not empty; the network is not one that ``build_network`` builds, or is
            wrapped, as by DistributedDataParallel or torch.compile; another ``dtype``, or a weight that is too large
            for it; no licence can have this name.
        ImportError: safetensors is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists, expected a new or an empty folder")
    if not LICENSE_NAME.fullmatch(license):
        raise ValueError(f"license: found {license!r}, expected a name of the Hub in lower case, such as cc-by-4.0")
    settings = settings_of(network, description)
    content = pack_weights(stored_weights(network, dtype), settings)
    with complete_or_absent(folder) as aside:
        aside.mkdir(parents=True)
        (aside / WEIGHTS).write_bytes(content)
        (aside / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (aside / CARD).write_text(write_card(settings, license), encoding="utf-8")


def from_pretrained(source: str | os.PathLike[str], revision: str | None = None) -> SegmentationNetwork:
    """Build the network of a folder of ``save_pretrained`` and load its weights, in float32 and in evaluation mode.

    Args:
        source: the folder, its ``model.safetensors``, or the name of a repository on Hugging Face's Hub (user/name),
            which is downloaded unless there is a folder of that name.
        revision: branch, tag or commit of the repository.
    Returns: the network in the form in which it was saved. Its attributes ``config`` and ``description`` hold the
        arguments of ``build_network`` and the description of the dataset, None if there was none.
    Raises:
        ValueError: there is no such folder or repository, the file is damaged, or it is of another program.
        ImportError: a package is not installed.
    """
    file = _find(source, revision)
    weights, settings = read_weights(file)
    if file != Path(source):
        settings = _agree(settings, file.with_name(CONFIG))
    try:
        network = build_described(settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not describe its network, expected a file of save_pretrained") from error
    except ValueError as error:  # a network or an argument that this version does not know
        raise ValueError(f"{file}: {error}") from error
    except RuntimeError as error:  # PyTorch's, which finds no memory
        raise ValueError(f"{file} describes a network that cannot be built: {_one_line(error)}") from error
    fill_aliases(network, weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the network of its description: {_one_line(error)}") from error
    network.description = settings.get("description")
    return network.eval()


def settings_of(network: SegmentationNetwork, description: dict[str, Any] | None = None) -> Settings:
    """Collect what a file says of a network, as plain values; see the module's docstring.

    Args:
        network: as in ``save_pretrained``.
        description: as in ``save_pretrained``.
    Raises:
        ValueError: the network is not one that ``build_network`` builds, or a value cannot be written as JSON.
    """
    if vars(network).get("config") is None:  # torch.compile's wrapper passes attributes on, but renames the weights
        raise ValueError(f"network: found a {type(network).__name__} without config, expected one of build_network")
    settings = {"config": network.config, "deploy": _is_deployed(network)}
    if described := description or network.description:
        settings["description"] = described
    try:
        return json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"config and description: found values that JSON does not have ({error})") from error


def build_described(settings: Settings) -> SegmentationNetwork:
    """Build the network of ``settings_of``, randomly initialised."""
    config, deploy = settings["config"], bool(settings["deploy"])
    sizes = config["in_chans"], config["out_chans"], tuple(config["roi_size"])
    return build_network(config["network"], *sizes, deploy=deploy, **config["overrides"])


def _is_deployed(network: SegmentationNetwork) -> bool:
    """Tell a network's form by its weights; ValueError if its config builds them in neither form."""
    own = _shapes(network)
    for deploy in (False, True):
        with torch.device("meta"):
            built = build_described({"config": network.config, "deploy": deploy})
        if _shapes(built) == own:
            return deploy
    raise ValueError(
        "network: found other weights than its config builds, expected those of build_network, folded or not "
        "(neither fused by switch_to_deploy(fuse_norm=True) nor with heads that enable_deep_supervision has created)"
    )


def _shapes(network: SegmentationNetwork) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def stored_weights(network: SegmentationNetwork, dtype: torch.dtype | None = None) -> Weights:
    """Return the weights as safetensors stores them: contiguous, on the CPU, each tensor under one name.

    Args:
        network: the network.
        dtype: as in ``save_pretrained``.
    Raises:
        ValueError: another ``dtype``, or a weight that is too large for it.
    """
    if dtype not in (None, *STORED):
        raise ValueError(f"dtype: found {dtype}, expected {', '.join(map(str, STORED))} or None")
    weights: Weights = {}
    seen: set[int] = set()
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) in seen:  # another name of the same tensor
            continue
        seen.add(id(value))
        own = value.detach().cpu()
        if dtype is not None and own.is_floating_point() and own.dim() > 1:
            own = own.to(dtype)
            if not own.isfinite().all() and value.isfinite().all():
                raise ValueError(f"dtype: found {dtype} with larger values in {name}, expected torch.bfloat16")
        weights[name] = own.contiguous()
    return weights


def fill_aliases(network: SegmentationNetwork, weights: Weights) -> None:
    """Add the missing names of shared modules: a module used in two places has two names, a file may hold only one."""
    names: dict[int, list[str]] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    for aliases in names.values():
        if present := next((name for name in aliases if name in weights), None):
            weights.update({name: weights[present] for name in aliases if name not in weights})


def pack_weights(weights: Weights, settings: Settings) -> bytes:
    """Make the content of a safetensors file; ImportError if the package is not installed."""
    text = json.dumps({**settings, DIGEST: _digest(settings, weights)})
    return _import("safetensors.torch").save(weights, {SETTINGS: text})


def read_weights(file: Path) -> tuple[Weights, Settings]:
    """Read a safetensors file; weights in half precision become float32.

    Args:
        file: the file.
    Returns: the weights, and the settings, which are empty if the file is of another program.
    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
        ImportError: safetensors is not installed.
    """
    safetensors = _import("safetensors")
    with open(file, "rb"):  # its errors, unlike those of safetensors, have a strerror
        pass
    try:
        with safetensors.safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(SETTINGS)
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        settings = {} if text is None else dict(json.loads(text))
    except (safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({_one_line(error)}), expected a whole safetensors file") from error
    if text is not None and settings.pop(DIGEST, None) != _digest(settings, weights):
        raise ValueError(f"{file} is damaged (its content does not have its digest), expected a whole safetensors file")
    return {name: value.float() if value.dtype in HALVES else value for name, value in weights.items()}, settings


def _digest(settings: Settings, weights: Weights) -> str:
    """Compute the SHA-256 of settings and of names, types, shapes and bytes of the weights."""
    whole = hashlib.sha256(json.dumps(settings).encode())
    for name, value in sorted(weights.items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _find(source: str | os.PathLike[str], revision: str | None) -> Path:
    """Find the weights: in a folder, the file itself, or downloaded."""
    path, suffix = Path(source), Path(WEIGHTS).suffix
    if not path.exists() and path.suffix != suffix and isinstance(source, str) and HUB_NAME.fullmatch(source):
        path = _download(source, revision)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: found no such file, expected a folder with {WEIGHTS}, or that file")
    if file.suffix != suffix:
        made = "which tools.export --format safetensors makes of a checkpoint"
        raise ValueError(f"{file}: found another kind of file, expected a folder with {WEIGHTS}, {made}")
    return file


def _download(name: str, revision: str | None) -> Path:
    """Download a repository from Hugging Face's Hub, or find it in the cache of earlier downloads."""
    hub = _import("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:  # the package's errors are among them
        raise ValueError(f"{name}: found no such folder, and none on the Hub: {_one_line(error)}") from error


def _agree(settings: Settings, config: Path) -> Settings:
    """Return the settings of a file, or those of config.json beside it if a program has dropped the file's metadata.

    Raises:
        ValueError: config.json cannot be read, or they differ.
    """
    try:
        beside = json.loads(config.read_text(encoding="utf-8")) if config.exists() else settings
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{config} cannot be read ({_one_line(error)}), expected JSON of save_pretrained") from error
    if settings and beside != settings:
        raise ValueError(
            f"{config} differs from the metadata of {WEIGHTS}, expected both as save_pretrained wrote them"
        )
    return beside


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"found no package {package}, expected it installed: pip install {package}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
