"""Where a plant's data lives and how a process is told about it."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import DataFolderError


def default_data_folder(plant_id: str) -> Path:
    """/var/lib/ecmc/<plant> for root, ~/.local/share/ecmc/<plant> for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/ecmc") / plant_id
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "ecmc" / plant_id


def prepare_data_folder(folder: Path) -> Path:
    """The folder, made if need be and proven writable.

    Raises:
        DataFolderError: It cannot be made or written, with the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"ecmc")
        probe.unlink()
    except OSError as why:
        raise DataFolderError(f"data folder {folder} cannot be used: {why.strerror or why}") from None
    return folder.resolve()
