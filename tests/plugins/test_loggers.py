"""The doors to loggers: what a spec is told before the run, and what each tracker is really called with.

TensorBoard, MLflow and wandb are run in tests/runs. The packages of the others are stood in for by modules
whose functions have the signatures of the real ones (versions: tests/long/results/loggers.txt), so that
an argument they do not take is an error; Accelerate's own tracker classes call them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import metricli.components.other_trackers
import metricli.components.trackers  # noqa: F401  (before a package is stood in for)
from metricli.specs.kinds import LoggerSpec
from metricli.testing import check_plugin
from tests.plugins.builtin import BUILT_IN

NAMES = [name for kind, name in BUILT_IN if kind == "loggers"]
FIGURE = np.full((4, 6, 3), 7, np.uint8)
SPEC = {"name": "prod's", "loss": {"name": "triplet", "margin": 0.25, "memory": None}, "sizes": [1, 2]}
KEYS = ("WANDB_API_KEY", "COMET_API_KEY", "CLEARML_API_ACCESS_KEY", "SWANLAB_API_KEY")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no home of anybody."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for key in (*KEYS, "NETRC", "WANDB_BASE_URL", "CLEARML_CONFIG_FILE", "COMET_CONFIG", "SWANLAB_SAVE_DIR"):
        monkeypatch.delenv(key, raising=False)


def door(name: str, **settings: Any) -> Any:
    return check_plugin("loggers", name, settings)


def problems(*doors: LoggerSpec) -> list[str]:
    spec = SimpleNamespace(loggers=list(doors))
    return [problem.message for each in doors for problem in each.check(spec, None)]


def test_there_are_nine() -> None:
    expected = [
        "aim",
        "clearml",
        "comet_ml",
        "dvclive",
        "mlflow",
        "swanlab",
        "tensorboard",
        "trackio",
        "wandb",
    ]
    assert expected == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = door(name)
    monkeypatch.delitem(sys.modules, found.package, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert problems(found) == [f"needs the package {found.package}: pip install 'metricli[{name}]'"]


def test_extras_have_the_names_of_loggers() -> None:
    import tomllib

    from tests.conftest import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(NAMES) <= set(extras)


def test_nothing_is_online_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: door(name).model_dump() for name in NAMES}
    assert {n: s["mode"] for n, s in settings.items() if "mode" in s} == dict.fromkeys(
        ("wandb", "clearml", "comet_ml", "swanlab"), "offline"
    )
    assert (
        settings["mlflow"]["tracking_uri"]
        is settings["aim"]["repo"]
        is settings["trackio"]["space_id"]
        is None
    )


@pytest.mark.parametrize(
    ("name", "variables", "login", "file"),
    [
        ("wandb", "WANDB_API_KEY", "wandb login", ".netrc"),
        ("comet_ml", "COMET_API_KEY", "comet login", ".comet.config"),
        ("clearml", "CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY", "clearml-init", "clearml.conf"),
        ("swanlab", "SWANLAB_API_KEY", "swanlab login", ".swanlab/.netrc"),
    ],
)
def test_online_without_a_key(
    name: str, variables: str, login: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody is asked at the terminal: the spec is refused."""
    found = door(name, mode="online")
    monkeypatch.setitem(sys.modules, found.package, ModuleType(found.package))
    what = (
        f"mode: online needs a key, and no run asks for one; set {variables}, run `{login}`, or use offline"
    )
    assert problems(found) == [what]
    monkeypatch.setenv(variables.partition(" ")[0], "k")
    assert problems(found) == []
    monkeypatch.delenv(variables.partition(" ")[0])
    place = tmp_path / "home" / file
    place.parent.mkdir(exist_ok=True)
    place.write_text("machine elsewhere login user password k\n")
    place.chmod(0o600)
    assert problems(found) == ([what] if name == "wandb" else [])
    place.write_text("machine api.wandb.ai login user password k\n")
    assert problems(found) == []


def test_listed_twice() -> None:
    twice = "the logger 'tensorboard' is listed twice; its runs would mix"
    assert problems(door("tensorboard"), door("tensorboard")) == [twice, twice]


@pytest.mark.parametrize("project", ["it's", "../up", "", "a/b", "x\n"])
def test_a_project_that_is_no_name(project: str) -> None:
    with pytest.raises(ValueError, match="project"):
        door("mlflow", project=project)


class Heard(list[Any]):
    """Calls, in order, as (name, arguments)."""

    def take(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose arguments are kept."""
        import functools
        import inspect

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(function).bind(*args, **kwargs).arguments
            bound.pop("self", None)
            self.append((name, {key: value for key, value in bound.items() if value is not None}))
            return function(*args, **kwargs)

        return call

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self if called == name]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def trackio(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    def init(
        project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None,
        config=None, resume="never", settings=None, private=None, embed=True, auto_log_gpu=None,
        gpu_log_interval=10.0, auto_log_cpu=None, cpu_log_interval=10.0,
    ):  # fmt: skip
        return SimpleNamespace(log=heard.take("log", log), finish=heard.take("finish", lambda: None))

    def log(metrics, step=None): ...

    config = SimpleNamespace(update=heard.take("config", lambda values, allow_val_change=False: None))
    module(monkeypatch, "trackio", init=heard.take("open", init), config=config, Image=lambda value: value)


def swanlab(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    def init(
        *, reinit=None, log_dir=None, mode=None, workspace=None, project=None, public=None, name=None,
        color=None, description=None, job_type=None, group=None, tags=None, id=None, resume=None,
        parallel=None, config=None, settings=None, callbacks=None, **kwargs,
    ):  # fmt: skip
        assert not kwargs
        return SimpleNamespace(log=heard.take("log", log), finish=heard.take("finish", lambda: None))

    def log(data, step=None, print_to_console=False): ...

    class Config(dict):
        update = heard.take("config", lambda self, values, allow_val_change=False: None)

    module(monkeypatch, "swanlab", init=heard.take("open", init), config=Config(), Image=lambda value: value)


def dvclive(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    class Live:
        def __init__(
            self, dir="dvclive", resume=False, report=None, save_dvc_exp=True, dvcyaml="dvc.yaml",
            cache_images=False, exp_name=None, exp_message=None, monitor_system=False,
        ):  # fmt: skip
            self.step = 0

        def log_metric(self, name, val, timestamp=False, plot=True):
            heard.append(("log", {"metrics": {name: val}, "step": self.step}))

        log_params = heard.take("config", lambda self, values: None)
        log_image = heard.take("image", lambda self, name, val: None)
        end = heard.take("finish", lambda self: None)

        def next_step(self):
            self.step += 1

    Live.__init__ = heard.take("open", Live.__init__)  # type: ignore[method-assign]
    module(monkeypatch, "dvclive", Live=Live)
    metric = SimpleNamespace(could_log=lambda value: isinstance(value, int | float))
    module(monkeypatch, "dvclive.plots", Metric=metric)


def clearml(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    def report_scalar(title, series, value, iteration):
        heard.append(("log", {"metrics": {f"{series}/{title}": value}, "step": iteration}))

    def report_image(title, series, iteration=None, local_path=None, image=None): ...

    class Task:
        id = "offline-1"

        @classmethod
        def current_task(cls):
            return None

        @classmethod
        def set_offline(cls, offline_mode=False):
            heard.append(("offline", offline_mode))

        def get_offline_mode_folder(self):
            return "/cache/offline-1"

        def get_logger(self):
            return SimpleNamespace(
                report_scalar=report_scalar, report_image=heard.take("image", report_image)
            )

        connect_configuration = heard.take("config", lambda self, values, name=None, description=None: None)
        close = heard.take("finish", lambda self: None)

    def init(
        project_name=None, task_name=None, task_type="training", tags=None, reuse_last_task_id=True,
        continue_last_task=False, output_uri=None, auto_connect_arg_parser=True,
        auto_connect_frameworks=True, auto_resource_monitoring=True, auto_connect_streams=True,
        deferred_init=False,
    ):  # fmt: skip
        return Task()

    Task.init = staticmethod(heard.take("open", init))  # type: ignore[attr-defined]
    module(monkeypatch, "clearml", Task=Task)
    updates = type(
        "CheckPackageUpdates", (), {"check_new_package_available": lambda **_: pytest.fail("asked")}
    )
    module(monkeypatch, "clearml.utilities.check_updates", CheckPackageUpdates=updates)
    module(monkeypatch, "clearml.utilities")


def comet_ml(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    class Experiment:
        set_step = staticmethod(lambda step: None)
        log_metric = staticmethod(
            lambda name, value, step=None, epoch=None, include_context=True: heard.append(
                ("log", {"metrics": {name: value}, "step": step})
            )
        )
        log_parameters = heard.take("config", lambda self, values, prefix=None, nested_support=True: None)
        end = heard.take("finish", lambda self: None)
        log_image = heard.take("image", lambda self, image_data, name=None, overwrite=False, step=None: None)

    def start(
        api_key=None, workspace=None, project=None, project_name=None, experiment_key=None, mode=None,
        online=None, source=None, experiment_config=None,
    ):  # fmt: skip
        return Experiment()

    def config(
        disabled=None, log_code=None, log_graph=None, parse_args=None, display_summary_level=1,
        log_git_metadata=None, log_git_patch=None, log_env_details=None, auto_output_logging="simple",
        auto_param_logging=True, auto_metric_logging=True, auto_log_co2=True, offline_directory=None,
        name=None, tags=None,
    ):  # fmt: skip
        return {"name": name, "tags": tags, "offline_directory": offline_directory}

    module(
        monkeypatch,
        "comet_ml",
        start=heard.take("open", start),
        ExperimentConfig=config,
        __version__="3.58.8",
    )


def aim(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    class Run:
        hash = "abc123"

        def __init__(
            self, run_hash=None, *, repo=None, read_only=False, experiment=None, force_resume=False,
            system_tracking_interval=10, log_system_params=False, capture_terminal_logs=True,
        ): ...  # fmt: skip

        def __setitem__(self, key, value):
            heard.append(("config", {"values": value}))

        def track(self, value, name=None, step=None, epoch=None, *, context=None):
            heard.append(
                ("image" if hasattr(value, "shape") else "log", {"metrics": {name: value}, "step": step})
            )

        add_tag = heard.take("tag", lambda self, value: None)
        close = heard.take("finish", lambda self: None)

    Run.__init__ = heard.take("open", Run.__init__)  # type: ignore[method-assign]
    module(monkeypatch, "aim", Run=Run, Image=lambda image, caption="": image)


FAKES = {f.__name__: f for f in (aim, clearml, comet_ml, dvclive, swanlab, trackio)}


def session(name: str, run_dir: Path, step: int, **settings: Any) -> Any:
    """A run of a few calls, steps 1 to 4; a resumed one repeats all from its step on."""
    logger = door(name, **settings).build(run_dir=run_dir)
    logger.start(SPEC, step=step)
    for at in range(step + 1, 5):
        logger.log({"train/loss": 1 / at, "epoch": 1.0}, step=at)
    logger.log({"validation/ring/cmc@1": 0.5}, step=4)
    logger.log_figure("validation/worst", FIGURE, step=4)
    logger.close()
    return logger


def logged(heard: Heard) -> list[tuple[str, float, int]]:
    found = [
        (name, value, arguments["step"])
        for arguments in heard.of("log")
        for name, value in next(iter(arguments.values())).items()
    ]
    return [row for row in found if row[0] not in ("epoch", "epoch/epoch", "validation/worst")]


EXPECTED = [("train/loss", 1 / at, at) for at in range(1, 5)] + [("validation/ring/cmc@1", 0.5, 4)]
TAGGED: dict[str, dict[str, Any]] = {
    name: {} if name == "dvclive" else {"tags": ["a", "b"], "project": "mine", "run_name": "first"}
    for name in FAKES
}


@pytest.mark.parametrize("name", FAKES)
def test_what_a_tracker_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, run_dir = Heard(), tmp_path / "run1"
    run_dir.mkdir()
    FAKES[name](monkeypatch, heard)
    assert problems(door(name, **TAGGED[name])) == []
    session(name, run_dir, 0, **TAGGED[name])
    assert logged(heard) == EXPECTED
    (opened,), (config,) = heard.of("open"), heard.of("config")
    values = next(iter(config.values()))
    margin = values["loss.margin"] if "loss.margin" in values else values["loss"]["margin"]
    assert (margin, values["run_dir"]) == (0.25, str(run_dir))
    assert heard[-1] == ("finish", {})
    shown = [arguments for called, arguments in heard if "worst" in str(arguments) and called != "config"]
    (array,) = [found for found in _arrays(shown)]
    assert np.array_equal(array.reshape(4, 6, 3), FIGURE)
    if name != "dvclive":
        said = repr(heard)
        assert all(word in said for word in ("'mine'", "'a'", "'b'")) or name == "trackio"
    assert opened[OPENS[name][0]] == OPENS[name][1](run_dir)


OPENS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "aim": ("repo", lambda run: str(run / "aim")),
    "clearml": ("task_name", lambda run: "first"),
    "comet_ml": (
        "experiment_config",
        lambda run: {"name": "first", "tags": ["a", "b"], "offline_directory": str(run / "comet")},
    ),
    "dvclive": ("dir", lambda run: str(run / "dvclive")),
    "swanlab": ("mode", lambda run: "offline"),
    "trackio": ("name", lambda run: "first"),
}


def _arrays(found: Any) -> list[np.ndarray]:
    if isinstance(found, np.ndarray):
        return [found]
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    return [array for each in inner for array in _arrays(each)]


@pytest.mark.parametrize("name", FAKES)
def test_a_resumed_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on by the id that was kept, and tells nothing twice."""
    heard, run_dir = Heard(), tmp_path / "run1"
    run_dir.mkdir()
    FAKES[name](monkeypatch, heard)
    session(name, run_dir, 0)
    kept = json.loads((run_dir / "loggers" / f"{name}.json").read_text())
    again = session(name, run_dir, 2)
    assert "it knows the steps up to 4 already; they are not sent again" in again.notes
    assert logged(heard) == EXPECTED
    how = {
        "aim": {"run_hash": kept["id"], "force_resume": True},
        "clearml": {"continue_last_task": False},  # no session that is offline can be continued
        "comet_ml": {"experiment_key": kept["id"], "mode": "get_or_create", "online": False},
        "dvclive": {"resume": True},
        "swanlab": {"mode": "offline"},  # the same
        "trackio": {"name": "run1", "resume": "allow"},
    }[name]
    assert heard.of("open")[1].items() >= how.items()
    assert json.loads((run_dir / "loggers" / f"{name}.json").read_text()) == kept


@pytest.mark.parametrize(
    ("name", "how"),
    [("swanlab", {"mode": "online", "resume": "allow"}), ("clearml", {"continue_last_task": "offline-1"})],
)
def test_resumed_online(name: str, how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    FAKES[name](monkeypatch, heard)
    session(name, tmp_path, 0, mode="online")
    session(name, tmp_path, 2, mode="online")
    first, second = heard.of("open")
    assert second.items() >= how.items()
    if name == "swanlab":
        assert first["id"] == second["id"]
    assert not heard.of("offline")


def test_the_project_is_the_specs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    trackio(monkeypatch, heard)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    session("trackio", tmp_path / "..", 0)
    assert heard.of("open")[0]["project"] == "prod_s"
    assert "space_id" not in heard.of("open")[0]
