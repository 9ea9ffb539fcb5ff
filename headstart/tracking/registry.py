"""The model registry: the versions of this project's model, with the aliases champion and challenger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.manifest import read_manifest
from headstart.tracking.model import DIGEST
from headstart.tracking.store import store

NAME = "headstart"
RUN_ID_LENGTH = 32
CHAMPION, CHALLENGER = "champion", "challenger"
REPLACED, ROLLED_BACK = "headstart.replaced", "headstart.rolled_back"  # tags: the champion that a version replaced; "true"


@dataclass(frozen=True)
class Version:
    """A version of the model whose file has been checked: it exists and is undamaged."""

    number: int
    digest: str
    file: Path
    run_id: str
    rolled_back: bool


class Registry:
    """The registry of a project. Each alias moves in one transaction, and only to a version whose file has been checked."""

    def __init__(self, root: Path) -> None:
        self.client, self.experiment = store(root)

    def add(self, digest: str) -> Version:
        """Register the model file with this SHA-256 from the newest run that logged it, once, and return its version.

        Raises:
            InputError: no run has logged it, or its logged file is damaged.
        """
        for version in self.client.search_model_versions(f"name = '{NAME}'", max_results=10_000):
            if version.tags.get(DIGEST) == digest:
                return self._checked(version)
        model = self.logged(f"tags.`{DIGEST}` = '{digest}'")
        if model is None:
            raise InputError(
                f"no run has logged a model with SHA-256 {digest[:12]}…", fix="run the pipeline: it logs its model"
            )
        try:
            self.client.create_registered_model(NAME)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self.client.create_model_version(
            NAME, model.model_uri, run_id=model.source_run_id, tags={DIGEST: digest}, model_id=model.model_id
        )
        return self._checked(made)

    def get_alias(self, alias: str) -> Version | None:
        """Return the version with an alias; None if no version has it.

        Raises:
            InputError: its model file is damaged.
        """
        found = self._alias(alias)
        return self._checked(found) if found else None

    def wanted(self, name: str) -> Version:
        """Return the version with this number or alias.

        Raises:
            InputError: there is no such version, or its model file is damaged.
        """
        version = self.version(int(name)) if name.isdecimal() else self.get_alias(name)
        if version is None:
            raise InputError(
                f"no version of the model is called {name!r}",
                wanted="an alias (champion, challenger), a version's number, a run's id, or a path to a .safetensors file",
                fix="register one with `make run`, or use --model models/fine_tuned.safetensors",
            )
        return version

    def set_alias(self, alias: str, version: Version) -> None:
        """Move an alias, in one transaction."""
        self.client.set_registered_model_alias(NAME, alias, str(version.number))

    def promote(self, version: Version) -> None:
        """Make a version the champion; a later rollback returns to the present champion, even if its file is damaged."""
        before = self._alias(CHAMPION)
        if before is not None and int(before.version) != version.number:
            self.client.set_model_version_tag(NAME, str(version.number), REPLACED, str(before.version))
        self.client.delete_model_version_tag(NAME, str(version.number), ROLLED_BACK)
        self.set_alias(CHAMPION, version)

    def roll_back(self) -> Version:
        """Restore the champion that the present champion replaced, even if the present champion's file is damaged.

        Raises:
            InputError: there is no champion, or it replaced none.
        """
        present = self._alias(CHAMPION)
        before = present.tags.get(REPLACED) if present else None
        if present is None or before is None:
            raise InputError(
                "there is no earlier champion to return to" if present else "there is no champion",
                fix="python -m flows.register --champion VERSION makes a version the champion",
            )
        version = self.version(int(before))
        self.client.set_model_version_tag(NAME, str(present.version), ROLLED_BACK, "true")
        self.set_alias(CHAMPION, version)
        return version

    def trained_on(self, version: Version) -> frozenset[str]:
        """Return the SHA-256 of the images that a version's training used, also those used only to choose an epoch.

        Raises:
            InputError: its run, or the manifest logged with it, is gone.
        """
        try:
            path = mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="reports/manifest.parquet")
        except (MlflowException, OSError) as error:
            raise InputError(
                f"the manifest that version {version.number} was trained with cannot be read: {error}",
                fix=f"restore run {version.run_id}, or choose by hand: python -m flows.register --champion VERSION",
            ) from None
        manifest = read_manifest(Path(path), ("key", "split"))
        return frozenset(manifest.loc[manifest["split"].isin(["train", "valid"]), "key"])

    def tag(self, version: Version, **tags: str) -> None:
        """Set tags of a version, under names that start with `headstart.`."""
        for key, value in tags.items():
            self.client.set_model_version_tag(NAME, str(version.number), f"headstart.{key}", value)

    def version(self, number: int) -> Version:
        """Return a version by number.

        Raises:
            InputError: there is no such version, or its model file is damaged.
        """
        try:
            return self._checked(self.client.get_model_version(NAME, str(number)))
        except MlflowException:
            raise InputError(
                f"the registry has no version {number} of {NAME!r}", fix="see the Models page of `make ui`"
            ) from None

    def logged(self, wanted: str) -> LoggedModel | None:
        """Return the newest completely logged model that an MLflow filter selects; None if there is none."""
        newest_first = [{"field_name": "creation_timestamp", "ascending": False}]
        found = self.client.search_logged_models([self.experiment], wanted, order_by=newest_first)
        return next((model for model in found if model.status == "READY"), None)  # MLflow's filter has no status

    def _alias(self, alias: str) -> ModelVersion | None:
        try:
            return self.client.get_model_version_by_alias(NAME, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _checked(self, found: ModelVersion) -> Version:
        digest = found.tags.get(DIGEST)
        if digest is None:
            raise InputError(
                f"version {found.version} of {NAME!r} was not registered by this project: it has no tag {DIGEST}",
                fix="give its alias to another version, or delete it, on the Models page of `make ui`",
            )
        file = model_file(found.source or "")
        if sha256_file(file) != digest:
            raise InputError(
                f"{file}: damaged: it is not what was registered as version {found.version}",
                fix="restore it from a copy, or return to the previous champion: python -m flows.register --rollback",
            )
        return Version(int(found.version), digest, file, found.run_id or "", ROLLED_BACK in found.tags)


def model_file(uri: str) -> Path:
    """Return the safetensors file of a logged model, by its MLflow URI.

    Raises:
        InputError: the file is gone.
    """
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: its files are missing: {error}", fix="restore mlartifacts/ from a copy") from None
    files = sorted(folder.glob("artifacts/*.safetensors"))
    if len(files) != 1:
        raise InputError(f"{folder}: {len(files)} model files", wanted="one model file", fix="restore mlartifacts/ from a copy")
    return files[0]


def find_model(root: Path, name: str) -> Path:
    """Find the model file that a user names.

    Args:
        name: the id of a run, a version's number, or an alias such as champion.

    Raises:
        InputError: there is no such model.
    """
    registry = Registry(root)
    if len(name) != RUN_ID_LENGTH:
        return registry.wanted(name).file
    model = registry.logged(f"source_run_id = '{name}'") if name.isalnum() else None
    if model is None:
        raise InputError(f"no run with id {name} has logged a model", fix="`make ui` lists the runs")
    return model_file(model.model_uri)
