"""The kind `gbif`: a download that GBIF is asked for, read as any Darwin Core Archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from manifests.errors import ConfigError
from manifests.stores.folder import local_place
from pipeline.sources.biology.dwca import DwcaReader
from pipeline.sources.biology.gbif import asking
from pipeline.sources.biology.gbif.asking import GbifSettings
from pipeline.sources.kinds import Listing, Place


class GbifReader(DwcaReader):
    """A download, which `prepare` asks for and fetches; everything else asks no host."""

    settings_type = GbifSettings
    settings: GbifSettings

    @property
    def archive(self) -> str:
        """The zip that came."""
        return str(asking.archive_path(self.settings))

    def check(self) -> None:
        """Check that the archive is there, and has the terms that the config names."""
        if waits_for := self.waits_for():
            raise ConfigError(f"{self.where}: {waits_for}; `plantmix build CONFIG --to ingest` asks for it and waits")
        super().check()

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hash of the archive."""
        self.check()
        return super().digest(hash_file)

    def identity(self) -> dict[str, Any]:
        """Return how the archive is read; what was asked for decides which archive came, and its bytes count."""
        return {name: value for name, value in super().identity().items() if name not in asking.REQUEST_FIELDS}

    def recipe(self) -> dict[str, Any]:
        """With what was asked for."""
        return super().identity()

    def cites(self) -> dict[str, Any]:
        """DOI, citation and data sets of the download."""
        return asking.cited(self.settings)

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """No place shows that GBIF was asked: what it gave is an archive."""
        return None

    def in_work_folder(self, name: str, work_dir: str) -> GbifSettings:
        """Return the settings with a folder for the archive: the user's own, or one in the work folder."""
        if self.settings.path:
            return self.settings
        folder = str(Path(local_place(work_dir), "gbif", name))
        settings = self.settings.model_copy(update={"path": folder})
        settings.model_fields_set.discard("path")  # it was not set: a kept configuration follows a moved work folder
        return settings

    def waits_for(self) -> str | None:
        """Return the archive, until it is there."""
        return "its download from GBIF is not there yet" if asking.is_waiting(self.settings) else None

    def lacks(self, environment: Mapping[str, str]) -> str | None:
        """Return the account of a user, where GBIF is still to be asked."""
        from pipeline.sources.biology.gbif.obtaining import missing_account

        return missing_account(self, environment)

    @classmethod
    def prepare(cls, sources: Sequence[Self], user_agent: str, environment: Mapping[str, str]) -> None:
        """Ask for what no request was sent for, wait, and fetch every archive."""
        from pipeline.sources.biology.gbif.obtaining import obtain

        obtain(sources, user_agent, environment)
