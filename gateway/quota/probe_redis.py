"""Owns the checks of a shared quota store for `tollway doctor`: reached, writable, keeps what it is told, same time."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from gateway.errors import SettingsError
from gateway.quota.link_redis import RedisLink
from gateway.quota.store_link import StoreUnavailable
from gateway.quota_address import QuotaAddress

#: Scripts rely on effects replication and on int64 replies of doubles; older servers were never tried.
VERSION_MIN: Final = (6, 2)
CLOCK_S_MAX: Final = 1.0


def check_store(address: QuotaAddress) -> str:
    """What the store is, in a few words. Raises SettingsError with what to do."""
    try:
        return asyncio.run(_check(address))
    except StoreUnavailable as error:
        raise SettingsError(
            f"{address} cannot be used ({error}): start it or correct quota_store; until then limited calls get 503"
        ) from None


async def _check(address: QuotaAddress) -> str:
    link = RedisLink(address, "doctor")
    await link.open()
    try:
        before_s = time.time()
        seconds, microseconds = await link.call("TIME")
        after_s = time.time()
        facts = read_info(await link.call("INFO"))
        problems = judge(facts, float(seconds) + float(microseconds) / 1e6, before_s, after_s)
    finally:
        await link.close()
    if problems:
        raise SettingsError(f"{address}: {'; '.join(problems)}")
    return f"{address}, {facts.get('server_name', 'redis')} {_version_text(facts)}"


def read_info(info: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = info.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def judge(facts: Mapping[str, str], store_s: float, before_s: float, after_s: float) -> list[str]:
    """What is wrong with a server with these facts, whose clock said `store_s` between two readings of ours."""
    problems = []
    version = tuple(int(part) for part in facts.get("redis_version", "0.0").split(".")[:2])
    if version < VERSION_MIN:
        problems.append(f"version {_version_text(facts)} is too old, use 6.2 or newer")
    if facts.get("role", "master") != "master":
        problems.append("it is a replica: name the primary, or the address that follows it")
    if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy") != "noeviction":
        problems.append(
            f"maxmemory_policy is {facts.get('maxmemory_policy')}: evicted limits are forgotten limits, set noeviction"
        )
    if facts.get("cluster_enabled") == "1":
        problems.append("it is a cluster node: one primary is needed, with replicas where wanted")
    ahead_s = max(store_s - after_s, before_s - store_s)
    if ahead_s > CLOCK_S_MAX:
        problems.append(f"its clock and this machine's are {ahead_s:.1f} s apart: days and months begin by its clock")
    return problems


def _version_text(facts: Mapping[str, str]) -> str:
    return facts.get("valkey_version") or facts.get("redis_version", "of no version")
