"""The benchmark of the training step runs each variant as described, and computes its ratios from the measurements."""

import json

import pytest
import torch

import networks.large_kernel_conv as conv_module
from benchmarks import measure, training_step
from benchmarks.training_step import main, parse_args, ratios
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig

TINY = ["--roi_size", "32", "32", "32", "--feat_size", "4", "4", "4", "4", "--kernel_size", "5", "--out_chans", "3"]


def make_step(**options):
    config = NetworkConfig("REP3D", 1, 3, (32, 32, 32), {"feat_size": (4, 4, 4, 4), "kernel_size": 5})
    return measure.Step(config, 1, torch.device("cpu"), None, **options)


@pytest.mark.slow
def test_every_variant_is_measured(tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    results = main(parse_args([*TINY, "--repeats", "1", "--checkpointing", "--published", "--output", str(output)]))
    assert json.loads(output.read_text()) == results
    assert [row["name"] for row in results["rows"]] == ["kernel 5", "kernel 3", "checkpointing", "published"]
    for row in results["rows"]:
        assert len(row["steps_s"]) == 1
        assert 0 < row["step_s"] < 30
        assert 2e8 < row["peak_bytes"] < 4e9
    text = capsys.readouterr().out
    assert f"kernel 5 over kernel 3: {results['large_over_small']:.2f}" in text
    assert f"published over kernel 5: {results['published_over_large']:.1f}" in text


def test_variants_take_turns_and_warm_ups_do_not_count(monkeypatch, tmp_path):
    ran = []

    class Process:
        def __init__(self, step, memory):
            self.step = step

        def run(self):
            ran.append((self.step.config.overrides["kernel_size"], self.step.published))
            return float(len(ran)), 10 * len(ran)

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(training_step, "StepProcess", Process)
    results = main(parse_args([*TINY, "--repeats", "2", "--published", "--output", str(tmp_path / "result.json")]))
    assert ran == [(5, False), (3, False)] * 4 + [(5, True)]
    large, small, published = results["rows"]
    assert (large["steps_s"], small["steps_s"], published["steps_s"]) == ([5.0, 7.0], [6.0, 8.0], [9.0])
    assert (large["step_s"], large["peak_bytes"]) == (6.0, 70)
    assert (results["large_over_small"], results["published_over_large"]) == (6 / 7, 9 / 6)
    assert "published_over_large" not in ratios(results["rows"][:2])


def test_published_recipe_uses_no_optimisation(monkeypatch):
    built = []
    optimizers = []
    monkeypatch.setattr(
        measure.NetworkConfig, "build", lambda config, build=NetworkConfig.build: _keep(built, build(config))
    )
    monkeypatch.setattr(measure, "AdamW", lambda *args, **kwargs: _keep(optimizers, torch.optim.AdamW(*args, **kwargs)))
    monkeypatch.setattr(measure, "to_device", None)
    measure.prepare(make_step(published=True))()
    (network,), (optimizer,) = built, optimizers
    assert not optimizer.defaults["fused"]
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


def _keep(things, thing):
    things.append(thing)
    return thing


class _Requests:
    """Connection that requests some steps, then closes."""

    def __init__(self, steps):
        self.steps, self.answers = steps, []

    def recv(self):
        if len(self.answers) == self.steps:
            raise EOFError
        return True

    def send(self, answer):
        self.answers.append(answer)


@pytest.mark.parametrize("published", [True, False])
def test_only_the_published_recipe_convolves_directly(published, monkeypatch):
    # The FFT costs nothing, so that the direct path is chosen only if it costs nothing as well: ties go to it.
    monkeypatch.setattr(conv_module, "FFT_COST", dict.fromkeys(conv_module.FFT_COST, 0.0))
    costs = dict(conv_module.DIRECT_COST)
    monkeypatch.setattr(conv_module, "DIRECT_COST", costs)
    monkeypatch.setattr(measure, "DIRECT_COST", costs)
    monkeypatch.setattr(measure.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(measure, "tune_process", lambda: None)
    transforms = []
    rfftn = torch.fft.rfftn
    monkeypatch.setattr(torch.fft, "rfftn", lambda *args, **kwargs: transforms.append(args) or rfftn(*args, **kwargs))
    connection = _Requests(2)
    measure._serve(make_step(published=published), 10**10, connection)
    assert len(connection.answers) == 2
    assert bool(transforms) != published


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_one_line(capsys, tmp_path):
    output = ["--output", str(tmp_path / "result.json")]
    assert run(main, parse_args([*TINY, *output, "--roi_size", *["8192"] * 3])) == 2
    assert not list(tmp_path.iterdir())
    assert "error: kernel 5: out of memory" in capsys.readouterr().err
