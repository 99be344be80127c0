"""The stage on which the e2e suites of clients play: one Tollway with the showcases and a few small models."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from model_repo.onnx_builder import write_model
from tests.e2e.harness import Tollway
from tests.unit.engine.making import python_step, write_identity, write_python

SHOWCASES = Path(__file__).parents[2] / "model_repo" / "models"
#: Nobody listens at this model's address.
ABSENT = "absent"
BODY_BYTES_MAX = 8 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Stage:
    """A running Tollway and the key of an `internal` tenant."""

    tollway: Tollway
    key: str
    _tenants: set[str] = field(default_factory=set)

    @property
    def auth(self) -> dict[str, str]:
        """A fresh dict each time: tritonclient writes into the one it is given."""
        return {"authorization": f"Bearer {self.key}"}

    @property
    def http_address(self) -> str:
        return self.tollway.http_url.removeprefix("http://")

    def new_key(self, tenant: str, plan: str = "internal", **fields: Any) -> str:
        """A key of `tenant` (made with `plan` at its first use) that the worker knows already."""
        if tenant not in self._tenants:
            self.tollway.create_tenant(tenant, plan)
            self._tenants.add(tenant)
        key = self.tollway.create_key(tenant, **fields)
        self.tollway.wait_for_key(key)
        return key

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        """Plain HTTP/1.1 with the stage's key, another, or none ("")."""
        headers = self.auth if key is None else {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.tollway.http_url, headers=headers, trust_env=False, timeout=60, **options)

    def gauge(self, name: str) -> float:
        """Sum of a metric over its labels."""
        return read_gauge(self.tollway, name)


def read_gauge(tollway: Tollway, name: str) -> float:
    """Sum of a metric over its labels, from the merged scrape."""
    found: list[str] = []

    def is_told() -> bool:
        # A worker that does not answer within the scrape's time is left out of it.
        url = f"http://127.0.0.1:{tollway.ports['metrics_port']}/metrics"
        text = httpx.get(url, trust_env=False, timeout=60).text
        found[:] = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return bool(found)

    tollway.wait(is_told, f"the metric {name}")
    return sum(float(line.rpartition(" ")[2]) for line in found)


def write_models(root: Path) -> None:
    """Beside the harness's `mlp` and `echo`."""
    write_model(root, "convnet")
    write_identity(root, "text", "BYTES", [-1])
    write_identity(root, "half", "FP16", [-1])
    write_identity(root, "long", "INT64", [-1])
    write_identity(root, "flag", "BOOL", [-1])
    one = ("FP32", (1,))
    write_python(
        root,
        "slow",
        python_step("time.sleep(float(x.ravel()[0]))\ny = x"),
        inputs=[("x", *one)],
        outputs=[("y", *one)],
        rows_max=1,
        extra="dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
    )
    write_python(root, "faulty", python_step('raise ValueError("a secret of the model")'))
    write_python(root, "broken", python_step("y = x", initialize='raise ValueError("a secret of the model")'))


def new_tollway(**settings: str) -> Tollway:
    """The harness with `write_models`'s repository beside the showcases, not started."""
    tollway = Tollway(settings=settings)
    write_models(tollway.repository)
    repositories = [tollway.repository, *([SHOWCASES] if SHOWCASES.is_dir() else [])]
    folders = "[" + ", ".join(f'"{folder}"' for folder in repositories) + "]"
    tollway.settings["model_repositories"] = tollway.settings["python_models_allowed"] = folders
    return tollway


def give_key(tollway: Tollway, tenant: str = "acme", plan: str = "internal") -> str:
    """A key that the workers of a started Tollway know."""
    tollway.create_tenant(tenant, plan)
    key = tollway.create_key(tenant)
    tollway.wait_for_key(key)
    return key


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Small bodies (`BODY_BYTES_MAX`) are refused here already; one backend's address has nobody."""
    nobody = f'{{name="nobody", http="http://127.0.0.1:9", grpc="grpc://127.0.0.1:9", models=["{ABSENT}"]}}'
    limits = {f"limits.{name}": str(BODY_BYTES_MAX) for name in ("body_bytes_max", "grpc_message_bytes_max")}
    with new_tollway(backends=f"[{nobody}]", **limits) as tollway:
        stage = Stage(tollway=tollway, key=give_key(tollway))
        with stage.client() as client:
            for model in ("slow", "faulty", "convnet"):
                wait_for_model(tollway, client, model)
        yield stage


def wait_for_model(tollway: Tollway, client: httpx.Client, model: str) -> None:
    tollway.wait(lambda: client.get(f"/v2/models/{model}/ready").status_code == 200, f"model {model}")


@contextmanager
def open_fort() -> Iterator[Stage]:
    """A Tollway to be attacked: no showcases, `mlp` and `echo` only, and little patience."""
    settings = {
        "limits.body_bytes_max": str(BODY_BYTES_MAX),
        "limits.grpc_message_bytes_max": str(BODY_BYTES_MAX),
        "limits.head_s": "3",
        "limits.body_idle_s": "3",
        "limits.keepalive_idle_s": "60",
    }
    with Tollway(settings=settings) as tollway:
        yield Stage(tollway=tollway, key=give_key(tollway))
