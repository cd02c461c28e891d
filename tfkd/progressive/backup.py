"""Checkpoints of a progressive training after each epoch, and resumption from them.

At any time the folder holds one complete state: `state.json`, written atomically and
last, names a checkpoint (weights, optimizer, curriculum) and, if the structure of the
student has changed, a file with the student.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, checks, quantization
from tfkd.networks import keras_files
from tfkd.networks.configs import held_objects
from tfkd.progressive import carrying, settings

_STATE = "state.json"
_FORMAT = 1


class Backup(keras.callbacks.Callback):
    """Saves at the end of each epoch; must be the last of the callbacks.

    Args:
        owner: the ProgressiveDistiller.
        folder: the folder of the backup.
        safe_mode: refuse a student in the folder that holds Python code.
        arguments: those of `fit` that change the training; they must stay the same.

    Raises:
        TypeError, ValueError: if it is not a folder.
    """

    def __init__(
        self,
        owner: Any,
        folder: str | os.PathLike[str],
        safe_mode: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        checks.instance("backup_dir", folder, (str, os.PathLike), "a folder, or None")
        if os.path.isfile(folder):
            raise checks.value_error("backup_dir", "a folder", str(folder), "This is a file.")
        self.owner, self.folder = owner, pathlib.Path(folder)
        checks.instance("safe_mode", safe_mode, bool, "True or False")
        self.safe_mode = safe_mode
        # Before training: a structural step changes the student.
        self._settings = json.loads(json.dumps(settings.of_training(owner, arguments or {})))
        self._saved_student: Any = owner.student
        self._student_file: str | None = None
        self._decay: Any = None
        self._curriculum: Any = None
        self._pending: dict[str, Any] | None = None

    def watch(self, decay: Any, curriculum: Any) -> None:
        """Sets the objects of a new stage to save; after a restore, loads their state."""
        self._decay, self._curriculum = decay, curriculum
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if decay is not None and pending["decay"] is not None:
            # A plan computed from decayed weights might differ from the original one.
            decay.plan = dataclasses.replace(decay.plan, remove=pending["decay"]["remove"])
            decay.load_state_dict(pending["decay"]["state"])
        if curriculum is not None:
            path = str(self.folder / pending["checkpoint"])
            tf.train.Checkpoint(curriculum=curriculum).restore(path).expect_partial()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.owner.student is not self._saved_student:
            self._save_student(len(self.owner.logs))
        name = f"checkpoint-{len(self.owner.logs)}"
        self._checkpoint(self._curriculum).write(str(self.folder / name))
        artifacts.write_json(self.folder / _STATE, self._state(name))
        self._sweep(name)

    def _checkpoint(self, curriculum: Any) -> tf.train.Checkpoint:
        names = ("student", "projectors", "optimizer")
        parts = {name: getattr(self.owner.distiller, name) for name in names}
        if curriculum is not None:
            parts["curriculum"] = curriculum
        return tf.train.Checkpoint(**parts)

    def _save_student(self, number: int) -> None:
        student = self.owner.student
        if isinstance(student, quantization.QuantizedModel):
            self._student_file = f"student-{number}.npz"
            quantization.save(student, self.folder / self._student_file)
        else:
            self._student_file = f"student-{number}.keras"
            with artifacts.atomic_path(self.folder / self._student_file) as temporary:
                student.save(temporary)
        self._saved_student = student

    def _state(self, checkpoint: str) -> dict[str, Any]:
        owner, decay = self.owner, self._decay
        kept = None
        if decay is not None:
            kept = {"state": decay.state_dict(), "remove": dict(decay.plan.remove)}
        return {
            "format": _FORMAT,
            "stages": _fingerprint(owner.stages),
            "settings": self._settings,
            "stage": owner.stage,
            "steps": owner.steps,
            "stage_begin": owner.stage_begin,
            "begin": int(owner.position.begin.numpy()),
            "logs": [{k: v if v == v else None for k, v in logs.items()} for logs in owner.logs],
            "checkpoint": checkpoint,
            "student": self._student_file,
            "decay": kept,
        }

    def _sweep(self, checkpoint: str) -> None:
        """Deletes the files of earlier states."""
        keep = {_STATE, self._student_file, f"{self._student_file}.manifest.json"}
        for path in self.folder.iterdir():
            ours = path.name.startswith(("checkpoint-", "student-"))
            if ours and path.name not in keep and not path.name.startswith(checkpoint + "."):
                path.unlink()

    def restore(self) -> bool:
        """Restores the training that the folder holds; returns False if it holds none.

        Raises:
            ValueError: if it belongs to other stages, or cannot be read.
        """
        state = self._read()
        if state is None:
            return False
        owner = self.owner
        if state["student"] is not None:
            student = self._load_student(state["student"])
            owner.adopt(student, owner.distiller.optimizer)
            self._saved_student, self._student_file = student, state["student"]
        owner.stage, owner.steps = state["stage"], state["steps"]
        owner.stage_begin = state["stage_begin"]
        owner.position.move(owner.stage, state["begin"])
        nan = float("nan")
        owner.logs = [{k: nan if v is None else v for k, v in e.items()} for e in state["logs"]]
        owner.set_frozen(owner.stages[owner.stage].freeze)
        carrying.inner(owner.distiller.optimizer).build(owner.all_trained())
        path = str(self.folder / state["checkpoint"])
        status = self._checkpoint(None).read(path)
        status.assert_existing_objects_matched().expect_partial()
        self._pending = state
        return True

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _STATE
        if not path.exists():
            return None
        fix = "Delete the folder to start again, or pass another one."
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            stages = state["stages"] if state["format"] == _FORMAT else None
        except (ValueError, KeyError, TypeError) as error:
            raise checks.value_error("backup_dir", "a readable backup", str(path), fix) from error
        if stages != _fingerprint(self.owner.stages):
            expected = "the backup of a training with these stages"
            raise checks.value_error("backup_dir", expected, str(self.folder), fix)
        self._check_settings(state.get("settings"))
        return state

    def _check_settings(self, known: dict[str, Any] | None) -> None:
        if known is None:
            checks.warn(
                f"ProgressiveDistiller: the backup in {self.folder} is of an earlier version of "
                "tfkd, which did not keep the settings of the training, so they can't be compared "
                "with these. It is resumed."
            )
            return
        found = [name for name in self._settings if settings.differ(known, self._settings, name)]
        if found:
            expected = "the backup of a training with the same settings"
            fix = (
                f"These differ: {', '.join(found)}. Set them as before to resume it, delete the "
                "folder to start again, or pass another one."
            )
            raise checks.value_error("backup_dir", expected, str(self.folder), fix)

    def _load_student(self, name: str) -> keras.Model:
        path = self.folder / name
        # Layers of the user's own are those of the student that the training began with.
        known = held_objects(self.owner.student)
        if name.endswith(".npz"):
            return quantization.load(path, known, safe_mode=self.safe_mode)
        return keras_files.load("backup_dir", path, known, self.safe_mode)

    def delete(self) -> None:
        """Deletes the backup at the end of the training."""
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path.name == _STATE or path.name.startswith(("checkpoint-", "student-")):
                    path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def _fingerprint(stages: Any) -> list[list[Any]]:
    """The properties of stages that must be the same for a training to be resumed."""
    return [[s.name, s.epochs, bool(s.structure), bool(s.decay)] for s in stages]
