"""Invalid arguments of a benchmark are refused in one line that names them, before anything is measured."""

import pytest

from benchmarks import data_loading, kernel_size, large_kernel_conv, onnx_runtime, prediction, training_step


@pytest.mark.parametrize(
    ("benchmark", "command"),
    [
        (data_loading, ["--cases", "0"]),
        (data_loading, ["--epochs", "0"]),
        (data_loading, ["--shape", "3", "3"]),
        (prediction, ["--shape", "64", "64", "8"]),
        (prediction, ["--network", "U-Net"]),
        (prediction, ["--cases", "0"]),
        (training_step, ["--kernel_size", "4"]),
        (training_step, ["--repeats", "0"]),
        (training_step, ["--roi_size", "96", "96"]),
        (kernel_size, ["--crops", "20"]),
        (kernel_size, ["--kernel_sizes", "4"]),
        (large_kernel_conv, ["--kernel_size", "4"]),
        (large_kernel_conv, ["--repeats", "0"]),
        (large_kernel_conv, ["--stages", "3x6"]),
        (onnx_runtime, ["--kernel_size", "4"]),
        (onnx_runtime, ["--limit_s", "0"]),
    ],
)
def test_benchmark_refuses_invalid_arguments(benchmark, command, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.parse_args(command)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert command[0] in message
    assert message.count("\n") == 1
