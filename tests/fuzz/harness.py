"""Runs one target under atheris: `python -m tests.fuzz.harness TARGET WORK_DIR [libFuzzer options]`.

The corpus grows in WORK_DIR/<target>; a finding is left in WORK_DIR as crash-<target>-<sha1> and ends the run with an
error. A file given instead of options is run once: that reproduces a finding.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "billing", "model_repo"]):
    from tests.fuzz.targets import TARGETS


def main(name: str, work: Path, options: list[str]) -> None:
    target = TARGETS[name]
    corpus = work / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [sys.argv[0], f"-artifact_prefix={work}/crash-{name}-", *options]
    if not any(Path(option).is_file() for option in options):
        arguments.append(str(corpus))
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.harness TARGET WORK_DIR [options]; targets: {' '.join(TARGETS)}")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
