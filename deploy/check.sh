#!/bin/sh
# Checks the container file and the systemd unit with what this machine has; called by `make check`.
set -eu
bin=$1
cd "$(dirname "$0")"
"../$bin/hadolint" Containerfile
if command -v systemd-analyze >/dev/null 2>&1; then
    # The unit names programs that exist only where Tollway is installed: verify it against stand-ins.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    sed -e 's#/opt/tollway/bin/tollway#/bin/true#' -e 's#^User=.*#User=root#' -e 's#^Group=.*#Group=root#' \
        tollway.service > "$work/tollway.service"
    systemd-analyze verify --man=no "$work/tollway.service"
else
    echo "systemd-analyze is not here: deploy/tollway.service was not verified"
fi
