"""A small S3 on a free port of 127.0.0.1: objects in memory, conditional writes, listings, multipart, bulk deletes.

What a request says of its signature is not looked at. `fail_next` makes the next writes of an index answer 500 after
they were done, as a lost answer is seen by a client that sends again.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


class Objects:
    """What the server holds: key → (bytes, tag, time of the last write)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[str, tuple[bytes, str, datetime]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.fail_next = 0
        self.puts: list[str] = []

    def put(self, key: str, data: bytes) -> str:
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}-{len(self.puts)}"'
        self.puts.append(key)
        self.held[key] = (data, tag, datetime.now(UTC))
        return tag


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    objects: Objects

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _target(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        return key, parse_qs(parts.query, keep_blank_values=True)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", "0")))

    def do_GET(self) -> None:
        key, query = self._target()
        if not key:
            self._list(query)
            return
        found = self.objects.held.get(key)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data, tag, changed = found
        self._answer(200, data, {"etag": tag, "last-modified": format_datetime(changed, usegmt=True)})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        key, query = self._target()
        data = self._body()
        if "uploadId" in query:
            self.objects.parts[query["uploadId"][0]][int(query["partNumber"][0])] = data
            self._answer(200, headers={"etag": f'"part-{query["partNumber"][0]}"'})
            return
        with self.objects.lock:
            found = self.objects.held.get(key)
            wanted = self.headers.get("if-match")
            is_refused = (wanted is not None and (found is None or found[1] != wanted)) or (
                self.headers.get("if-none-match") == "*" and found is not None
            )
            if is_refused:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            tag = self.objects.put(key, data)
            if self.objects.fail_next and key.endswith("index.json"):
                self.objects.fail_next -= 1
                self._answer(500, b"<Error><Code>InternalError</Code></Error>")
                return
        self._answer(200, headers={"etag": tag})

    def do_POST(self) -> None:
        key, query = self._target()
        body = self._body()
        if "uploads" in query:
            with self.objects.lock:
                upload = f"u{len(self.objects.parts)}"
                self.objects.parts[upload] = {}
            answer = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, answer.encode())
        elif "uploadId" in query:
            parts = self.objects.parts.pop(query["uploadId"][0])
            with self.objects.lock:
                tag = self.objects.put(key, b"".join(parts[number] for number in sorted(parts)))
            answer = f"<CompleteMultipartUploadResult><ETag>{escape(tag)}</ETag></CompleteMultipartUploadResult>"
            self._answer(200, answer.encode())
        else:
            self._delete_many(body)

    def do_DELETE(self) -> None:
        self.objects.held.pop(self._target()[0], None)
        self._answer(204)

    def _delete_many(self, body: bytes) -> None:
        keys = [element.text or "" for element in ElementTree.fromstring(body).iter() if element.tag.endswith("Key")]
        for key in keys:
            self.objects.held.pop(key, None)
        answer = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{answer}</DeleteResult>".encode())

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        contents, prefixes = [], set()
        for key, (data, tag, changed) in sorted(self.objects.held.items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{changed.strftime('%Y-%m-%dT%H:%M:%S.000Z')}"
                f"</LastModified><ETag>{escape(tag)}</ETag><Size>{len(data)}</Size></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(own)}</Prefix></CommonPrefixes>" for own in sorted(prefixes))
        answer = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(contents)}{common}</ListBucketResult>"
        self._answer(200, answer.encode())


@contextlib.contextmanager
def serving_s3() -> Iterator[tuple[str, Objects]]:
    """(address, what it holds)."""
    objects = Objects()
    handler = type("BoundHandler", (Handler,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
