#!/bin/sh
# `make fuzz [ARGS="SECONDS [TARGET ...]"]`: each target for SECONDS (60), one after the other; stops at a finding.
# The first argument, the project's environment, is not used: atheris has an environment of its own.
set -eu
cd "$(dirname "$0")/../.."
shift
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
venv=.venvs/fuzz
work=.cache/fuzz
if [ ! -e "$venv/.done" ] || [ deploy/locks/fuzz.lock -nt "$venv/.done" ]; then
    echo "installing atheris (pinned by hash)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/locks/fuzz.lock
    touch "$venv/.done"
fi
seconds=${1:-60}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- $("$venv/bin/python" -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)')
mkdir -p "$work"
for target in "$@"; do
    log=$work/$target.log
    # A unit may take 20 s at most; 2 GiB bound the memory, so that growth is a finding too.
    if nice -n 19 "$venv/bin/python" -m tests.fuzz.harness "$target" "$work" "-max_total_time=$seconds" -max_len=2048 \
        -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$target: ${runs:-no} executions in $seconds s, corpus $(find "$work/$target" -type f | wc -l) inputs"
    else
        echo "$target: a finding, see $log; the input is $(ls -t "$work"/crash-"$target"-* 2>/dev/null | head -n 1)" >&2
        exit 1
    fi
done
