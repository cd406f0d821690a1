"""Further measurements of a finished run, each a table beside results.csv."""

from collections.abc import Callable
from pathlib import Path

from experiments.results import Row


def measure_masks(run: Path) -> list[Row]:
    """Describe the masks of a run: each evaluation's correction |M - P| / P and smallest M, and the final profile.

    Columns: iteration, block, quantity ("correction", "smallest", or "M at distance d" and "P at distance d", means
    over the taps whose rounded distance from the centre is d voxels), value.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from engine.evaluation.masks import find_masks, radial_profile
    from engine.runtime.files import LAST
    from engine.weights.checkpoints import config_of, load_checkpoint
    from engine.weights.load_weights import load_weights

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = []
    for tag in log.Tags()["scalars"]:
        if tag.startswith("mask/"):
            _, block, quantity = tag.split("/")
            rows += [_row(event.step, block, quantity, event.value) for event in log.Scalars(tag)]
    path = run / LAST
    content = load_checkpoint(path, "run")
    described = config_of(content, path, "run")
    assert described is not None
    network = described[0].build()
    load_weights(network, content, str(path), strict=True)
    for block, lrbm in find_masks(network).items():
        for name, values in (("M", lrbm()[0, 0]), ("P", lrbm.prior)):
            profile = radial_profile(values.detach().numpy())
            quantities = ((f"{name} at distance {distance}", value) for distance, value in enumerate(profile))
            rows += [_row(content["iteration"], block, quantity, value) for quantity, value in quantities]
    return rows


def _row(iteration: int, block: str, quantity: str, value: float) -> Row:
    return {"iteration": str(iteration), "block": block, "quantity": quantity, "value": f"{value:.6g}"}


MEASURES: dict[str, Callable[[Path], list[Row]]] = {"masks": measure_masks}
