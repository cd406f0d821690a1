"""The candidate convolutions agree with the direct one: the DFT on a CPU, Triton's kernels in its interpreter."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY

from benchmarks.candidates.dft_matmul import dft_matmul, multiply_spectra, traffic

# Input shape and kernel size: odd, even and unequal sides, a kernel larger than the grid, more rows than one tile.
PROBLEMS = [((2, 3, 5, 6, 7), 5), ((1, 2, 4, 3, 6), 11), ((2, 2, 9, 8, 20), 7), ((1, 1, 1, 1, 1), 3)]

# Runs in a process that sets TRITON_INTERPRET before Triton is imported: errors of each pass, by problem and type.
INTERPRETED = """
import json, sys
import torch
sys.path[:0] = ["tests", "tests/benchmarks"]
from test_candidates import PROBLEMS, errors, spectra
from benchmarks.candidates.dft_matmul import multiply_spectra
from benchmarks.candidates.implicit_gemm import implicit_gemm
from benchmarks.candidates.triton_kernels import multiply_spectra_kernel

found = {str(problem): [
    errors(lambda x, w: implicit_gemm(x, w, dtype), *problem) for dtype in (torch.float32, torch.float16)
] for problem in PROBLEMS}
differences = []
for first, second, summed in spectra():
    for conjugate in (False, True):
        ours = multiply_spectra_kernel(first, second, conjugate, summed)
        theirs = multiply_spectra(first, second, conjugate, summed)
        assert ours.shape == theirs.shape
        differences.append((ours - theirs).abs().max().item())
print(json.dumps({"gemm": found, "product": max(differences)}))
"""
# Compiles for a Hopper GPU, without a GPU: does the code of the kernels use matrix units?
COMPILED = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from benchmarks.candidates import triton_kernels

found = {}
for name, tensors in (("_correlate", ("x", "weight", "out")), ("_correlate_for_kernel", ("x", "grad", "out"))):
    kernel = getattr(triton_kernels, name)
    for number in ("bf16", "fp16", "fp32"):
        for width in (16, 64):
            constants = {"KD": 21, "KH": 21, "KW": 21, "ROWS": triton_kernels.ROWS, "WIDTH": width}
            types = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
            types |= {name: f"*{number}" for name in tensors}
            values = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
            source = ASTSource(kernel, types, values)
            code = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
            found[f"{name} {number} {width}"] = "wgmma" in code or "mma.sync" in code
print(json.dumps(found))
"""


def native(x, weight):
    return F.conv3d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def passes(convolve, tensors):
    x, weight, grad = (tensor.clone() for tensor in tensors)
    out = convolve(x.requires_grad_(), weight.requires_grad_())
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def errors(convolve, shape, kernel_size, dtype=torch.float32):
    """Compute relative errors of output and gradients against float64, for tensors of a type."""
    torch.manual_seed(0)
    kernel = shape[1], 1, *[kernel_size] * 3
    tensors = [torch.randn(size, dtype=torch.float64) for size in (shape, kernel, shape)]
    expected = passes(native, tensors)
    found = passes(convolve, [tensor.to(dtype) for tensor in tensors])
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def spectra():
    """Build pairs of spectra to multiply, some with a single sample for all, and whether to sum over the samples."""
    generator = torch.Generator().manual_seed(0)
    many, other = (torch.randn(3, 2, 4, 6, 2, 5, generator=generator) for _ in range(2))
    return [(many, other, False), (many, other[:1], False), (many[:1], other, False), (many, other, True)]


@pytest.mark.parametrize(("shape", "kernel_size"), PROBLEMS)
def test_dft_is_exact_in_float64(shape, kernel_size):
    assert max(errors(dft_matmul, shape, kernel_size, torch.float64)) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("shape", "kernel_size"), PROBLEMS)
def test_dft_in_half_precision_rounds_once_per_axis(shape, kernel_size, dtype, tolerance):
    assert max(errors(lambda x, weight: dft_matmul(x, weight, dtype), shape, kernel_size)) < tolerance


def test_spectra_are_multiplied_as_complex_numbers():
    for first, second, summed in spectra():
        a, b = (torch.complex(*factor.unbind(-2)) for factor in (first, second))
        for conjugate, other in ((False, b), (True, b.conj())):
            product = (a * other).sum(0, keepdim=True) if summed else a * other
            found = torch.complex(*multiply_spectra(first, second, conjugate, summed).unbind(-2))
            torch.testing.assert_close(found, product)


def test_traffic_counts_every_product_of_the_dft():
    # One axis after the other, with 4 + 4 // 2 points rounded up to 8, and 5 frequencies along the first: x and output.
    transform = 4**3 + 2 * (10 * 16) + 2 * (10 * 8 * 4) + 10 * 8 * 8
    found = traffic((1, 1, 4, 4, 4), 5, 2)
    kernel = 5**3 + 2 * (10 * 25) + 2 * (10 * 8 * 5) + 10 * 8 * 8
    assert found["forward"] == 2 * (2 * transform + kernel + 3 * 640)
    assert found["backward"] == 2 * (2 * transform + kernel + 6 * 640)


def run_with_triton(code, **environment):
    pytest.importorskip("triton", reason="needs Triton, which is available for Linux")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton version does not support this NumPy version")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_triton_kernels_are_right():
    """bf16 has gpu tests only: Triton's interpreter multiplies its bits as integers."""
    found = run_with_triton(INTERPRETED, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    for single, half in found["gemm"].values():
        assert max(single) < 1e-6
        assert max(half) < 1e-3
    assert found["product"] < 1e-5


@pytest.mark.slow
def test_triton_kernels_compile_for_a_hopper_gpu(tmp_path):
    found = run_with_triton(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 12
    assert all(found.values()), found
