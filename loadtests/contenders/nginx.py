"""Owns nginx: as a plain proxy (HTTP and gRPC), and with Lua doing key, token bucket and an undurable usage line."""

import os
from pathlib import Path
from typing import Final

from loadtests.contenders import LOOPBACK, PEER_KEY, Contender, free_port, start_proxy

_MAIN: Final = """
daemon off;
pid {dir}/{name}.pid;
error_log {dir}/{name}.error.log warn;
worker_processes 1;
{user}
{modules}
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {dir}/{name}.body;
  proxy_temp_path {dir}/{name}.proxy;
  fastcgi_temp_path {dir}/{name}.fastcgi;
  uwsgi_temp_path {dir}/{name}.uwsgi;
  scgi_temp_path {dir}/{name}.scgi;
  client_max_body_size 0;
  client_body_buffer_size 1m;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  # Two pools: in one, a kept-alive HTTP/1.1 connection would be taken for a gRPC call.
  upstream http_backend {{ server {backend}; keepalive 512; keepalive_requests 1000000000; }}
  upstream grpc_backend {{ server {backend}; keepalive 512; keepalive_requests 1000000000; }}
{body}
}}
"""

#: Requests are not buffered, as Tollway does not: within noise at 1 KB, about 5 % less CPU for nginx at 600 KB.
_PLAIN: Final = """
  server {{
    listen {host}:{http_port} backlog=1024;
    location / {{
      proxy_pass http://http_backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
    }}
  }}
  server {{
    listen {host}:{grpc_port} http2 backlog=1024;
    http2_max_concurrent_streams 1024;
    http2_body_preread_size 1m;
    location / {{ grpc_pass grpc://grpc_backend; }}
  }}
"""

_LUA: Final = """
  lua_shared_dict keys 10m;
  lua_shared_dict buckets 10m;
  log_format usage '$msec $request_id $tenant $uri $status $request_length $bytes_sent $request_time';
  init_by_lua_block {{
    ngx.shared.keys:set("{key}", "bench")
  }}
  server {{
    listen {host}:{http_port} backlog=1024;
    access_log {dir}/usage.log usage buffer=64k flush=1s;
    set $tenant "";
    location / {{
      access_by_lua_block {{
        local key = ngx.var.http_x_api_key
        local tenant = key and ngx.shared.keys:get(key)
        if not tenant then
          return ngx.exit(401)
        end
        -- Token bucket: 1,000,000 calls a second, as much in one burst; state shared by all workers.
        local rate, burst = 1000000, 1000000
        local buckets, now = ngx.shared.buckets, ngx.now()
        local tokens = buckets:get(tenant .. ":tokens") or burst
        local last = buckets:get(tenant .. ":last") or now
        tokens = math.min(burst, tokens + (now - last) * rate) - 1
        if tokens < 0 then
          return ngx.exit(429)
        end
        buckets:set(tenant .. ":tokens", tokens)
        buckets:set(tenant .. ":last", now)
        ngx.var.tenant = tenant
      }}
      proxy_pass http://http_backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header x-api-key "";
      proxy_request_buffering off;
    }}
  }}
"""

_LUA_MODULES: Final = """
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
"""


def _start(name: str, body: str, workdir: Path, backend: str, core: int, *, is_lua: bool, note: str) -> Contender:
    http_port, grpc_port = free_port(), None if is_lua else free_port()
    names = {"dir": workdir, "host": LOOPBACK, "http_port": http_port, "grpc_port": grpc_port, "key": PEER_KEY}
    config = _MAIN.format(
        **names,
        name=name,
        backend=backend,
        user="user root;" if os.geteuid() == 0 else "",
        modules=_LUA_MODULES if is_lua else "",
        body=body.format(**names),
    )
    file = workdir / f"{name}.conf"
    file.write_text(config)
    return start_proxy(
        name,
        ["nginx", "-e", f"{workdir}/{name}.start.log", "-c", str(file)],
        workdir,
        core=core,
        http_port=http_port,
        grpc_port=grpc_port,
        headers=(("x-api-key", PEER_KEY),) if is_lua else (),
        note=note,
    )


def start_nginx(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    note = "proxy_pass / grpc_pass, kept-alive upstream, no log"
    return _start("nginx", _PLAIN, workdir, backend, core, is_lua=False, note=note)


def start_nginx_lua(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    note = "key in a shared dict, token bucket, buffered usage line (not durable)"
    return _start("nginx_lua", _LUA, workdir, backend, core, is_lua=True, note=note)
