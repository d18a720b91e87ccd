"""The console's plain JavaScript, read by the TypeScript compiler with every check on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TSC = ROOT / "tests/peers/node_modules/.bin/tsc"


@pytest.mark.skipif(not TSC.exists(), reason="no TypeScript here: tests/peers/install.sh")
def test_every_script_of_the_console_passes_the_strict_check() -> None:
    scripts = sorted((ROOT / "api/console").glob("*.js"))
    options = (
        "--noEmit --allowJs --checkJs --strict --target es2022 --module es2022 --moduleResolution bundler"
    )
    command = [TSC, *options.split(), "--lib", "es2022,dom,dom.iterable", *scripts]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert scripts
    assert all(script.read_text("utf-8").startswith("// @ts-check") for script in scripts)
    assert done.returncode == 0, done.stdout
