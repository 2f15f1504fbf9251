"""The server of the README's example: `readme_server.py PEM RECEIVED`, with https on port 443.

PEM has its key and its certificates. RECEIVED gets a line of JSON for each request: its method, path and body.
"""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Api(BaseHTTPRequestHandler):
    """Takes charges, and notes what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Note the request, and answer."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        with Path(sys.argv[2]).open("a") as file:
            file.write(json.dumps({"method": self.command, "path": self.path, "body": body}) + "\n")
        answer = b'{"charged": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server = ThreadingHTTPServer(("", 443), Api)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("listens", flush=True)
    server.serve_forever()
