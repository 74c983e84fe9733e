"""Tells whoever asks by HTTP which address it was asked from: ``teller.py PORT``; run as a program outside."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Teller(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = f"{self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Teller)
    print("listening", flush=True)
    server.serve_forever()
