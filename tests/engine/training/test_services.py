"""Logging to services: what they receive, undisturbed and resumed; their failures; the real packages if installed."""

import json
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import assert_one_line, train_arguments
from matplotlib.figure import Figure

import main_train
from engine.runtime.errors import InputError, Stopped
from engine.runtime.files import LAST, PREVIOUS
from engine.training import services
from engine.training.services import SERVICES, Logs, ServiceLog, check_services, open_logs

FLAGS = {"resume": False, "lr": 1e-4}


class Received:
    """Fake service that keeps what it receives, and fails on request."""

    def __init__(self):
        self.numbers, self.pictures, self.ends, self.started = [], [], [], []
        self.failing, self.durable = False, True

    def start(self, output, flags, run_id):
        if self.failing:
            raise ConnectionError("nobody answers\nand more lines")
        self.started.append(run_id)
        functions = {"send": self.send, "send_figure": self.send_figure, "finish": self.ends.append}
        return SimpleNamespace(run_id="run1", durable=self.durable, **functions)

    def send(self, rows):
        if self.failing:
            raise ConnectionError("nobody answers")
        self.numbers += [(step, name, value) for step, values in rows for name, value in values.items()]

    def send_figure(self, name, figure, step):
        self.pictures.append((name, step))

    def named(self, name):
        return {step: value for step, found, value in self.numbers if found == name}


@pytest.fixture
def fake(monkeypatch):
    received = Received()
    monkeypatch.setitem(SERVICES, "wandb", received.start)
    return received


def open_service(folder, resume=False):
    return ServiceLog("wandb", folder, {**FLAGS, "resume": resume})


def log_steps(log, steps):
    for step in steps:
        log.scalars({"train/loss": float(step)}, step)


def test_a_service_receives_everything_in_order(fake, tmp_path):
    with open_service(tmp_path) as log:
        log_steps(log, (1, 2))
        assert fake.numbers == []
        log.figure("case", Figure(), 2)
        log.scalars({"dice/mean": 0.5}, 2)
    assert fake.numbers == [(1, "train/loss", 1.0), (2, "train/loss", 2.0), (2, "dice/mean", 0.5)]
    assert (fake.pictures, fake.ends, fake.started) == ([("case", 2)], [None], [None])


def test_numbers_are_sent_while_the_run_goes_on(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SECONDS", -1)
    log_steps(open_service(tmp_path), (1, 2))
    assert [step for step, *_ in fake.numbers] == [1, 2]


def test_a_resumed_run_sends_only_what_the_service_lacks(fake, tmp_path):
    log = open_service(tmp_path)
    log_steps(log, (1, 2, 3, 4))
    log.flush()
    log.figure("case", Figure(), 4)  # then it is killed, with a checkpoint at step 2
    with open_service(tmp_path, resume=True) as log:
        log_steps(log, (3, 4))
        log.figure("case", Figure(), 4)
        log.scalars({"dice/mean": 0.5}, 4)
        log_steps(log, (5,))
    names = [(step, name) for step, name, _ in fake.numbers]
    assert names == [*((step, "train/loss") for step in (1, 2, 3, 4)), (4, "dice/mean"), (5, "train/loss")]
    assert fake.pictures == [("case", 4)]
    assert fake.started == [None, "run1"]


def test_what_a_killed_run_has_not_sent_for_certain_is_sent_again(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SECONDS", -1)
    fake.durable = False
    log = open_service(tmp_path)
    log_steps(log, (1, 2))
    log.flush()  # a checkpoint
    log_steps(log, (3, 4))  # then it is killed
    with open_service(tmp_path, resume=True) as log:
        log_steps(log, (3, 4))  # then it stops, so everything is safe
    log_steps(open_service(tmp_path, resume=True), (3, 4, 5))
    assert [step for step, *_ in fake.numbers] == [1, 2, 3, 4, 3, 4, 5]


def test_a_new_run_does_not_go_on_where_another_has_ended(fake, tmp_path):
    for _ in range(2):
        with open_service(tmp_path) as log:
            log_steps(log, (1,))
    assert len(fake.numbers) == 2
    assert fake.started == [None, None]


def test_a_failing_service_does_not_end_the_run(fake, tmp_path, capsys):
    with open_service(tmp_path) as log:
        log_steps(log, (1,))
        log.flush()
        fake.failing = True
        log_steps(log, (2,))
        log.flush()
        fake.failing = False
        log_steps(log, (3,))
    assert capsys.readouterr().out.count("warning: --log wandb: no more is logged there (nobody answers)") == 1
    with open_service(tmp_path, resume=True) as log:
        log_steps(log, (2, 3))
    assert [step for step, *_ in fake.numbers] == [1, 2, 3]


def test_a_service_that_cannot_be_reached_is_one_line(fake, tmp_path):
    fake.failing = True
    with pytest.raises(InputError, match=r"^--log wandb: cannot log there \(nobody answers\), .* --resume") as found:
        open_service(tmp_path)
    assert "\n" not in str(found.value)


def test_a_damaged_note_is_named(fake, tmp_path):
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(InputError, match=r"wandb\.json: cannot be read"):
        open_service(tmp_path, resume=True)


def test_several_logs_are_one(fake, tmp_path):
    with open_logs(["wandb"], tmp_path, FLAGS, 1) as log:
        log.scalars({"train/loss": 0.5}, 1)
        log.figure("case", Figure(), 1)
        log.flush()
    assert fake.numbers == [(1, "train/loss", 0.5)]
    assert list((tmp_path / "tensorboard").iterdir())
    assert isinstance(log, Logs)


def test_the_services_are_those_of_the_flag(capsys):
    with pytest.raises(SystemExit):
        main_train.parse_args(["--help"])
    assert f"{', '.join(SERVICES)}: log there, too" in " ".join(capsys.readouterr().out.split())


def test_a_missing_package_ends_the_run_before_it_starts(boxes, tmp_path, train, monkeypatch):
    monkeypatch.setattr(services.importlib.util, "find_spec", lambda name: None)
    result = train(*train_arguments(boxes, tmp_path / "run", "--log", "mlflow"))
    assert_one_line(result, "--log mlflow: the package mlflow is not installed, expected pip install mlflow")
    check_services(None)


def test_a_stopped_run_that_repeats_steps_logs_each_once(boxes, tmp_path, train, fake, monkeypatch):
    monkeypatch.setattr(services, "check_services", lambda names: None)
    monkeypatch.setattr(services, "SECONDS", -1)
    send = fake.send

    def send_and_stop(rows):
        send(rows)
        if rows[-1][0] == 3 and not fake.ends:
            signal.raise_signal(signal.SIGTERM)

    fake.send = send_and_stop
    words = train_arguments(boxes, tmp_path / "run", "--max_iter", "6", "--log", "wandb")
    assert train(*words)[0] == 75
    assert fake.ends == [Stopped]
    shutil.copy(tmp_path / "run" / PREVIOUS, tmp_path / "run" / LAST)  # as if the last steps were lost
    assert train(*words, "--resume")[0] == 0
    assert [step for step, name, _ in fake.numbers if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
    dice, best = fake.named("dice/mean"), fake.named("best/dice")
    assert list(dice) == list(best) == [2, 4, 6]
    assert best[6] == max(dice.values())
    assert len(fake.numbers) == len({(step, name) for step, name, _ in fake.numbers})


class FakeRun:
    """Fake of what ``wandb.init`` returns."""

    def __init__(self):
        self.id, self.logged, self.metrics, self.exit_code = "abc", [], [], None

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_wandb_is_called_with_the_iteration_as_its_axis(tmp_path, monkeypatch):
    module, run, asked = ModuleType("wandb"), FakeRun(), []
    module.Settings, module.Image = lambda **settings: settings, lambda figure: "picture"
    module.init = lambda **words: asked.append(words) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    service = services.WandbService(tmp_path / "run", FLAGS, None)
    service.send([(1, {"train/loss": 0.5})])
    service.send_figure("case", Figure(), 1)
    service.finish(None)
    assert run.metrics == [("iteration", None), ("*", "iteration")]
    assert run.logged == [{"train/loss": 0.5, "iteration": 1}, {"case": "picture", "iteration": 1}]
    assert run.exit_code == 0
    services.WandbService(tmp_path / "run", FLAGS, service.run_id)
    assert [(words["id"], words["config"]) for words in asked] == [(None, FLAGS), ("abc", None)]


def test_mlflow_has_flags_numbers_pictures_and_an_end(tmp_path, monkeypatch):
    """The real package, with a database in a folder."""
    pytest.importorskip("mlflow", reason="needs mlflow")
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    monkeypatch.chdir(tmp_path)
    with ServiceLog("mlflow", tmp_path, FLAGS) as log:
        log_steps(log, range(1500))
        log.scalars({"dice/a<b": 0.5}, 1500)
        log.figure("mask M, central slice", Figure(), 1500)
    log = ServiceLog("mlflow", tmp_path, {**FLAGS, "resume": True})
    log_steps(log, (1499, 1500, 1501))
    log.__exit__(Stopped)
    client = mlflow.MlflowClient()
    (experiment,) = (one for one in client.search_experiments() if one.name == "ours")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"lr": "0.0001", "resume": "False"}
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1502))
    assert run.data.metrics["dice/a_b"] == 0.5
    assert run.info.status == "KILLED"
    (folder,) = client.list_artifacts(run.info.run_id)
    assert [one.path for one in client.list_artifacts(run.info.run_id, folder.path)] == [f"{folder.path}/1500.png"]


def test_wandb_writes_offline(tmp_path, monkeypatch):
    """The real package, offline: numbers of both parts of a resumed run, each once, under one id."""
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for resume, steps in ((False, (1, 2, 3)), (True, (2, 3, 4))):
        with ServiceLog("wandb", tmp_path, {**FLAGS, "resume": resume}) as log:
            log_steps(log, steps)
            log.figure("case", Figure(), steps[-1])
    run_id = json.loads((tmp_path / "wandb.json").read_text())["run"]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"), key=lambda path: path.stat().st_mtime_ns)
    first, second = (path.read_bytes().count(b"train/loss") for path in files)
    assert first == 3 * second > 0
    assert len(list(Path(tmp_path).glob("wandb/offline-run-*/files/media/images/case_*.png"))) == 2
