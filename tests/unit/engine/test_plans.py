"""TensorRT plans up to the driver's border: library and device are twins that keep memory and compute y = x + 1."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gateway.engine.runtimes import load_runtime
from gateway.engine.runtimes.cuda_driver import Cuda, CudaDriver, CudaError, open_driver
from gateway.engine.runtimes.plans import PlanRuntime, open_plan
from gateway.engine.tensors import Array
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig, parse_config
from model_repo.errors import RepositoryError

PLAN = b"ftrt plan"
ROWS_MAX = 8


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class FakeCuda:
    """A device whose memory is a dict; copies and runs happen when the stream is awaited, as on a real one."""

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        self.pending: list[Callable[[], None]] = []
        self.attached = 0
        self.fault = ""
        self._next = 4096

    def attach(self) -> None:
        self.attached += 1

    def new_stream(self) -> int:
        return 7

    def allocate(self, nbytes: int) -> int:
        if self.fault == "memory":
            raise CudaError("cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2)")
        self._next += 1 << 20
        self.memory[self._next] = bytearray(nbytes)
        return self._next

    def free(self, address: int) -> None:
        del self.memory[address]

    def copy_in(self, address: int, array: Array, stream: int) -> None:
        self.pending.append(lambda: self._write(address, array.tobytes()))

    def copy_out(self, array: Array, address: int, stream: int) -> None:
        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(self.memory[address][: array.nbytes], np.uint8)

        self.pending.append(copy)

    def _write(self, address: int, data: bytes) -> None:
        self.memory[address][: len(data)] = data

    def wait(self, stream: int) -> None:
        pending, self.pending = self.pending, []
        for action in pending:
            action()


class FakeContext:
    """Checks what a real context checks: shapes within the profile, an address for every tensor."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return 1 <= shape[0] <= ROWS_MAX

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._cuda.fault == "run":
            return False
        size = 4 * int(np.prod(self._shape))
        source, target = self._addresses["x"], self._addresses["y"]

        def compute() -> None:
            x = np.frombuffer(self._cuda.memory[source][:size], np.float32)
            self._cuda.memory[target][:size] = (x + 1).tobytes()

        self._cuda.pending.append(compute)
        return True


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda, datatype: str) -> None:
        self._cuda = cuda
        self._datatype = datatype

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._datatype)

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (-1, 3)

    def create_execution_context(self) -> FakeContext | None:
        return None if self._cuda.fault == "context" else FakeContext(self._cuda)


def library(cuda: FakeCuda, datatype: str = "FLOAT") -> Any:
    """What `import tensorrt` gives, as far as a plan needs it."""

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            self.level = level

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            if cuda.fault == "runtime":
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            return FakeEngine(cuda, datatype) if data == PLAN else None

    return SimpleNamespace(
        __name__="tensorrt", __version__="11.4", Logger=Logger, Runtime=Runtime, TensorIOMode=TensorIOMode
    )


def config(backend: str = "tensorrt", rows_max: int = ROWS_MAX) -> ModelConfig:
    return parse_config(
        f'name: "m" backend: "{backend}" max_batch_size: {rows_max} '
        'input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 3 }',
        name="m",
    )


def open_fake(folder: Path, cuda: FakeCuda, *, datatype: str = "FLOAT", data: bytes = PLAN) -> PlanRuntime:
    (folder / "model.plan").write_bytes(data)
    return open_plan(folder / "model.plan", config(), lambda _: library(cuda, datatype), lambda: cuda)


def rows(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3), dtype=np.float32)


def test_a_plan_runs_batches_that_grow_and_shrink(tmp_path: Path) -> None:
    cuda = FakeCuda()
    runtime = open_fake(tmp_path, cuda)
    for count in (1, 8, 2, 8, 1):
        x = rows(count, count)
        (y,) = runtime.run({"x": x})
        np.testing.assert_array_equal(y, x + 1)
    assert len(cuda.memory) == 2
    assert cuda.attached == 5
    assert runtime.description == "tensorrt 11.4; device 0"


def test_close_gives_the_devices_memory_back_and_may_be_repeated(tmp_path: Path) -> None:
    cuda = FakeCuda()
    runtime = open_fake(tmp_path, cuda)
    runtime.run({"x": rows(2)})
    runtime.close()
    runtime.close()
    assert not cuda.memory


def test_rows_that_lie_apart_are_gathered_first(tmp_path: Path) -> None:
    x = np.asfortranarray(rows(4))
    (y,) = open_fake(tmp_path, FakeCuda()).run({"x": x})
    np.testing.assert_array_equal(y, x + 1)


def test_a_shape_outside_of_the_plans_profile_is_the_callers_fault(tmp_path: Path) -> None:
    runtime = open_fake(tmp_path, FakeCuda())
    with pytest.raises(TollwayError, match="outside of what the plan was built for") as caught:
        runtime.run({"x": rows(9)})
    assert caught.value.code is Code.INVALID_TENSOR
    assert runtime.run({"x": rows(1)})[0].shape == (1, 3)


@pytest.mark.parametrize("fault", ["memory", "run"])
def test_a_fault_of_the_device_fails_the_batch_only(tmp_path: Path, fault: str) -> None:
    cuda = FakeCuda()
    runtime = open_fake(tmp_path, cuda)
    cuda.fault = fault
    with pytest.raises(TollwayError) as caught:
        runtime.run({"x": rows(1)})
    assert caught.value.code is Code.BACKEND_FAULT
    cuda.fault = ""
    np.testing.assert_array_equal(runtime.run({"x": rows(2)})[0], rows(2) + 1)


@pytest.mark.parametrize(
    ("fault", "data", "message"),
    [
        ("runtime", PLAN, "model.plan: tensorrt cannot load it: pybind11::init"),
        ("", b"other", "damaged, or built by another version or for another kind of GPU"),
        ("context", PLAN, "memory cannot be had on the device"),
    ],
)
def test_a_plan_that_cannot_be_loaded_says_why(tmp_path: Path, fault: str, data: bytes, message: str) -> None:
    cuda = FakeCuda()
    cuda.fault = fault
    with pytest.raises(RepositoryError, match=message):
        open_fake(tmp_path, cuda, data=data)


def test_a_plan_of_another_type_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="input 'x': configured as FP32, the model file has FP16"):
        open_fake(tmp_path, FakeCuda(), datatype="HALF")


@pytest.mark.parametrize(
    ("backend", "package"),
    [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx-cu12")],
)
def test_without_the_library_the_package_is_named(tmp_path: Path, backend: str, package: str) -> None:
    (tmp_path / "model.plan").write_bytes(PLAN)

    def missing(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    with pytest.raises(RepositoryError, match=f"the package {package} is not usable here .*No module named"):
        open_plan(tmp_path / "model.plan", config(backend), missing, FakeCuda)


def test_here_where_nothing_is_installed_load_says_so(tmp_path: Path) -> None:
    """The whole real way: this environment has neither library."""
    (tmp_path / "model.plan").write_bytes(PLAN)
    with pytest.raises(RepositoryError, match="the package tensorrt is not usable here"):
        load_runtime(tmp_path / "model.plan", config(), threads=1)


class FakeDriverLibrary:
    """libcuda: every function returns `code`; the last arguments by name."""

    def __init__(self, failing: str = "") -> None:
        self.called: list[str] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_NO_DEVICE"
            return 100 if name == self._failing else 0

        return call


def test_the_driver_is_opened_in_order_and_its_faults_have_names() -> None:
    fine = FakeDriverLibrary()
    driver: Cuda = CudaDriver(fine)
    driver.wait(driver.new_stream())
    assert fine.called[:4] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert fine.called[-1] == "cuStreamSynchronize"
    with pytest.raises(CudaError, match=r"cuInit: CUDA_ERROR_NO_DEVICE \(100\)"):
        CudaDriver(FakeDriverLibrary("cuInit"))


def test_a_machine_without_a_driver_says_so() -> None:
    try:
        driver = open_driver()
    except RepositoryError as error:
        assert "NVIDIA driver" in str(error)
    else:
        driver.free(driver.allocate(16))
