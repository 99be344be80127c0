#!/bin/sh
# Writes the lock files anew: `make locks`. Versions only, with hashes; where packages come from is the machine's affair.
set -eu
bin=$1
cd "$(dirname "$0")/../.."
"$bin/python" -m pip install --quiet uv
compile() {
    "$bin/uv" pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --quiet "$@"
}
compile --extra all --extra optional --group build --group test --group check --group bench -o deploy/locks/bench.lock
compile --extra all --extra optional --group build --group test --group check -c deploy/locks/bench.lock -o deploy/locks/dev.lock
compile --extra all --group build -c deploy/locks/bench.lock -o deploy/locks/run.lock
compile --extra engine --group fuzz -c deploy/locks/bench.lock -o deploy/locks/fuzz.lock
for peer in triton kserve moto; do
    "$bin/python" - "$peer" <<'PY' > "/tmp/tollway-$peer.in"
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"][sys.argv[1]]))
PY
    "$bin/uv" pip compile "/tmp/tollway-$peer.in" --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --quiet -o "deploy/locks/$peer.lock"
    rm "/tmp/tollway-$peer.in"
done
