"""Nothing committed names where packages come from or a folder of somebody's machine: both are the machine's affair."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Written apart, so that this file does not match itself.
FORBIDDEN = re.compile(
    "|".join(
        (
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            "index-" + r"url\s*=",
            "extra-index-" + "url",
            "find-links" + r"\s*=",
            r"(?<![\w.])/" + r"(?:work|root|home)/\w",
            r"(?<![\w.])/" + r"opt/py",
        )
    )
)
#: Places where such a path is data: what a caller must never reach, or what a service file declares.
ALLOWED = {"tests/unit/model_repo/test_config.py", "tests/unit/model_repo/test_repository.py"}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def test_no_tracked_file_names_a_package_host_or_a_path_of_this_machine() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if name in ALLOWED or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        found += [(name, match.group()) for match in FORBIDDEN.finditer(text)]
    assert not found


def test_lock_files_hold_versions_and_hashes_only() -> None:
    locks = [name for name in tracked() if name.startswith("deploy/locks/") and name.endswith(".lock")]
    assert locks
    for name in locks:
        lines = (ROOT / name).read_text().splitlines()
        strange = [
            line
            for line in lines
            if not re.match(r"[\w.\[\]-]+==\S+.* \\$|    --hash=sha256:[0-9a-f]{64}( \\)?$", line)
        ]
        assert not strange, name
