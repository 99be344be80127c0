"""`tollway down`: stop what `up` started on this data directory."""

import os
import signal
import time
from typing import Annotated

import typer

from gateway.commands.up import DataDirOption, SetOption, SettingsOption, read_settings
from gateway.supervisor import running_pid, stderr_say

_WAIT_S = 45.0


def down(
    settings: SettingsOption = None,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="As Ctrl-C: 1 s for calls in flight.")] = False,
) -> None:
    """Stop gracefully: calls in flight end, usage is flushed and posted."""
    loaded = read_settings(settings, set_, data_dir)
    pid = running_pid(loaded.data_dir)
    if pid is None:
        stderr_say(f"nothing runs on {loaded.data_dir}")
        return
    os.kill(pid, signal.SIGINT if quick else signal.SIGTERM)
    end_s = time.monotonic() + _WAIT_S
    while running_pid(loaded.data_dir) is not None:
        if time.monotonic() > end_s:
            stderr_say(f"pid {pid} has not ended after {_WAIT_S:.0f} s")
            raise typer.Exit(1)
        time.sleep(0.02)
