"""Export a trained network for other programs: torch.export, ONNX, or a folder in the layout of Hugging Face's Hub.

    python -m tools.export --weights runs/amos/best_metric_model.pth --format onnx --output rep3d_amos.onnx
    python -m tools.export --weights runs/amos/best_metric_model.pth --format torch_export --output rep3d_amos.pt2
    python -m tools.export --weights runs/amos/best_metric_model.pth --format safetensors --output rep3d_amos

The network is exported in its deployed form, for one window of a fixed size, on the CPU. Before the file gets its name
it is read again and run on a random window, and its logits are compared with those of PyTorch. In every format the file
holds the configuration of the network and the description of the dataset, as JSON: under ``SETTINGS`` in the metadata
of an ONNX file, as ``EXTRA_FILE`` in an archive of torch.export; ``networks.pretrained`` says where in the folder.

In ONNX the large kernels are plain convolutions: every runtime has these, on GPUs as well. With --convolution auto they
are products of Fourier transforms wherever PyTorch computes them so on a CPU, which is the default of torch.export.
"""

import argparse
import importlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.data.datasets import DatasetDescription
from engine.runtime.arguments import number
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import check_absent, new_output
from engine.weights.load_network import TrainedNetwork, load_trained
from networks.base import SegmentationNetwork
from networks.large_kernel_conv import LargeKernelConv3d
from networks.pretrained import SETTINGS, UNKNOWN_LICENSE, Settings, from_pretrained, save_pretrained, settings_of

EXTRA_FILE = f"{SETTINGS}.json"
INPUT, OUTPUT = "image", "logits"
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights: a protocol buffer has less than 2 GiB, the graph included
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest differences from PyTorch's logits, as shares of the largest logit. Rounding of float32 was found to be below
# 1e-4; of stored half precision, it is some of its steps.
TOLERANCES = {torch.float32: 1e-3, **{dtype: 16 * torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)}}


class Export(NamedTuple):
    """What is exported.

    Args:
        network: the network, deployed, in evaluation mode.
        window: example input (1, channels, D, H, W).
        settings: ``settings_of`` the network.
        dtype: type of the weights in a safetensors file.
        license: licence of the weights for the model card beside it.
    """

    network: SegmentationNetwork
    window: Tensor
    settings: Settings
    dtype: torch.dtype = torch.float32
    license: str = UNKNOWN_LICENSE


class Format(NamedTuple):
    """A format of files.

    Args:
        write: function that writes a file, or a folder.
        run: function that reads it and returns its logits of a window.
        convolution: default of --convolution; None if the format holds no operations.
        packages: packages that it needs beside those of requirements.txt.
    """

    write: Callable[[Export, Path], None]
    run: Callable[[Path, Tensor], Tensor]
    convolution: str | None
    packages: tuple[str, ...] = ()


def write_torch_export(export: Export, path: Path) -> None:
    """Write the archive of torch.export."""
    program = torch.export.export(export.network, (export.window,), strict=False)
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={EXTRA_FILE: json.dumps(export.settings)})
    path.write_bytes(archive.getbuffer())


def run_torch_export(path: Path, window: Tensor) -> Tensor:
    """Run the archive of torch.export."""
    return torch.export.load(io.BytesIO(path.read_bytes())).module()(window)


def write_onnx(export: Export, path: Path) -> None:
    """Write an ONNX file that holds its weights; InputError if they do not fit in one."""
    size = sum(value.nbytes for value in export.network.state_dict().values())
    if size > LARGEST_ONNX:
        raise InputError(f"--format onnx: found weights of {size / 1e9:.1f} GB, expected at most 2.1 GB in one file")
    window, inputs, outputs = (export.window,), [INPUT], [OUTPUT]
    program = torch.onnx.export(
        export.network, window, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
    )
    assert program is not None
    program.model.metadata_props[SETTINGS] = json.dumps(export.settings)
    path.write_bytes(program.model_proto.SerializeToString())


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Open an ONNX file in ONNX Runtime; the returned function runs it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda window: torch.from_numpy(session.run([OUTPUT], {INPUT: window.numpy()})[0])


def run_onnx(path: Path, window: Tensor) -> Tensor:
    """Run an ONNX file in ONNX Runtime."""
    return open_onnx(path)(window)


def write_safetensors(export: Export, folder: Path) -> None:
    """Write a folder of ``save_pretrained``."""
    try:
        save_pretrained(export.network, folder, export.settings["description"], export.dtype, export.license)
    except ValueError as error:  # a weight is too large for the type, or no licence has such a name
        raise InputError(f"--{error}") from error


def run_safetensors(folder: Path, window: Tensor) -> Tensor:
    """Run the network of a folder of ``save_pretrained``."""
    return from_pretrained(folder)(window)


FORMATS = {
    "torch_export": Format(write_torch_export, run_torch_export, "auto"),
    "onnx": Format(write_onnx, run_onnx, "direct", ("onnx", "onnxscript", "onnxruntime")),
    "safetensors": Format(write_safetensors, run_safetensors, None),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("export", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", metavar="FILE", required=True, help="checkpoint of main_train.py")
    parser.add_argument("--format", choices=FORMATS, required=True, help="format of the output")
    output = "file to create (safetensors: folder)"
    parser.add_argument("--output", metavar="FILE_OR_DIR", required=True, help=output)
    window = "size of the window, voxels (default: that of the training crops)"
    parser.add_argument("--roi_size", nargs=3, type=number(int, 1), metavar=("D", "H", "W"), help=window)
    convolution = (
        "large kernels as plain convolutions, or by Fourier transforms where these are cheaper on a CPU (default: auto "
        "for torch_export, direct for onnx)"
    )
    parser.add_argument("--convolution", choices=("auto", "direct"), help=convolution)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights in safetensors")
    license = "licence of the weights for the model card of safetensors, by its name on the Hub, such as cc-by-4.0"
    parser.add_argument("--license", metavar="NAME", default=UNKNOWN_LICENSE, help=license)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load, export, compare, and print what a user of the file needs to know."""
    check_flags(args)
    chosen, output = FORMATS[args.format], Path(args.output)
    check_absent(output, "--output")
    check_packages(args.format)
    trained = load_trained(Path(args.weights), "--weights", deploy=True)
    if trained.was_folded:
        print(f"{args.weights} has the weights of training; they are exported folded for prediction")
    export = prepare(trained, args.roi_size)._replace(dtype=DTYPES[args.dtype], license=args.license)
    with torch.inference_mode():
        expected = export.network(export.window)
    if not expected.isfinite().all():
        raise InputError(f"--weights: {args.weights} gives logits that are not finite, expected trained weights")
    choose_convolution(export.network, args.convolution or chosen.convolution)
    print("exporting, and comparing with PyTorch ...", flush=True)
    with new_output(output, "--output") as path:
        with quiet(), torch.inference_mode():
            chosen.write(export, path)
            found = chosen.run(path, export.window)
        difference = compare(found, expected, export.dtype)
    print("\n".join([f"{output}: {size_of(output) / 1e6:.1f} MB", *describe(export, trained.description), difference]))


def check_flags(args: argparse.Namespace) -> None:
    """Raise InputError for a flag that the format does not use."""
    if args.format == "safetensors" and args.convolution is not None:
        raise InputError(f"--convolution: found {args.convolution} with safetensors, expected it with another --format")
    if args.format != "safetensors" and args.dtype != "float32":
        raise InputError(f"--dtype: found {args.dtype} with {args.format}, expected it with --format safetensors")
    if args.format != "safetensors" and args.license != UNKNOWN_LICENSE:
        raise InputError(f"--license: found {args.license} with {args.format}, expected it with --format safetensors")


def check_packages(name: str) -> None:
    """Raise InputError if a package that a format needs is not installed."""
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            install = f"pip install {' '.join(FORMATS[name].packages)}"
            raise InputError(f"--format {name}: found no package {package}, expected it: {install}") from error


def prepare(trained: TrainedNetwork, roi_size: Sequence[int] | None) -> Export:
    """Collect what is exported; InputError if the network does not accept the window."""
    network = trained.network.eval().requires_grad_(False)
    sides = list(roi_size or trained.config.roi_size)
    try:
        network.input_sizes.check(sides, "--roi_size")
    except ValueError as error:
        raise InputError(str(error)) from error
    network.config = {**trained.config.to_plain(), "roi_size": sides}
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(1, trained.config.in_chans, *sides, generator=generator)
    return Export(network, window, settings_of(network, trained.description.to_json()))


def choose_convolution(network: SegmentationNetwork, convolution: str | None) -> None:
    """Compute all large kernels of a deployed network as plain convolutions, or each by the cheaper method."""
    for module in network.modules():
        if isinstance(module, LargeKernelConv3d):
            module.method = "direct" if convolution == "direct" else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print for their developers; errors stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def compare(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    """Compare logits, and describe their largest difference.

    Raises:
        InputError: it is larger than rounding.
    """
    if found.shape != expected.shape:
        raise InputError(f"--format: the file returns {tuple(found.shape)}, expected {tuple(expected.shape)}")
    absolute = (found - expected).abs().max().item()
    relative = absolute / max(expected.abs().max().item(), torch.finfo(expected.dtype).tiny)
    text = f"largest difference from PyTorch's logits on a random window: {absolute:.1e}, {relative:.1e} of the largest"
    if not relative <= TOLERANCES[dtype]:  # NaN is not
        raise InputError(f"--format: {text}, expected at most {TOLERANCES[dtype]:.1e}; nothing was written")
    return text


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def describe(export: Export, description: DatasetDescription) -> list[str]:
    """Describe input and output of the file, one line each."""
    axes = "batch, channel, and a window whose axes run to the right, to the front and to the top"
    inputs, outputs = tuple(export.window.shape), (1, len(description.classes), *export.window.shape[2:])
    rules = [
        f"{channel} {'as its z-score' if window is None else f'from {window[0]:g}..{window[1]:g} to 0..1, clipped'}"
        for channel, window in zip(description.channels, description.windows, strict=True)
    ]
    return [
        f"input {INPUT}: float32 {inputs}: {axes}",
        f"voxels of {' x '.join(f'{side:g}' for side in description.spacing)} mm; intensities: {'; '.join(rules)}",
        f"output {OUTPUT}: float32 {outputs}; channels: {', '.join(description.classes)}",
    ]


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), "--roi_size"))
