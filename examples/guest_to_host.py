#!/usr/bin/env python3
"""The other way round: a program inside a guest asks its host. Every sandbox can reach CID 2, its host; what it
connects to on port P arrives at the Unix socket vsock.sock_P in the sandbox's folder.

    guest_to_host.py host IMAGE     boots a sandbox of an image with Python, puts this file into it, runs it
                                    there, and serves what it asks for
    guest_to_host.py guest          what runs in the guest: asks, feeds, streams and copies

BULKHEAD names the command, if it is not in the PATH. Python's standard library is all this needs.
"""

import http.client
import http.server
import io
import json
import os
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
import uuid

HOST_CID = 2
PORT = 5000


class FromGuest(http.client.HTTPConnection):
    """HTTP to the host."""

    def connect(self):
        self.sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self.sock.connect((HOST_CID, PORT))


def guest():
    host = FromGuest("host")
    # Ask.
    host.request("GET", "/hello")
    print("ask:", json.loads(host.getresponse().read())["hello"])
    # Feed: a body whose length nobody knows before it ends.
    numbers = (f"{n}\n".encode() for n in range(1000))
    host.request("POST", "/sum", numbers, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    print("feed: the sum is", json.loads(host.getresponse().read())["sum"])
    # Stream: lines as they come.
    host.request("GET", "/ticks")
    answer = host.getresponse()
    print("stream:", " ".join(line.decode().strip() for line in answer))
    # Copy: a file of the host's, as a tar archive.
    host.request("GET", "/file")
    with tarfile.open(fileobj=host.getresponse(), mode="r|") as tar:
        for member in tar:
            print(f"copy: {member.name} has {tar.extractfile(member).read().decode().strip()!r}")


class ForGuest(http.server.BaseHTTPRequestHandler):
    """What the host serves."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/hello":
            self.answer(json.dumps({"hello": "from the host"}).encode())
        elif self.path == "/file":
            self.answer(archive({"letter.txt": b"hello, guest\n"}))
        elif self.path == "/ticks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(3):
                line = f"tick{n}\n".encode()
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_error(404)

    def do_POST(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.answer(json.dumps({"sum": sum(map(int, body.split()))}).encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "guest"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def archive(files):
    """A tar archive of some files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def host(image):
    from bulkhead_api import Agent

    def bulkhead(*args):
        command = [os.environ.get("BULKHEAD", "bulkhead"), *args]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    name = f"example-{uuid.uuid4().hex[:8]}"
    # Docker's seccomp profile, which is the default, keeps programs from vsock.
    unconfined = ["--security-opt", "seccomp=unconfined"]
    bulkhead("run", "--detach", "--name", name, *unconfined, image, "sleep", "1000000")
    try:
        [sandbox] = json.loads(bulkhead("inspect", name))
        api = sandbox["Sandbox"]["ApiSocket"]
        path = os.path.join(os.path.dirname(api), f"vsock.sock_{PORT}")
        with Server(path, ForGuest) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            agent = Agent(api)
            container = agent.container()
            with open(__file__, "rb") as this:
                agent.put(container, "/tmp", archive({"guest_to_host.py": this.read()}))
            program = ["python3", "/tmp/guest_to_host.py", "guest"]
            exit, out, err = agent.run(container, program)
            print(out.decode() + err.decode(), end="")
            server.shutdown()
        return exit["code"]
    finally:
        bulkhead("rm", "--force", name)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["guest"]:
            guest()
        case ["host", image]:
            sys.exit(host(image))
        case _:
            sys.exit(__doc__)
