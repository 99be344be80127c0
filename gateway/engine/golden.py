"""Owns the golden check at load: a version answers here as it did where it was certified, or is not served. Blocks."""

import logging
from pathlib import Path
from typing import Final

from gateway.engine.admission import Build
from gateway.engine.host import Host
from gateway.engine.runtimes import FileRuntime
from gateway.errors import TollwayError
from model_repo.certificate import Tensors, check_golden
from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")


def check_answers(runtime: FileRuntime, config: ModelConfig, version: Path, build: Build, host: Host) -> None:
    """Run the golden answers of a build, for as long as the rules allow and one case at least.

    Raises:
        RepositoryError: an answer differs by more than its tolerance, or the model fails on a golden input.
    """
    allowed_ns = host.rules.golden_ns_max
    if not build.has_golden or not allowed_ns:
        return
    names = [spec.name for spec in config.outputs]
    end_ns = host.clock.monotonic_ns() + allowed_ns

    def run(inputs: Tensors) -> Tensors:
        return dict(zip(names, runtime.run(inputs), strict=True))

    try:
        result = check_golden(version.joinpath(*build.parts), run, is_due=lambda: host.clock.monotonic_ns() >= end_ns)
    except TollwayError as error:
        raise RepositoryError(f"golden check: {error.message}") from error
    if result.fault:
        raise RepositoryError(f"golden check: {result.fault}")
    _LOG.info("golden_checked model=%s build=%s cases=%d of=%d", config.name, build.name, result.done, result.cases)
