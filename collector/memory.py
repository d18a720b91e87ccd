"""What a connection remembers over a restart: one small JSON file in `learned/` of the data folder.

It saves time or closes a gap; without it everything still works. So a file that
cannot be read or written costs nothing but that.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Memory:
    """The file of one connection; without a folder nothing is kept.

    Attributes:
        known: What was kept last, empty where that was nothing readable.
    """

    def __init__(self, connection: str, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"{connection}.json"
        self.known = self._read()

    def keep(self, known: Mapping[str, Any]) -> None:
        """Put down what is known by now, if it is news."""
        if known == self.known:
            return
        self.known = dict(known)
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(known, indent=1), "utf-8")
            os.replace(new, self._path)
        except OSError as why:
            log.warning("cannot keep what was learned", extra={"file": str(self._path), "why": why.strerror})

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as why:
            log.warning("learned anew", extra={"file": str(self._path), "why": str(why)})
            return {}
        return document if isinstance(document, dict) else {}
