"""A stand-in for NVIDIA's binding: only the names that `converters.plans.drive` uses, and it tells what it was told.

A plan is the JSON of what was asked for. It also serves as a toolchain's module, copied under the binding's name.
Graphs of less than 20 bytes are no graphs; compute capability 7.5 compiles no float32 graph, as the real library.
`tests/toolchains/test_plans.py` holds it against the real ones.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

__version__ = "1.7.1.116"


class ILogger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    """Empty: the driver's own methods are what counts."""


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1


class BuilderFlag:
    TF32 = "TF32"
    DISTRIBUTIVE_INDEPENDENCE = "DISTRIBUTIVE_INDEPENDENCE"
    VERSION_COMPATIBLE = "VERSION_COMPATIBLE"
    ERROR_ON_TIMING_CACHE_MISS = "ERROR_ON_TIMING_CACHE_MISS"


class ComputeCapability:
    SM75, SM80, SM86, SM89, SM120, SM121 = "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"


class HardwareCompatibilityLevel:
    SAME_COMPUTE_CAPABILITY, AMPERE_PLUS = "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [min, opt, max]


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timed"


class Config:
    """`refused_profiles`, `foreign_cache` and `refused_gpus`: what the library is to say no to."""

    refused_profiles: ClassVar[bool] = False
    foreign_cache: ClassVar[bytes] = b"foreign"
    refused_gpus: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        # As in the library: on by default.
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[dict[str, Any]] = []
        self.num_compute_capabilities = 0
        self.compute_capabilities: list[str] = []
        self.hardware_compatibility_level = "NONE"
        self.builder_optimization_level = 3
        self.progress_monitor: Any = None
        self.cache: Cache | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_compute_capability(self, capability: str, index: int) -> bool:
        if capability in self.refused_gpus or index >= self.num_compute_capabilities:
            return False
        self.compute_capabilities.append(capability)
        return True

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile.shapes)
        return -1 if self.refused_profiles else len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content == self.foreign_cache:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class Network:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.graph = b""


class ParserError:
    def desc(self) -> str:
        return "no such operator: Foo"

    def node_name(self) -> str:
        return "foo_1"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: Network, log: ILogger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.graph = Path(path).read_bytes()
        return len(self._network.graph) >= 20

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class Builder:
    """`has_gpu` False: as TensorRT where there is no driver."""

    has_gpu: ClassVar[bool] = True
    steps: ClassVar[int] = 3

    def __init__(self, log: ILogger) -> None:
        self._log = log
        if not self.has_gpu:
            log.log(ILogger.Severity.ERROR, "CUDA driver version is insufficient")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, self.steps)
        monitor.phase_start("Inner", "Building", 1)
        for step in range(self.steps):
            if not monitor.step_complete("Inner", 0) or not monitor.step_complete("Building", step):
                self._log.log(ILogger.Severity.ERROR, "Build canceled by user")
                return None
        monitor.phase_finish("Inner")
        monitor.phase_finish("Building")
        is_half = b"FLOAT16" in network.graph or b"_fp16" in network.graph or b"Cast" in network.graph
        if config.compute_capabilities == ["SM75"] and not is_half:
            self._log.log(ILogger.Severity.WARNING, "never mind")
            self._log.log(ILogger.Severity.ERROR, "FP32 GEMM is not supported")
            return None
        return json.dumps(
            {
                "flags": sorted(config.flags),
                "profiles": config.profiles,
                "gpus": config.compute_capabilities,
                "compatibility": config.hardware_compatibility_level,
                "level": config.builder_optimization_level,
                "graph": len(network.graph),
            }
        ).encode()
