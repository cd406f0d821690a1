"""The candidate convolutions on a GPU agree with the direct one in float64 on the CPU."""

import pytest
import torch
from test_candidates import errors

from benchmarks.candidates.dft_matmul import dft_matmul
from benchmarks.candidates.implicit_gemm import implicit_gemm

PROBLEMS = [((2, 3, 9, 12, 20), 7), ((2, 5, 24, 24, 24), 9), ((1, 4, 6, 6, 6), 21)]
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("candidate", [dft_matmul, implicit_gemm])
@pytest.mark.parametrize(
    ("shape", "kernel_size"), [((2, 3, 9, 12, 20), 7), ((2, 5, 24, 24, 24), 9), ((1, 4, 6, 6, 6), 21)]
)
def test_candidate_convolution_agrees_with_the_cpu(candidate, shape, kernel_size, dtype, tolerance, device):
    """float32 products may be TF32."""
    if candidate is implicit_gemm and device.type == "cpu":
        pytest.skip("Triton needs a GPU; test_candidates uses its interpreter")
    found = errors(lambda x, weight: candidate(x.to(device), weight.to(device), dtype).cpu(), shape, kernel_size)
    assert max(found) < tolerance
