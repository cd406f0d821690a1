"""Logs of a training run in Weights & Biases or MLflow, next to TensorBoard's files.

Both packages are optional, and imported only when they are asked for.
"""

import importlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from matplotlib.figure import Figure
from tqdm import tqdm

from engine.runtime.errors import InputError, Stopped, raise_problems
from engine.runtime.files import write_text
from engine.training.log import Log, TensorBoardLog

SECONDS = 5.0  # between two messages to a service
PROJECT = "rep3d"  # where the service's own environment variable names no other
LARGEST_BATCH = 1000  # metrics that MLflow takes at once
Rows = list[tuple[int, dict[str, float]]]  # numbers by name, each with its step


class Service(Protocol):
    """Interface of a service that logs a run.

    A constructor takes the run's folder, its flags, and the id that the service has given to a run to be continued, or
    None. It may raise any exception.

    Attributes:
        run_id: id of the run.
        durable: whether numbers are safe when ``send`` returns, even if this process is killed then.
    """

    run_id: str
    durable: bool

    def send(self, rows: Rows) -> None:
        """Log numbers, in the order of their steps."""

    def send_figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a picture."""

    def finish(self, error: type[BaseException] | None) -> None:
        """End the run; ``error`` is the exception that ended the training, if one did."""


class WandbService:
    """Weights & Biases.

    Each message has the iteration as a number of its own, which is the x-axis of all others: the service's own steps
    only ever grow, while a resumed run may log an earlier iteration.
    """

    durable = False  # another process writes and sends them, and may lose the last seconds

    def __init__(self, output: Path, flags: dict[str, Any], run_id: str | None) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=output.name,
            dir=str(output),
            id=run_id,
            resume="allow",
            config=flags if run_id is None else None,
            settings=self._wandb.Settings(console="off"),  # it would record every state of the progress bars
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        self.run_id = str(self._run.id)

    def send(self, rows: Rows) -> None:
        for step, values in rows:
            self._run.log({**values, "iteration": step})

    def send_figure(self, name: str, figure: Figure, step: int) -> None:
        self._run.log({name: self._wandb.Image(figure), "iteration": step})

    def finish(self, error: type[BaseException] | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class MlflowService:
    """MLflow; characters that it refuses in names are replaced by underscores."""

    durable = True

    def __init__(self, output: Path, flags: dict[str, Any], run_id: str | None) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = importlib.import_module("mlflow").MlflowClient()
        if run_id is not None:
            self.run_id = run_id
            self._client.update_run(run_id, "RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self.run_id = self._client.create_run(experiment, run_name=output.name).info.run_id
        parameters = [self._entities.Param(flag, str(value)) for flag, value in flags.items()]
        self._client.log_batch(self.run_id, params=parameters)

    def send(self, rows: Rows) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._entities.Metric(self._allowed(name), value, now, step)
            for step, values in rows
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), LARGEST_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + LARGEST_BATCH])

    def send_figure(self, name: str, figure: Figure, step: int) -> None:
        self._client.log_figure(self.run_id, figure, f"{self._allowed(name)}/{step}.png")

    def finish(self, error: type[BaseException] | None) -> None:
        ended = "FAILED" if error is not None else "FINISHED"
        self._client.set_terminated(self.run_id, "KILLED" if error is Stopped else ended)

    def _allowed(self, name: str) -> str:
        return re.sub(r"[^\w\-. :/]", "_", name)


SERVICES: dict[str, Callable[[Path, dict[str, Any], str | None], Service]] = {
    "wandb": WandbService,
    "mlflow": MlflowService,
}


class ServiceLog:
    """Log that hands numbers to a service every few seconds, and notes in the run's folder what it has received.

    A resumed run repeats the steps after its last checkpoint. A service cannot discard what it has, so the steps that
    it has received for certain are not sent again: those of every message to a durable service, and otherwise those
    before the last checkpoint or a regular end. If it fails, the training goes on without it, and a line says so; the
    next resumed run sends what comes after its checkpoint.

    Args:
        name: key of ``SERVICES``.
        output: folder of the run.
        flags: flags of the run; those of a new run become its configuration.
    Raises:
        InputError: the service cannot be reached.
    """

    def __init__(self, name: str, output: Path, flags: dict[str, Any]) -> None:
        self._name, self._path = name, output / f"{name}.json"
        known = _read_note(self._path) if flags["resume"] else {}
        self._step, self._names = known.get("step", -1), set(known.get("names", ()))
        try:
            self._service: Service | None = SERVICES[name](output, flags, known.get("run"))
        except Exception as error:  # of many kinds
            expected = "expected a service that answers; the run is saved, go on with --resume"
            raise InputError(f"--log {name}: cannot log there ({_first_line(error)}), {expected}") from error
        self._run_id = self._service.run_id
        self._rows: Rows = []
        self._sent = time.monotonic()
        self._note()

    def scalars(self, values: dict[str, float], step: int) -> None:
        if unsent := {name: value for name, value in values.items() if not self._has(name, step)}:
            self._rows.append((step, unsent))
        if time.monotonic() - self._sent > SECONDS:
            self._send()

    def figure(self, name: str, figure: Figure, step: int) -> None:
        self._send()
        if not self._has(name, step):
            self._attempt(lambda service: service.send_figure(name, figure, step), step, [name])

    def flush(self) -> None:
        self._send()
        self._note()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._send()
        self._attempt(lambda service: service.finish(error[0]), self._step, [])
        self._note()

    def _send(self) -> None:
        rows, self._rows = self._rows, []
        self._sent = time.monotonic()
        if rows:
            last = rows[-1][0]
            names = [name for step, values in rows if step == last for name in values]
            self._attempt(lambda service: service.send(rows), last, names)

    def _has(self, name: str, step: int) -> bool:
        return step < self._step or (step == self._step and name in self._names)

    def _attempt(self, send: Callable[[Service], object], step: int, names: Sequence[str]) -> None:
        """Send something; then everything up to this step, and these names of it, has been received."""
        if self._service is None:
            return
        try:
            send(self._service)
        except Exception as error:  # of many kinds
            self._service = None
            tqdm.write(
                f"warning: --log {self._name}: no more is logged there ({_first_line(error)}); tensorboard/ has all"
            )
            return
        self._names = {*names, *(self._names if step == self._step else ())}
        self._step = step
        if self._service.durable:
            self._note()

    def _note(self) -> None:
        note = {"run": self._run_id, "step": self._step, "names": sorted(self._names)}
        write_text(self._path, json.dumps(note) + "\n")


class Logs:
    """Several logs as one."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs, self._stack = logs, ExitStack()

    def scalars(self, values: dict[str, float], step: int) -> None:
        for log in self._logs:
            log.scalars(values, step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        for log in self._logs:
            log.figure(name, figure, step)

    def flush(self) -> None:
        for log in self._logs:
            log.flush()

    def __enter__(self) -> Self:
        for log in self._logs:
            self._stack.enter_context(log)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def check_services(names: Sequence[str] | None) -> None:
    """Make sure that the packages of the services are installed.

    Raises:
        InputError: a line for each that is not.
    """
    missing = [name for name in names or () if importlib.util.find_spec(name) is None]
    raise_problems(
        [f"--log {name}: the package {name} is not installed, expected pip install {name}" for name in missing]
    )


def open_logs(names: Sequence[str] | None, output: Path, flags: dict[str, Any], first_step: int) -> Logs:
    """Open TensorBoard's files, and the services.

    Args:
        names: keys of ``SERVICES``.
        output: folder of the run.
        flags: flags of the run.
        first_step: entries of an earlier run from this step on are discarded.
    Raises:
        InputError: a service cannot be reached.
    """
    logs: list[Log] = [ServiceLog(name, output, flags) for name in dict.fromkeys(names or ())]
    return Logs([TensorBoardLog(output / "tensorboard", first_step), *logs])


def _read_note(path: Path) -> dict[str, Any]:
    """Read what a service has received.

    Raises:
        InputError: there is a file that cannot be read.
    """
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"run": str(note["run"]), "step": int(note["step"]), "names": list(note["names"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        expected = "expected what an earlier part of the run has noted, or no such file"
        raise InputError(f"{path}: cannot be read ({error}), {expected}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
