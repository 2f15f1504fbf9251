"""A server as it was written years ago: plain http on 127.0.0.1:5000, card numbers in clear, a token in its answer."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Api(BaseHTTPRequestHandler):
    """Takes charges, and says what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Charge the card."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(f"the server was sent: {body.decode()}")
        answer = json.dumps({"charged": json.loads(body)["amount"], "token": "tok_5f2c91d0"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 5000), Api).serve_forever()
