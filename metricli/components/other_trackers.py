"""ClearML, DVCLive, SwanLab and Trackio as loggers; as in trackers.py."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

from accelerate.tracking import (
    ClearMLTracker,
    DVCLiveTracker,
    GeneralTracker,
    SwanLabTracker,
    TrackioTracker,
)

from metricli.components.loggers import TrackerLogger

__all__ = [
    "ClearMLLogger",
    "DVCLiveLogger",
    "SwanLabLogger",
    "TrackioLogger",
]


class ClearMLLogger(TrackerLogger):
    """ClearML, offline unless asked otherwise; it may not hook into argparse, frameworks or streams."""

    name = "clearml"

    def open(self) -> GeneralTracker:
        """The task of the known id, or a new one."""
        clearml, online = import_module("clearml"), self.settings["mode"] == "online"
        logging.getLogger("clearml").setLevel(logging.ERROR)
        clearml.Task._report_subprocess_enabled = False  # else it forks in spite of threads, and hangs
        if not online:
            clearml.Task.set_offline(offline_mode=True)
            updates = import_module("clearml.utilities.check_updates").CheckPackageUpdates
            updates.check_new_package_available = lambda **_: None  # it would ask the network, offline too
        return ClearMLTracker(
            self.run_name,
            project_name=self.project,
            task_name=self.run_name,
            tags=self.tags or None,
            reuse_last_task_id=False,
            continue_last_task=self.memory.id if online and self.memory.id else False,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )

    def identity(self) -> str:
        """The task's id."""
        if self.settings["mode"] == "offline":
            folder = self.tracker.task.get_offline_mode_folder()
            self.notes.append(
                f"it writes offline, in {folder}; send it with clearml's Task.import_offline_session"
            )
        return str(self.tracker.task.id)

    def send(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """One plot for each metric, with a series for each split and category."""
        for name, value in values.items():
            series, _, title = name.rpartition("/")
            tracker.task.get_logger().report_scalar(title, series or title, value, step)

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """A debug sample."""
        series, _, title = name.rpartition("/")
        tracker.task.get_logger().report_image(title, series or title, iteration=step, image=figure)


class DVCLiveLogger(TrackerLogger):
    """DVCLive: files in `dvclive/` of the run directory, and no experiment of Git unless asked for."""

    name = "dvclive"

    def open(self) -> GeneralTracker:
        """Live files, gone on with if they are there."""
        return DVCLiveTracker(
            dir=str(self.run_dir / "dvclive"),
            resume=bool(self.memory.id),
            save_dvc_exp=self.settings["save_dvc_exp"],
            dvcyaml=str(self.run_dir / "dvclive" / "dvc.yaml"),
            exp_name=self.run_name if self.settings["save_dvc_exp"] else None,
            exp_message=" ".join(self.tags) or None,
        )

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """A file `plots/images/NAME/STEP.png`."""
        tracker.live.log_image(f"{name}/{step:08d}.png", figure)


class SwanLabLogger(TrackerLogger):
    """SwanLab, in local files unless asked otherwise."""

    name = "swanlab"

    def open(self) -> GeneralTracker:
        """The run of the known id, or a new one."""
        mode = self.settings["mode"]
        folder = self.run_dir / "swanlab"
        folder.mkdir(exist_ok=True)
        self._id = self.memory.id or secrets.token_hex(10) + "0"
        known = {"id": self._id, "resume": "allow"} if mode == "online" else {}
        return SwanLabTracker(
            self.project,
            name=self.run_name,
            tags=self.tags or None,
            mode=mode,
            log_dir=str(folder),
            **known,
            **({"workspace": self.settings["workspace"]} if self.settings.get("workspace") else {}),
        )

    def identity(self) -> str:
        """The run's id."""
        return self._id


class TrackioLogger(TrackerLogger):
    """Trackio: its database on this computer, or a Space."""

    name = "trackio"
    environment: ClassVar = dict.fromkeys(
        f"TRACKIO_{key}" for key in ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "DATASET_ID", "WEBHOOK_URL")
    )

    def open(self) -> GeneralTracker:
        """The run of this name, or a new one."""
        space = {"space_id": self.settings["space_id"]} if self.settings.get("space_id") else {}
        known = "allow" if self.memory.id else "never"
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        return TrackioTracker(self.project, name=self.run_name, resume=known, **quiet, **space)

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """An image of the run."""
        tracker.run.log({name: import_module("trackio").Image(figure)}, step=step)
