"""Each of Accelerate's trackers as a logger: how its run is opened, found again, and told things."""

from __future__ import annotations

import logging
import os
import re
import secrets
import zlib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

from accelerate.tracking import (
    AimTracker,
    CometMLTracker,
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    WandBTracker,
)

from metricli.components.loggers import TrackerLogger, flattened

__all__ = [
    "AimLogger",
    "CometLogger",
    "MLflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
]


class TensorBoardLogger(TrackerLogger):
    """Event files in `tensorboard/` of the run directory; a resume purges the steps behind it."""

    name = "tensorboard"
    purges, nested, fixed = True, False, True

    def open(self) -> GeneralTracker:
        """A writer that drops what lies behind `step`."""
        again = self.behind > 0 or (self.run_dir / "tensorboard").exists()
        purge = {"purge_step": self.behind + 1} if again else {}
        return TensorBoardTracker(run_name="tensorboard", logging_dir=str(self.run_dir), **purge)

    def describe(self, spec: Mapping[str, Any]) -> None:
        """Hyperparameters in the run's own event file (Accelerate would make another run), and as text."""
        summary = import_module("torch.utils.tensorboard.summary")
        values = flattened({**spec, "run_dir": str(self.run_dir)})
        monitor = values.get("validation.monitor")
        writer = self.tracker.writer
        for part in summary.hparams(values, {f"validation/{monitor}": 0.0} if monitor else {}):
            writer.file_writer.add_summary(part)
        lines = "\n".join(f"    {key}: {value}" for key, value in values.items())
        self.tracker.log({"spec": lines, "run_dir": str(self.run_dir)}, step=0)

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """An image summary."""
        tracker.log_images({name: figure[None]}, step=step, dataformats="NHWC")


class WandbLogger(TrackerLogger):
    """Weights & Biases, offline unless asked otherwise."""

    name = "wandb"
    environment: ClassVar = {"WANDB_ERROR_REPORTING": "false"}  # its telemetry, offline as well

    def open(self) -> GeneralTracker:
        """A silent run; online one is resumed by its id, offline a part of the same id is written."""
        wandb = import_module("wandb")
        mode = self.settings["mode"]
        quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
        self._id = self.memory.id or secrets.token_hex(4)
        if mode == "offline":
            self.notes.append(
                f"it writes offline; send it with: wandb sync {self.run_dir / 'wandb'}/offline-*"
            )
        return WandBTracker(
            self.project,
            id=self._id,
            name=self.run_name,
            tags=self.tags or None,
            dir=str(self.run_dir),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(**quiet),
            **{key: self.settings[key] for key in ("entity", "group") if self.settings.get(key)},
        )

    def identity(self) -> str:
        """The run's id."""
        return self._id


class MLflowLogger(TrackerLogger):
    """MLflow; without a tracking URI its file store in `mlruns/` of the run directory."""

    name = "mlflow"
    nested, fixed = False, True
    environment: ClassVar = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        **dict.fromkeys(f"MLFLOW_{key}" for key in ("TRACKING_URI", "EXPERIMENT_NAME", "RUN_ID", "TAGS")),
        "MLFLOW_NESTED_RUN": None,
    }

    def open(self) -> GeneralTracker:
        """The run of the known id, or a new one of the experiment."""
        uri = self.settings.get("tracking_uri") or (self.run_dir / "mlruns").as_uri()
        mlflow = import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        mlflow.set_tracking_uri(uri)
        tags = {"run_dir": str(self.run_dir), **{tag: "true" for tag in self.tags}}
        return MLflowTracker(self.project, run_id=self.memory.id or None, run_name=self.run_name, tags=tags)

    def identity(self) -> str:
        """The run's id."""
        return str(self.tracker.tracker.info.run_id)

    def called(self, name: str) -> str:
        """MLflow refuses most signs: cmc@1 becomes cmc_at_1, and what else is replaced leaves a checksum."""
        plain = name.replace("@", "_at_")
        clean = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", plain)
        return clean if clean == plain else f"{clean}-{zlib.crc32(plain.encode()):08x}"

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """An artifact `figures/NAME/STEP.png`."""
        del tracker
        import_module("mlflow").log_image(figure, artifact_file=f"figures/{name}/{step:08d}.png")


class CometLogger(TrackerLogger):
    """Comet, offline unless asked otherwise."""

    name = "comet_ml"
    nested = False

    def open(self) -> GeneralTracker:
        """The experiment of a key of ours, which a resume gets again."""
        comet, online = import_module("comet_ml"), self.settings["mode"] == "online"
        self._key = self.memory.id or secrets.token_hex(16)
        logging.getLogger("comet_ml").setLevel(logging.ERROR)
        folder = self.run_dir / "comet"
        if not online:
            folder.mkdir(exist_ok=True)
            self.notes.append(f"it writes offline; send it with: comet upload {folder}/*.zip")
        settings = {"offline_directory": None if online else str(folder), "name": self.run_name}
        quiet = {"display_summary_level": 0, "auto_output_logging": False, "parse_args": False}
        shy = {"log_code": False, "log_git_metadata": False, "log_git_patch": False, "log_env_details": False}
        automatic = {"auto_param_logging": False, "auto_metric_logging": False, "auto_log_co2": False}
        config = comet.ExperimentConfig(**settings, **quiet, **shy, **automatic, tags=self.tags)
        more = {"workspace": self.settings["workspace"]} if self.settings.get("workspace") else {}
        return CometMLTracker(
            self.project,
            experiment_key=self._key,
            mode="get_or_create" if self.memory.id else "create",
            online=online,
            experiment_config=config,
            **more,
        )

    def identity(self) -> str:
        """The experiment's key."""
        return self._key

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """An image of the experiment."""
        tracker.writer.log_image(figure, name=name, step=step)


class AimLogger(TrackerLogger):
    """Aim; its repository is `aim/` in the run directory unless another is named."""

    name = "aim"

    def open(self) -> GeneralTracker:
        """The run of the known hash, or a new one; no thread of Aim watches the system or the terminal."""
        repo = self.settings.get("repo") or str(self.run_dir / "aim")
        if "://" not in repo:
            os.makedirs(repo, exist_ok=True)
        known = {"run_hash": self.memory.id, "force_resume": True} if self.memory.id else {}
        return AimTracker(
            self.run_name,
            logging_dir=repo,
            experiment=self.project,
            system_tracking_interval=None,
            capture_terminal_logs=False,
            **known,
        )

    def identity(self) -> str:
        """The run's hash."""
        return str(self.tracker.writer.hash)

    def describe(self, spec: Mapping[str, Any]) -> None:
        """The spec and the tags."""
        super().describe(spec)
        for tag in self.tags:
            self.tracker.writer.add_tag(tag)

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """An image of the run."""
        tracker.log_images({name: figure}, step=step)
