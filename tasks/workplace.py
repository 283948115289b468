"""Where a task finds its store, claims and tracker: plain values that travel between processes."""

import time
from pathlib import Path

from pydantic import field_validator
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError

from core.addresses import database_address
from core.claims import Claims, open_database
from core.errors import ConfigError, StoreError
from core.ingest.images import StoredImages
from core.manifest import Ref, read_manifest
from core.once import one_of_each
from core.settings import Settings
from core.store import Store, image_path, open_store, read_verified
from tasks.tracking import Tracking, connect


class Workplace(Settings):
    """The addresses that every task of a run needs. Passwords are not in it: they come from the environment."""

    home: Path
    store_uri: str
    s3_endpoint: str | None = None
    database_url: str
    mlflow_uri: str | None = None
    experiment: str = "redraft"
    devices: tuple[str, ...] = ("auto",)
    """Where models run, see compute.devices."""
    retry_failed: bool = False
    """Ask the expert again about drafts that failed (`redraft rerun`); what it has answered is in the ledger."""
    expert_url: str = ""
    """The reference expert of this run, where no `expert.base_url` is configured."""
    run: str = ""
    """Name of the run, whose account the limits on the expert look at."""
    began: float | None = None
    """Unix seconds at which the run, or its re-run, began."""

    @field_validator("database_url")
    @classmethod
    def _holds_no_password(cls, address: str) -> str:
        return database_address(address, name="database_url")

    def for_run(self, run: str) -> "Workplace":
        """The same place, for a run that begins now."""
        return self.model_copy(update={"run": run, "began": time.time()})

    @property
    def store(self) -> Store:
        """The store of datasets, checkpoints and images."""
        return _store(self.store_uri, self.s3_endpoint, self.home)

    @property
    def claims(self) -> Claims:
        """Who does what, in the shared database."""
        return _claims(self.database_url)

    @property
    def engine(self) -> Engine:
        """The shared database of claims, slices and replies."""
        return _engine(self.database_url)

    @property
    def tracker(self) -> Tracking:
        """MLflow, or nothing if no tracker is configured."""
        return _tracker(self.mlflow_uri, self.experiment)

    @property
    def work_root(self) -> Path:
        """Folder on this machine for work that survives a crash."""
        return self.home / "work"

    def image_bytes(self, sha: str) -> bytes:
        """An image's encoded bytes, checked against its sha. Raises StoreError if it is lost or damaged."""
        try:
            return read_verified(self.store, image_path(sha), sha)
        except StoreError as error:
            raise StoreError(
                f"a stored image is lost: {error}. Remove the folder of the samples that name it "
                f"(datasets/synth-* or datasets/ingest-* in {self.store.uri}) and run again: they are stored anew"
            ) from error

    def image_file(self, sha: str) -> Path:
        """A file on this machine with an image's encoded bytes, checked against its sha."""
        return self.store.local(image_path(sha), sha)

    @property
    def images(self) -> StoredImages:
        """Images, decoded."""
        return StoredImages(self.image_bytes)

    def local_folder(self, ref: Ref) -> Path:
        """A folder on this machine with the files of a checkpoint, each checked against its sha256."""
        for part in read_manifest(self.store, ref.uri).parts:
            path = self.store.local(f"{ref.uri}/{part.path}", part.sha256)
        return path.parents[len(Path(part.path).parts) - 1]


@one_of_each(maxsize=8)
def _store(uri: str, endpoint: str | None, home: Path) -> Store:
    return open_store(uri, endpoint_url=endpoint, cache=home / "cache")


@one_of_each(maxsize=8)
def _engine(url: str) -> Engine:
    try:
        return open_database(url)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(
            "place.database cannot be used: expected sqlite:////folder/state.db or postgresql://user@host/name, "
            f"with its driver installed ({error})"
        ) from error


@one_of_each(maxsize=8)
def _claims(url: str) -> Claims:
    return Claims(_engine(url))


@one_of_each(maxsize=8)
def _tracker(uri: str | None, experiment: str) -> Tracking:
    return connect(uri, experiment)
