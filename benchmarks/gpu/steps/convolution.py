"""Step 3: depthwise convolution at the four stages of a 96^3 crop, by every method, with each pass timed separately.

Each pass is compared with two floors, at the measured rate of a copy: reading and writing its tensors once, and the
memory traffic of the method itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidates import dft_matmul as dft
from benchmarks.candidates.implicit_gemm import implicit_gemm
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import find_ceilings
from benchmarks.gpu.costs import Comparison, fit_costs, ready_to_paste
from benchmarks.gpu.timing import count_sets, device_seconds
from benchmarks.report import format_table
from networks.large_kernel_conv import circular_lengths, large_kernel_conv3d

PASSES = ("forward", "dx", "dw", "backward")  # backward: dx and dw together
KERNEL_SIZE, STAGES = 21, ((48, 48), (96, 24), (192, 12), (384, 6))  # channels, side
FITTED_SIDES = (3, 5, 7, 9, 11, 15, 21)  # kernels for the fit of the choice between direct and FFT
REDUCED_KERNEL_SIZE, REDUCED_STAGES, REDUCED_SIDES = 5, ((3, 6), (4, 4)), (3, 5)
FFT_NUMBER_BYTES = 4  # the FFT path computes in float32 for every input type
TYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Convolve = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """One convolution: x (samples, channels, side, side, side), kernel (channels, 1, kernel_size, ...)."""

    samples: int
    channels: int
    side: int
    kernel_size: int
    precision: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, C, D, H, W) of the input."""
        return self.samples, self.channels, *[self.side] * 3

    @property
    def taps(self) -> int:
        """Side of the kernel without the taps that never reach data."""
        return min(self.kernel_size, 2 * self.side - 1)

    @property
    def bytes(self) -> int:
        """Bytes of input, kernel and gradient of the output."""
        number = TYPES[self.precision].itemsize
        return 2 * number * math.prod(self.shape) + FFT_NUMBER_BYTES * self.channels * self.kernel_size**3

    def inputs(self, device: torch.device, seed: int = 0) -> list[Tensor]:
        """Create input, kernel and gradient of the output; the kernel is float32, as in a network."""
        generator = torch.Generator(device).manual_seed(seed)
        shapes = self.shape, (self.channels, 1, *[self.kernel_size] * 3), self.shape
        x, weight, grad = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
        return [x.to(TYPES[self.precision]), weight, grad.to(TYPES[self.precision])]


def methods(precision: str) -> dict[str, Convolve]:
    """List the methods for a precision; they take x of that type and a float32 kernel."""
    halves = {f"dft {name}": _in(dft.dft_matmul, dtype) for name, dtype in HALVES.items()}
    single = {"dft tf32": _in(dft.dft_matmul, torch.float32)}
    return {"native": native, "fft": fft, **(halves if precision == "bf16" else single)}


def triton_methods(precision: str) -> dict[str, Convolve]:
    """List the methods that Triton compiles, which takes a second or two for every type and stage."""
    name, dtype = ("bf16", torch.bfloat16) if precision == "bf16" else ("tf32", torch.float32)
    return {f"gemm {name}": _in(implicit_gemm, dtype)}


def native(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by PyTorch's own function, with the kernel cast as autocast does."""
    return F.conv3d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2, groups=x.shape[1])


def fft(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by the FFT path, as the networks do."""
    return large_kernel_conv3d(x, weight, method="fft")


def _in(convolve: Callable[[Tensor, Tensor, torch.dtype], Tensor], dtype: torch.dtype) -> Convolve:
    return lambda x, weight: convolve(x, weight, dtype)


def measure(bench: Bench) -> None:
    """Record one row per problem and method, and note the constants of ``choose_method``."""
    torch.backends.cuda.matmul.allow_tf32 = True  # for the candidates' float32 products, in this process
    copy_rate, _ = find_ceilings(bench)
    bench.note(copy_rate=copy_rate)
    kernel_size, stages = (REDUCED_KERNEL_SIZE, REDUCED_STAGES) if bench.reduced else (KERNEL_SIZE, STAGES)
    problems = [
        Problem(samples, channels, side, kernel_size, precision)
        for samples, precision in ((2, "bf16"), (2, "float32"), (1, "bf16"), (1, "float32"))
        for channels, side in stages
    ]
    bench.note(floors=[floors(problem, copy_rate) for problem in problems])
    for problem in problems[: len(stages)]:
        measure_problem(bench, problem, methods(problem.precision))
    fit(bench, stages, REDUCED_SIDES if bench.reduced else FITTED_SIDES)
    for problem in problems[len(stages) :]:
        measure_problem(bench, problem, methods(problem.precision))
    if bench.device.type == "cuda":  # Triton needs a GPU; tests use its interpreter
        for problem in problems:  # last, since an invalid memory access would end this process
            measure_problem(bench, problem, triton_methods(problem.precision))


def measure_problem(bench: Bench, problem: Problem, ways: dict[str, Convolve]) -> None:
    """Record one row per method: seconds and errors of each pass."""
    expected = all_passes(fft, [tensor.double() for tensor in problem.inputs(bench.device)])
    for method, convolve in ways.items():
        row = {**asdict(problem), "method": method}
        bench.attempt(row, lambda convolve=convolve: measure_method(bench, problem, convolve, expected), least_s=3)  # type: ignore[misc]


def measure_method(bench: Bench, problem: Problem, convolve: Convolve, expected: Sequence[Tensor]) -> dict[str, Any]:
    """Measure the seconds of each pass, and relative errors (root mean square) of output and gradients."""
    found = all_passes(convolve, problem.inputs(bench.device))
    errors = {
        name: ((ours.double() - theirs).norm() / theirs.norm()).item()
        for name, ours, theirs in zip(PASSES, found, expected, strict=False)
    }
    return {"seconds": time_passes(bench, problem, convolve), "errors": errors}


def time_passes(bench: Bench, problem: Problem, convolve: Convolve, passes: Sequence[str] = PASSES) -> dict[str, float]:
    """Measure the device seconds of each pass; tensors require gradients only if the pass computes them."""
    device = bench.device
    sets = [problem.inputs(device, seed) for seed in range(count_sets(problem.bytes, device))]
    seconds = {}
    for name in passes:
        for x, weight, _ in sets:
            x.requires_grad_(name != "dw")
            weight.requires_grad_(name != "dx")
        if name == "forward":
            seconds[name] = device_seconds(lambda x, weight, _: convolve(x, weight), sets, device)
            continue
        graphs = [
            (convolve(x, weight), grad, *(leaf for leaf in (x, weight) if leaf.requires_grad))
            for x, weight, grad in sets
        ]
        seconds[name] = device_seconds(differentiate, graphs, device)
    return seconds


def differentiate(out: Tensor, grad: Tensor, *leaves: Tensor) -> None:
    """Run a backward pass, which can be repeated."""
    torch.autograd.grad(out, leaves, grad, retain_graph=True)


def all_passes(convolve: Convolve, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute (out, dx, dw)."""
    x, weight, grad = inputs
    out = convolve(x.requires_grad_(), weight.requires_grad_())
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def floors(problem: Problem, copy_rate: float) -> dict[str, Any]:
    """Compute the seconds of memory traffic: of each pass's tensors, read or written once, and of each method."""
    number = TYPES[problem.precision].itemsize
    grid, kernel = number * math.prod(problem.shape), FFT_NUMBER_BYTES * problem.channels * problem.taps**3
    tensors = {"forward": 2 * grid + kernel, "dx": 2 * grid + kernel, "dw": 2 * grid + kernel}
    tensors["backward"] = 3 * grid + 2 * kernel  # reads x, g and w, writes dx and dw
    bytes_of = {
        "tensors": tensors,
        "fft": fft_traffic(problem),
        "dft": dft.traffic(problem.shape, problem.kernel_size, number),
    }
    seconds = {name: {key: value / copy_rate for key, value in found.items()} for name, found in bytes_of.items()}
    return {**asdict(problem), **seconds}


def fft_traffic(problem: Problem) -> dict[str, int]:
    """Count the bytes of the FFT path: a transform passes over memory once per axis, a product once."""
    lengths = fft_lengths(problem)
    half = 2 * FFT_NUMBER_BYTES * lengths[0] * lengths[1] * (lengths[2] // 2 + 1)
    transform = FFT_NUMBER_BYTES * math.prod(lengths) + 5 * half
    return dft.traffic_of_passes(problem.samples, problem.channels, transform, transform, half)


def fft_lengths(problem: Problem) -> list[int]:
    """Compute the sides of the FFT path's circular grid."""
    kernel = torch.empty(problem.channels, 1, *[problem.taps] * 3, device="meta")
    return circular_lengths(torch.empty(problem.shape, device="meta"), kernel)


def fit(bench: Bench, stages: Sequence[tuple[int, int]], sides: Sequence[int]) -> None:
    """Note the constants of ``choose_method``, fitted to native and FFT over kernels of many sizes."""
    comparisons: dict[str, list[Comparison]] = {"forward": [], "backward": []}
    for channels, side in stages:
        for kernel_size in sides:
            problem = Problem(2, channels, side, kernel_size, "bf16")
            row = {**asdict(problem), "method": "native and fft"}
            bench.attempt(row, lambda problem=problem: compare(bench, problem, comparisons), least_s=3)  # type: ignore[misc]
    if all(comparisons.values()):
        costs = {name: fit_costs(found) for name, found in comparisons.items()}
        bench.note(costs={name: asdict(each) for name, each in costs.items()}, ready_to_paste=ready_to_paste(costs))


def compare(bench: Bench, problem: Problem, comparisons: dict[str, list[Comparison]]) -> dict[str, Any]:
    """Measure both methods on the passes of one problem, and add the result to the comparisons."""
    names = tuple(comparisons)
    by_native, by_fft = (time_passes(bench, problem, convolve, names) for convolve in (native, fft))
    points = math.prod(fft_lengths(problem))
    work = problem.side**3 * problem.taps**3, points * math.log2(points + 1)
    for name, found in comparisons.items():
        found.append(Comparison(problem.samples * problem.channels, *work, by_native[name], by_fft[name]))
    return {"seconds": {"native": by_native, "fft": by_fft}}


def totals(results: dict[str, Any], samples: int, precision: str) -> dict[str, dict[str, float]]:
    """Sum each pass over the eight convolutions, two per stage, for every method that was measured at all stages."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if (row["samples"], row["precision"], row["reason"]) == (samples, precision, None) and "errors" in row:
            found.setdefault(row["method"], []).append(row)
    stages = len(select_floors(results, samples, precision))
    return {
        method: {name: 2 * sum(row["seconds"][name] for row in rows) for name in PASSES}
        for method, rows in found.items()
        if len(rows) == stages
    }


def worst_error(results: dict[str, Any], precision: str, method: str) -> float:
    """Find the largest relative error of a method."""
    rows = [row for row in results["rows"] if (row["precision"], row["method"]) == (precision, method)]
    return max(error for row in rows for error in row.get("errors", {}).values())


def select_floors(results: dict[str, Any], samples: int, precision: str) -> list[dict[str, Any]]:
    """Select the floors of the stages for a batch size and precision."""
    return [floor for floor in results["floors"] if (floor["samples"], floor["precision"]) == (samples, precision)]


def floor_totals(results: dict[str, Any], samples: int, precision: str, name: str) -> dict[str, float]:
    """Sum a floor over the eight convolutions, by pass."""
    found = select_floors(results, samples, precision)
    return {key: 2 * sum(floor[name][key] for floor in found) for key in PASSES}


def fft_over_floor(results: dict[str, Any]) -> float:
    """Compute the ratio of the FFT path to its own floor, over all passes of the eight convolutions (two crops, bf16).

    Raises:
        KeyError: the path was not measured.
    """
    measured, floor = totals(results, 2, "bf16")["fft"], floor_totals(results, 2, "bf16", "fft")
    return (measured["forward"] + measured["backward"]) / (floor["forward"] + floor["backward"])


def lines(results: dict[str, Any]) -> list[str]:
    """Format the constants, and the eight convolutions with two crops by method, with their floors."""
    rows = []
    for precision in TYPES if "floors" in results else ():
        for method, seconds in totals(results, 2, precision).items():
            error = worst_error(results, precision, method)
            rows.append([precision, method, *milliseconds(seconds), f"{error:.0e}"])
        for name in ("tensors", "fft", "dft"):
            seconds = floor_totals(results, 2, precision, name)
            rows.append([precision, f"floor, {name}", *milliseconds(seconds), ""])
    header = ["", "method", *(f"{name} ms" for name in PASSES), "error"]
    return [*results.get("ready_to_paste", []), *(format_table(header, rows).splitlines() if rows else [])]


def milliseconds(seconds: dict[str, float]) -> list[str]:
    """Format the seconds of each pass as milliseconds."""
    return [f"{1e3 * seconds[name]:.3f}" for name in PASSES]
