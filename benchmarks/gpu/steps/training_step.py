"""Step 4: training step of REP3D on two crops of 96^3, by kernel, layout, compilation, checkpointing and precision.

Also the distribution of its time: the most expensive kernels, and the share of the eight large convolutions.
"""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import find_ceilings
from benchmarks.gpu.steps.convolution import Problem, time_passes
from benchmarks.measure import Step, measure_step, native_convolutions, prepare
from engine.runtime.devices import Layout, choose_precision
from engine.weights.checkpoints import NetworkConfig
from networks.base import InputSizes
from networks.large_kernel_conv import large_kernel_conv3d
from tools.summary import build_on_meta, count_multiply_adds

BATCH, CLASSES = 2, 16
ROI_SIZE, FEAT_SIZE, KERNEL_SIZE = (96, 96, 96), (48, 96, 192, 384), 21
REDUCED_ROI_SIZE, REDUCED_FEAT_SIZE, REDUCED_KERNEL_SIZE = (32, 32, 32), (4, 4, 4, 4), 5
SMALL_KERNEL = 3
LARGE, SMALL, PUBLISHED = "large kernel", "kernel 3", "published recipe"
SMALL_NATIVE = "kernel 3, PyTorch's convolutions"  # without it, the method depends on the constants of choose_method
FIRST = (
    *(LARGE, SMALL, SMALL_NATIVE, PUBLISHED, f"{LARGE}, channels_last", f"{LARGE}, channels_last_kernels"),
    *(f"{LARGE}, checkpointing", f"{LARGE}, float32 as PyTorch has it", f"{LARGE}, float32, TF32 everywhere"),
    *(f"{LARGE}, float32, TF32 nowhere", f"{LARGE}, compiled", f"{LARGE}, compiled, channels_last"),
)
LAST = (f"{LARGE}, cuDNN benchmark",)  # its first run tries every algorithm, which can take minutes
REPEATS = 5
LIMIT_S = 5.0  # limit of the timed runs of a variant; the published recipe may be slow
EAGER_S, COMPILED_S = 8, 45  # a variant needs so many seconds to be started
TOP_KERNELS, SHOWN_KERNELS = 10, 3
PER_LINE = 2  # variants per line of the table
OPERATIONS = 2 * 3  # two per multiply-add; the backward pass takes twice those of the forward pass
Variant = tuple[Step, AbstractContextManager[None]]


def measure(bench: Bench) -> None:
    """Record one row per variant, the most important first; after the first two, note the distribution of the time."""
    found = variants(bench)
    large, small = found[LARGE][0], found[SMALL][0]
    multiply_adds = count_multiply_adds(build_on_meta(small.config, deploy=True), (1, 1, *large.config.roi_size))
    operations = OPERATIONS * BATCH * multiply_adds
    _, matrix_rate = find_ceilings(bench)
    bench.note(batch_size=BATCH, roi_size=large.config.roi_size, **large.config.overrides)
    bench.note(operations=operations, matrix_rate=matrix_rate)
    for name, (step, context) in found.items():
        with context:
            bench.attempt({"name": name}, lambda step=step: run(step, operations / matrix_rate), least(step))  # type: ignore[misc]
        if name == SMALL:  # before the other variants, which may take all of the remaining time
            bench.attempt_note("profile", lambda: profile(large))
            bench.attempt_note("large_convolutions_s", lambda: time_large_convolutions(bench, large))


def variants(bench: Bench) -> dict[str, Variant]:
    """Build the variants by name, the most important first: steps, and contexts to run them in."""
    reduced = bench.reduced
    kernel_size = REDUCED_KERNEL_SIZE if reduced else KERNEL_SIZE
    roi_size, feat_size = (REDUCED_ROI_SIZE, REDUCED_FEAT_SIZE) if reduced else (ROI_SIZE, FEAT_SIZE)
    config = NetworkConfig("REP3D", 1, CLASSES, roi_size, {"feat_size": feat_size, "kernel_size": kernel_size})
    precision = choose_precision("auto", bench.device, roi_size, InputSizes(16))
    large = Step(config, BATCH, bench.device, precision, layout="plain")
    small = replace(large, config=replace(config, overrides={**config.overrides, "kernel_size": SMALL_KERNEL}))
    single = replace(large, precision=None)
    found: dict[str, Variant] = {
        SMALL_NATIVE: (small, native_convolutions()),
        PUBLISHED: (replace(single, published=True), nullcontext()),
        f"{LARGE}, cuDNN benchmark": (large, cudnn_benchmark()),
        f"{LARGE}, float32 as PyTorch has it": (single, nullcontext()),
        f"{LARGE}, float32, TF32 everywhere": (single, tf32(True)),
        f"{LARGE}, float32, TF32 nowhere": (single, tf32(False)),
    }
    layouts: tuple[Layout, ...] = ("plain", "channels_last", "channels_last_kernels")
    for compiled, checkpointing, layout in itertools.product((False, True), (False, True), layouts):
        levers = {"compiled": compiled, "checkpointing": checkpointing, layout: layout != "plain"}
        for name, step in ((LARGE, large), (SMALL, small)):
            full_name = ", ".join([name, *(lever for lever, on in levers.items() if on)])
            found[full_name] = (
                replace(step, compiled=compiled, checkpointing=checkpointing, layout=layout),
                nullcontext(),
            )
    middle = [name for name in found if name not in (*FIRST, *LAST)]
    return {name: found[name] for name in (*FIRST, *middle, *LAST)}


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time three of its algorithms instead of choosing one by heuristics."""
    before = torch.backends.cudnn.benchmark_limit
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 3
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = False, before


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products and convolutions.

    PyTorch's older switches are used, since they set the newer ones as well: code that reads either agrees.
    """
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def least(step: Step) -> float:
    """Return the seconds that a variant needs to be started."""
    return COMPILED_S if step.compiled else EAGER_S


def run(step: Step, least_step_s: float) -> dict[str, Any]:
    """Measure seconds and peak, and the share of the matrix ceiling reached by products outside the large kernels."""
    found = measure_step(step, REPEATS, LIMIT_S)
    share = None if found["step_s"] is None else least_step_s / found["step_s"]
    return {"autocast": step.autocast, **found, "matrix_share": share}


def profile(step: Step) -> list[dict[str, Any]]:
    """Profile a step: its most expensive kernels, with their shares of the total time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    train_step = prepare(step)
    train_step()
    with torch.profiler.profile(activities=activities) as found:
        train_step()
    kernels = [(event.key, seconds_of(event, step.device), event.count) for event in found.key_averages()]
    total = sum(seconds for _, seconds, _ in kernels)
    kernels.sort(key=lambda kernel: -kernel[1])
    return [
        {"kernel": name, "seconds": seconds, "share": seconds / total, "calls": calls}
        for name, seconds, calls in kernels[:TOP_KERNELS]
    ]


def seconds_of(event: Any, device: torch.device) -> float:
    """Return the seconds of a kernel itself; on a GPU, zero for operators that launch kernels and for named ranges."""
    if device.type != "cuda":
        return event.self_cpu_time_total / 1e6
    is_kernel = event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    return event.self_device_time_total / 1e6 if is_kernel else 0.0


def time_large_convolutions(bench: Bench, step: Step) -> float:
    """Measure the device seconds of all passes of the eight large convolutions of a step."""
    feat_size, kernel_size = step.config.overrides["feat_size"], step.config.overrides["kernel_size"]

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return large_kernel_conv3d(x, weight)

    seconds = 0.0
    for level, channels in enumerate(feat_size):
        problem = Problem(BATCH, channels, step.config.roi_size[0] // 2 ** (level + 1), kernel_size, "bf16")
        passes = time_passes(bench, problem, convolve, ("forward", "backward"))
        seconds += 2 * (passes["forward"] + passes["backward"])  # two blocks per stage
    return seconds


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Compute the ratios of the targets, if both sides were measured; kernel 3 counts with its faster convolution."""
    seconds = {row["name"]: row["step_s"] for row in results["rows"] if row["reason"] is None}
    found: dict[str, float] = {}
    if LARGE not in seconds:
        return found
    if smalls := [seconds[name] for name in (SMALL, SMALL_NATIVE) if name in seconds]:
        found["large_over_small"] = seconds[LARGE] / min(smalls)
    if PUBLISHED in seconds:
        found["published_over_large"] = seconds[PUBLISHED] / seconds[LARGE]
    if "large_convolutions_s" in results:
        found["convolutions_share"] = results["large_convolutions_s"] / seconds[LARGE]
    return found


def lines(results: dict[str, Any]) -> list[str]:
    """Format the ratios and the most expensive kernels, then the measurements, several variants per line."""
    found = ratios(results)
    text = [", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.items())] if found else []
    text += [f"{key}: {results[key]}" for key in ("profile_reason", "large_convolutions_s_reason") if key in results]
    kernels = results.get("profile", [])[:SHOWN_KERNELS]
    text += [f"{kernel['share']:.0%} {kernel['kernel'][:100]}" for kernel in kernels]
    if missing := [f"{row['name']}: {row['reason']}" for row in results["rows"] if row["reason"] is not None]:
        text.append(f"{len(missing)} not measured, the first {missing[0]}")
    cells = [
        f"{row['name']} {1e3 * row['step_s']:.1f} ms {row['peak_bytes'] / 1e9:.1f} GB {row['matrix_share']:.0%}"
        for row in results["rows"]
        if row["reason"] is None
    ]
    text += ["ms per step, peak memory, share of the bf16 matrix rate:"] if cells else []
    return [*text, *("; ".join(cells[start : start + PER_LINE]) for start in range(0, len(cells), PER_LINE))]
