#!/bin/sh
# Installs the servers and load generators that the bench compares with, from the distribution's packages.
# --optional: never fails; tests that need a missing tool are skipped and say so.
set -eu

missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need wrk wrk
need h2load nghttp2-client
need nginx nginx-light
need haproxy haproxy
need gcc gcc
need taskset util-linux
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need initdb postgresql
[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || missing="$missing libnginx-mod-http-lua"
# A package list that has the compiler but not its headers builds nothing.
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"

[ -n "$missing" ] || exit 0

optional=0
[ "${1:-}" = "--optional" ] && optional=1

refuse() {
    echo "the bench needs packages that are missing:$missing" >&2
    echo "$1" >&2
    [ "$optional" = 1 ] && exit 0
    exit 2
}

command -v apt-get >/dev/null 2>&1 || refuse "install them with this system's package manager (names are Debian's)"
[ "$(id -u)" = 0 ] || refuse "run as root: apt-get install --yes --no-install-recommends$missing"

echo "installing$missing"
# Debian starts a service for every server it installs; a bench must leave none behind.
policy=/usr/sbin/policy-rc.d
made_policy=0
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=1
fi
finish() { [ "$made_policy" = 0 ] || rm -f "$policy"; }
trap finish EXIT
install() { DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $missing >/dev/null; }
install 2>/dev/null || { apt-get update --quiet >/dev/null && install; } || refuse "apt-get could not install them; see its words above"
