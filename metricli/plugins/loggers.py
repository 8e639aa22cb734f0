"""The doors to loggers, through Accelerate's trackers; none reaches the network unless its settings do."""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.kinds import Logger, LoggerSpec

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

_PROJECT = r"^[\w][\w .-]{0,99}$"


class TrackerSpec(LoggerSpec):
    """What the loggers over Accelerate's trackers share."""

    package: ClassVar[str]
    """The module that must be there."""
    component: ClassVar[str]
    """A module of `metricli.components` and its logger."""

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The package must be there, and a key for what is sent, before the run starts; once in a spec."""
        problems = super().check(spec, table)
        name = str(getattr(self, "name", ""))
        if self.package not in sys.modules and importlib.util.find_spec(self.package) is None:
            problems.append(Problem("", f"needs the package {self.package}: pip install 'metricli[{name}]'"))
        if sum(getattr(other, "name", None) == name for other in spec.loggers or []) > 1:
            problems.append(Problem("", f"the logger {name!r} is listed twice; its runs would mix"))
        if missing := self.missing_key():
            problems.append(Problem("", missing))
        return problems

    def missing_key(self) -> str:
        """What is wrong if the service would have to ask for a key; empty if nothing is."""
        return ""

    def build(self, *, run_dir: Path) -> Logger:
        """A `TrackerLogger`, which opens the tracker when the run starts."""
        module, name = self.component.split(".")
        found = importlib.import_module(f"metricli.components.{module}")
        logger: Logger = getattr(found, name)(run_dir, **self.model_dump(exclude={"name"}))
        return logger


class ProjectSpec(TrackerSpec):
    """A tracker that files runs by project, name and tags."""

    project: str | None = Field(
        None, pattern=_PROJECT, description="project (experiment) of the runs; null: the spec's name"
    )
    run_name: str | None = Field(
        None, min_length=1, max_length=200, description="name of the run; null: that of the run directory"
    )
    tags: list[str] = Field([], max_length=50, description="tags of the run")


class TensorBoard(TrackerSpec):
    """TensorBoard event files in the run directory (extra `tensorboard`)."""

    name: Literal["tensorboard"] = "tensorboard"

    package: ClassVar[str] = "tensorboard"
    component: ClassVar[str] = "trackers.TensorBoardLogger"


class Wandb(ProjectSpec):
    """Weights & Biases; offline it writes into the run directory, for `wandb sync` (extra `wandb`)."""

    name: Literal["wandb"] = "wandb"
    mode: Literal["offline", "online"] = Field("offline", description="online: send while the run goes on")
    entity: str | None = Field(None, description="user or team that owns the project; null: your default")
    group: str | None = Field(None, description="group that the run belongs to in the project")

    package: ClassVar[str] = "wandb"
    component: ClassVar[str] = "trackers.WandbLogger"

    def missing_key(self) -> str:
        """Online needs WANDB_API_KEY or a login in ~/.netrc."""
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
        there = "WANDB_API_KEY" in os.environ or _is_in_netrc(host)
        return _no_key(self.mode, there, "WANDB_API_KEY", "wandb login")


class MLflow(ProjectSpec):
    """MLflow; by itself a file store in the run directory (extra `mlflow`)."""

    name: Literal["mlflow"] = "mlflow"
    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="server or store, such as http://host:5000, or a database, which needs the whole package "
        "mlflow; null: the file store mlruns/ in the run directory",
    )

    package: ClassVar[str] = "mlflow"
    component: ClassVar[str] = "trackers.MLflowLogger"


class ClearML(ProjectSpec):
    """ClearML; offline it writes a session to be imported later (extra `clearml`)."""

    name: Literal["clearml"] = "clearml"
    mode: Literal["offline", "online"] = Field("offline", description="online: send while the run goes on")

    package: ClassVar[str] = "clearml"
    component: ClassVar[str] = "other_trackers.ClearMLLogger"

    def missing_key(self) -> str:
        """Online needs its variables or its file of settings."""
        file = Path(os.environ.get("CLEARML_CONFIG_FILE", "~/clearml.conf")).expanduser()
        there = "CLEARML_API_ACCESS_KEY" in os.environ or file.is_file()
        return _no_key(self.mode, there, "CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY", "clearml-init")


class Comet(ProjectSpec):
    """Comet; offline it writes an archive into the run directory, for `comet upload` (extra `comet_ml`)."""

    name: Literal["comet_ml"] = "comet_ml"
    mode: Literal["offline", "online"] = Field("offline", description="online: send while the run goes on")
    workspace: str | None = Field(None, description="workspace of the project; null: your default")

    package: ClassVar[str] = "comet_ml"
    component: ClassVar[str] = "trackers.CometLogger"

    def missing_key(self) -> str:
        """Online needs COMET_API_KEY or its file of settings."""
        file = Path(os.environ.get("COMET_CONFIG", "~/.comet.config")).expanduser()
        there = "COMET_API_KEY" in os.environ or file.is_file()
        return _no_key(self.mode, there, "COMET_API_KEY", "comet login")


class Aim(ProjectSpec):
    """Aim; by itself a repository in the run directory (extra `aim`)."""

    name: Literal["aim"] = "aim"
    repo: str | None = Field(
        None,
        min_length=1,
        description="repository: a folder, or aim://host:port; null: aim/ in the run directory",
    )

    package: ClassVar[str] = "aim"
    component: ClassVar[str] = "trackers.AimLogger"


class SwanLab(ProjectSpec):
    """SwanLab; offline it writes into the run directory, for `swanlab sync` (extra `swanlab`)."""

    name: Literal["swanlab"] = "swanlab"
    mode: Literal["offline", "local", "online"] = Field(
        "offline",
        description="online: send while the run goes on; local: for its dashboard here, which needs "
        "swanlab[dashboard]",
    )
    workspace: str | None = Field(None, description="workspace of the project; null: your default")

    package: ClassVar[str] = "swanlab"
    component: ClassVar[str] = "other_trackers.SwanLabLogger"

    def missing_key(self) -> str:
        """Online needs SWANLAB_API_KEY or a login."""
        home = Path(os.environ.get("SWANLAB_SAVE_DIR", "~/.swanlab")).expanduser()
        there = "SWANLAB_API_KEY" in os.environ or (home / ".netrc").is_file()
        return _no_key(self.mode, there, "SWANLAB_API_KEY", "swanlab login")


class Trackio(ProjectSpec):
    """Trackio: a database on this computer, or a Space on the hub (extra `trackio`)."""

    name: Literal["trackio"] = "trackio"
    space_id: str | None = Field(
        None,
        pattern=r"^[\w.-]+(/[\w.-]+)?$",
        description="Space that shows and keeps the runs; null: nothing is sent",
    )

    package: ClassVar[str] = "trackio"
    component: ClassVar[str] = "other_trackers.TrackioLogger"


class DVCLive(TrackerSpec):
    """DVCLive: files of metrics, parameters and plots in the run directory (extra `dvclive`)."""

    name: Literal["dvclive"] = "dvclive"
    save_dvc_exp: bool = Field(
        False, description="save a DVC experiment at the end, which writes into the Git repository"
    )

    package: ClassVar[str] = "dvclive"
    component: ClassVar[str] = "other_trackers.DVCLiveLogger"


def _no_key(mode: str, there: bool, variables: str, login: str) -> str:
    if mode != "online" or there:
        return ""
    return (
        f"mode: online needs a key, and no run asks for one; set {variables}, run `{login}`, or use offline"
    )


def _is_in_netrc(host: str) -> bool:
    try:
        return host in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
