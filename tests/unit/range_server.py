"""A server of archives as those that corpora come from."""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serve(files: dict[str, bytes], requests: list[tuple[str, int]]) -> Iterator[str]:
    """Serve `files` (path -> content) until the block ends; gives the URL, and notes (path, first byte) of requests."""
    handler = functools.partial(RangeHandler, files, requests)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves `files` as OpenSLR does: with byte ranges, so that a download can go on where it stopped.

    It ends a connection after as many bytes as `longest` says, as a network that fails.
    """

    longest = 10**9

    def __init__(self, files, requests, *args):
        self.files, self.requests = files, requests
        super().__init__(*args)

    def do_HEAD(self):
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self):
        data = self.files.get(self.path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.requests.append((self.path, start))
        if data is None:
            self.send_error(404)
            return
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.longest])

    def log_message(self, *args):
        pass
