"""TensorBoard on loopback, and what is written on its pages: also what its components hide from the page's source."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.browser import chromium
from support.ports import free_port

SECONDS = 120

COLLECT = """<script>
function words(node) {
  if (['SCRIPT', 'STYLE'].includes(node.tagName)) return '';
  let found = node.nodeType === 3 ? node.data + ' ' : '';
  if (node.tagName === 'IMG' && node.naturalWidth) found += '[image of ' + node.naturalWidth + ' pixels] ';
  if (node.shadowRoot) found += words(node.shadowRoot);
  for (const child of node.childNodes) found += words(child);
  return found;
}
setInterval(() => { document.documentElement.setAttribute('data-words', words(document.body)); }, 1000);
</script>"""
"""Copies all words to a place that ``--dump-dom`` shows: most of TensorBoard is in shadow roots, which it does not."""


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """TensorBoard for a folder; its address, with the script that collects the words."""
    port = free_port()
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    server = subprocess.Popen([*program, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/data/environment", server)
        with _collecting(address) as through:
            yield through
    finally:
        server.terminate()
        server.wait(SECONDS)


def words_on(address: str, page: str) -> str:
    """All words on a page of TensorBoard, with single spaces."""
    source = chromium(f"{address}/#{page}", "--dump-dom", "--window-size=1500,1500", patience_ms=40_000)
    found = re.search(r'data-words="([^"]*)"', source)
    assert found is not None
    return " ".join(html.unescape(found[1]).split())


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, "TensorBoard ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"TensorBoard does not answer at {address}")


@contextmanager
def _collecting(address: str) -> Iterator[str]:
    """Pass everything on, and add the script to the first page."""

    class PassOn(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            self.pass_on(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def pass_on(self, body: bytes | None) -> None:
            kept = {name: value for name, value in self.headers.items() if name.lower() == "content-type"}
            try:
                answer = urllib.request.urlopen(urllib.request.Request(address + self.path, data=body, headers=kept))
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                content = answer.read()
                if self.path.split("?")[0] == "/":
                    content = content.replace(b"</body>", COLLECT.encode() + b"</body>")
                self.send_response(answer.status)
                for name in ("Content-Type", "Content-Encoding"):
                    if answer.headers.get(name):
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), PassOn)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
