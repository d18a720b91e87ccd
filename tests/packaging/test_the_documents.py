"""What the documents name exists: tests, files, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_test_the_traps_name_exists() -> None:
    named = re.findall(r"`(tests/[^`:]+)::(\w+)`", (ROOT / "docs" / "traps.md").read_text("utf-8"))

    assert len(named) > 25
    missing = [
        f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_into_the_tree_leads_somewhere(document: Path) -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8"))

    assert [link for link in linked if not (document.parent / link).exists()] == []


def test_every_command_the_documents_name_exists() -> None:
    from ecmc.cli import app

    known = set(typer.main.get_group(app).commands)
    text = "\n".join(document.read_text("utf-8") for document in DOCUMENTS)
    named = set(re.findall(r"`ecmc (?!run`)([a-z]+)", text)) | set(re.findall(r"bin/ecmc ([a-z]+)", text))

    assert named - known == set()
