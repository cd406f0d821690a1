"""A case is finished in a thread while the network processes the next one: order, memory, errors, shared spectra."""

import io
import threading
import time
import weakref
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from engine.prediction import ensemble, predict_cases
from engine.prediction.ensemble import Ensemble, Member
from engine.prediction.predict_cases import overlap_steps, window_bar
from engine.prediction.sliding_window import SlidingWindow
from networks.large_kernel_conv import LargeKernelConv3d


def test_work_continues_while_the_previous_item_is_finished():
    started, order = threading.Event(), []

    def work(item):
        order.append(f"work {item}")
        if item == 1:
            started.set()
        return item

    def finish(item):
        assert item or started.wait(10)  # the second item's work begins before the first one is finished
        order.append(f"finish {item}")

    overlap_steps(range(3), work, finish)
    assert order.index("work 1") < order.index("finish 0")
    assert [step for step in order if step.startswith("finish")] == ["finish 0", "finish 1", "finish 2"]


@pytest.mark.parametrize("slow", [True, False])
def test_items_are_freed_when_they_are_finished(slow):
    """At most two items are alive, however slow ``finish`` is, and one after the previous item is finished."""

    class Volume:
        pass

    alive: list[weakref.ref] = []
    counts = []

    def work(_):
        volume = Volume()
        alive.append(weakref.ref(volume))
        deadline = time.monotonic() + (0 if slow else 5)
        while (count := sum(reference() is not None for reference in alive)) > 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        counts.append(count)
        return volume

    overlap_steps(range(5), work, lambda volume: time.sleep(0.05 if slow else 0))
    assert max(counts) <= (3 if slow else 1)  # briefly three, between the end of ``finish`` and its return


@pytest.mark.parametrize("terminal", [True, False])
def test_the_windows_of_a_case_are_shown_in_a_terminal_only(terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    stream.isatty = lambda: terminal
    with window_bar(12, "case_7") as bar:
        bar.delay = bar.mininterval = 0
        bar.update(12)
        shown = stream.getvalue()
    assert ("case_7: 100%" in shown and "12/12" in shown) == terminal


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_in_the_thread_is_raised(bad):
    done = []

    def finish(item):
        if item == bad:
            raise OSError(28, "No space left on device")
        done.append(item)

    with pytest.raises(OSError, match="No space left"):
        overlap_steps(range(3), lambda item: item, finish)
    assert done == list(range(bad))


def test_all_cases_share_the_spectra_of_the_kernels(monkeypatch):
    network, kept = nn.Sequential(LargeKernelConv3d(1, 3)), []
    monkeypatch.setattr(predict_cases, "case_loader", lambda dataset, num_workers: dataset.cases)
    monkeypatch.setattr(ensemble, "predict_logits", lambda *args: kept.append(network[0].kept_spectrum))
    monkeypatch.setattr(predict_cases, "estimate_work", lambda *_: None)
    window = SlidingWindow((8, 8, 8), 1, 0.5, torch.device("cpu"), Mock())
    cases = [{"id": name, "image": torch.zeros(1, 8, 8, 8)} for name in ("first", "second")]
    unchanged = (lambda sample: sample, lambda sample: sample)
    outcomes = predict_cases.predict_cases(
        cases, None, unchanged, Ensemble([Member(network, window, "off")]), Mock(), 0
    )
    assert len(outcomes) == 2
    assert kept[0] is kept[1] is not None
    assert network[0].kept_spectrum is None
