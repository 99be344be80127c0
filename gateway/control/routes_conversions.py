"""Owns the routes about conversions: ask for one, look at it, read its log and report, cancel it."""

import json
import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from gateway.control.conversion_runner import Conversions
from gateway.control.conversion_store import Conversion
from gateway.control.errors import ControlCode, ControlError, not_found
from gateway.control.rebuild_job import RebuildJob
from gateway.control.registry import Change
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, After, Limit, TheRegistry
from gateway.control.views import Page, View, instant
from model_repo.config import NAME

router = APIRouter(prefix="/admin/conversions", dependencies=[REQUIRE_ACTOR], responses=ERRORS, tags=["conversions"])

SOURCE_PARTS_MAX = 8
_PART = re.compile(r"[A-Za-z0-9._-]+")
MEMORY_BYTES_MAX = 1 << 38
TIME_S_MAX = 6 * 3_600


def _below_sources(path: str) -> str:
    """Plain names joined by slashes: nothing that leads out of the folder of sources."""
    parts = path.split("/")
    if len(parts) > SOURCE_PARTS_MAX or any(part in {".", ".."} or not _PART.fullmatch(part) for part in parts):
        raise ValueError(f"must be at most {SOURCE_PARTS_MAX} plain names joined by slashes")
    return path


Source = Annotated[str, Field(max_length=255), AfterValidator(_below_sources)]
Words = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)]


class ConversionBody(BaseModel):
    """As the options of `tollway convert` (docs/converters.md); what does not fit the model fails the conversion."""

    model_config = ConfigDict(extra="forbid")

    source: Source = Field(description="The model, below DATA/conversions/sources.")
    name: str = Field(pattern=f"^(?:{NAME.pattern})$", description="Of the model in the engine's first repository.")
    data: Source | None = Field(None, description="npz file of real inputs, below DATA/conversions/sources.")
    engines: Words = Field(["onnxruntime", "openvino"], min_length=1, description="onnxruntime, openvino.")
    precisions: Words = Field(["fp32", "fp16"], min_length=1, description="As --precision; below fp16 data is needed.")
    dims: Words = Field([], description="NAME=LOW..HIGH each.")
    budgets: Words = Field([], description="PRECISION=FACTOR each.")
    optimize: Literal["latency", "throughput"] = Field("latency", description="What the choice is by.")
    batch_rows_max: int = Field(32, ge=0, le=256, description="Rows of the largest batch; 0: none is made.")
    threads: int = Field(1, ge=1, le=64, description="Threads of one run.")
    rounds: int = Field(9, ge=3, le=99, description="Rounds of measurement.")
    seed: int = Field(0, ge=0, le=2**31, description="Of generated inputs and of the split of the data.")
    labels: str = Field("", max_length=200, description="Array of the data with a label a row.")
    label_output: str = Field("", max_length=200, description="The output that the labels are of.")
    metric_drop: float = Field(0.01, ge=0, le=1, description="How much of the task metric may be lost, a share.")
    memory_bytes: int = Field(8 << 30, ge=1 << 28, le=MEMORY_BYTES_MAX, description="Address space of the child.")
    time_s: int = Field(1_800, ge=1, le=TIME_S_MAX, description="Seconds that the child may take.")


class ProgressView(View):
    step: str
    done: int
    total: int


class ConversionErrorView(View):
    """As `tollway convert` says it; `exit_code` is its."""

    rule: str
    message: str
    next_step: str
    exit_code: int


class ConversionResultView(View):
    selected: str
    speedup: float
    version: int
    is_new: bool
    is_cached: bool


class ConversionView(View):
    conversion_id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
    actor: str
    name: str
    source: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    progress: ProgressView | None
    result: ConversionResultView | None
    error: ConversionErrorView | None


class RebuildView(View):
    """`state`: `submitted`, or `blocked` by `obstacle`. `command`: what a person may do about it, else empty."""

    repository: str
    name: str
    version: int
    state: Literal["submitted", "blocked"]
    why: str
    obstacle: str
    command: str
    conversion_id: str


class RebuildsView(View):
    """`is_on` False: control does not look (`rebuild_poll_s`)."""

    is_on: bool
    items: list[RebuildView]


class LogView(View):
    """The end of the log, at most 64 KiB."""

    text: str


def _conversions(request: Request) -> Conversions:
    found: Conversions | None = getattr(request.app.state, "conversions", None)
    if found is None:
        raise ControlError(ControlCode.UNAVAILABLE, "this control runs no conversions")
    return found


@router.post("", status_code=202)
def create_conversion(registry: TheRegistry, actor: Actor, body: ConversionBody, request: Request) -> ConversionView:
    """Queued, and run once those before it have ended. 409 `limit_reached`: too many wait."""
    conversions = _conversions(request)
    asked = body.model_dump(mode="json")
    limits = {"memory_bytes_max": asked.pop("memory_bytes"), "time_s_max": asked.pop("time_s")}

    def work(_tx: Connection, _now_ns: int) -> Change[ConversionView]:
        made = conversions.submit({**asked, "limits": limits}, actor)
        return Change(answer=_view(made), subject=made.conversion_id, before=None, after=body)

    return registry.change(actor, "conversion.create", work)


@router.get("")
def list_conversions(request: Request, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[ConversionView]:
    """The newest first."""
    every = _conversions(request).store.list()
    places = [place for place, one in enumerate(every) if one.conversion_id == after]
    if after and not places:
        raise not_found("conversion", after)
    items = [_view(one) for one in every[places[0] + 1 if places else 0 :][:limit]]
    return Page(items=items, next=items[-1].conversion_id if len(items) == limit else None)


@router.get("/rebuilds")
def list_rebuilds(request: Request) -> RebuildsView:
    """Models that this host cannot run, as of the last look: what is being made anew, and what stands in the way."""
    found: RebuildJob | None = getattr(request.app.state, "rebuilds", None)
    if found is None:
        return RebuildsView(is_on=False, items=[])
    return RebuildsView(is_on=True, items=[RebuildView(**asdict(one)) for one in found.told])


@router.get("/{conversion_id}")
def get_conversion(conversion_id: str, request: Request) -> ConversionView:
    """Its state and its last progress."""
    return _view(_conversions(request).store.get(conversion_id))


@router.get("/{conversion_id}/log")
def get_log(conversion_id: str, request: Request) -> LogView:
    """The steps it has taken and what the tools said."""
    return LogView(text=_conversions(request).store.read_log(conversion_id))


@router.get("/{conversion_id}/report")
def get_report(conversion_id: str, request: Request) -> Any:
    """report.json of one that has ended; 404 before that, or where none was written."""
    store = _conversions(request).store
    store.get(conversion_id)
    try:
        return json.loads((store.folder(conversion_id) / "out" / "report.json").read_bytes())
    except FileNotFoundError as error:
        raise not_found("report of conversion", conversion_id) from error


@router.get("/{conversion_id}/report.html", response_class=Response)
def get_report_page(conversion_id: str, request: Request) -> Response:
    """The report for people: one page without scripts or outside files."""
    store = _conversions(request).store
    store.get(conversion_id)
    try:
        page = (store.folder(conversion_id) / "out" / "report.html").read_bytes()
    except FileNotFoundError as error:
        raise not_found("report of conversion", conversion_id) from error
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@router.post("/{conversion_id}/cancel")
def cancel_conversion(conversion_id: str, registry: TheRegistry, actor: Actor, request: Request) -> ConversionView:
    """Ends a queued or running one; 409 where it has ended already."""
    conversions = _conversions(request)

    def work(_tx: Connection, _now_ns: int) -> Change[ConversionView]:
        ended = conversions.cancel(conversion_id)
        return Change(answer=_view(ended), subject=conversion_id, before=None, after=None)

    return registry.change(actor, "conversion.cancel", work)


def _view(one: Conversion) -> ConversionView:
    return ConversionView(
        conversion_id=one.conversion_id,
        state=one.state,  # type: ignore[arg-type]
        actor=one.actor,
        name=one.request["name"],
        source=one.request["source"],
        created_at=instant(one.created_ns),
        started_at=instant(one.started_ns),
        finished_at=instant(one.finished_ns),
        progress=None if one.progress is None else ProgressView(**one.progress),
        result=None if one.result is None else ConversionResultView(**one.result),
        error=None if one.error is None else ConversionErrorView(**one.error),
    )
