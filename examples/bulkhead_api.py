"""A small client of the vsock API (docs/api.md). Python's standard library is all it needs."""

import http.client
import json
import socket
import struct
import threading
import urllib.parse

STDIN, STDOUT, STDERR, ERROR, EXIT, RESIZE = range(6)


class ApiError(Exception):
    """An answer of 400 or more."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body.get('message', body)}")
        self.status = status
        self.code = body.get("code")


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("guest")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


class Agent:
    """The agent behind a sandbox's api.sock."""

    def __init__(self, path):
        self.path = path

    def ask(self, method, path, body=None):
        """One request with JSON both ways."""
        data = None if body is None else json.dumps(body)
        with self.open(method, path, data) as answer:
            return json.loads(answer.read())

    def open(self, method, path, data=None):
        """One request; the answer's body is the caller's to read. `data` may be an iterator, and then
        goes out in chunks."""
        connection = _Connection(self.path)
        chunked = data is not None and not isinstance(data, (str, bytes))
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        connection.request(method, path, data, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        if answer.status >= 400:
            raise ApiError(answer.status, json.loads(answer.read()))
        return answer

    def container(self):
        """The one container that a sandbox has."""
        return self.ask("GET", "/v1/containers")["containers"][0]["id"]

    def exec(self, container, args, stdin=False, env=("PATH=/usr/local/bin:/usr/bin:/bin",)):
        """Executes a program and returns the stream of its input and output."""
        process = {"args": list(args), "cwd": "/", "env": list(env)}
        body = json.dumps({"process": process, "stdin": stdin}).encode()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        sock.sendall(
            f"POST /v1/containers/{container}/exec HTTP/1.1\r\n"
            "Host: guest\r\nConnection: Upgrade\r\nUpgrade: bulkhead-stream\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = sock.makefile("rb")
        status = int(answer.readline().split()[1])
        headers = http.client.parse_headers(answer)
        if status != 101:
            raise ApiError(status, json.loads(answer.read(int(headers["Content-Length"]))))
        return Stream(sock, answer, headers["Bulkhead-Exec"])

    def run(self, container, args, stdin=None):
        """Executes a program to its end: its exit, its output and its errors."""
        with self.exec(container, args, stdin=stdin is not None) as stream:
            if stdin is not None:
                # The program may say something before it has read all, and then waits until that is read.
                threading.Thread(target=stream.feed, args=(stdin,), daemon=True).start()
            output = {STDOUT: b"", STDERR: b""}
            for kind, payload in stream:
                if kind in output:
                    output[kind] += payload
            return stream.exit, output[STDOUT], output[STDERR]

    def put(self, container, path, archive):
        """Puts a tar archive, bytes or an iterator of them, into a folder of the container."""
        query = urllib.parse.urlencode({"path": path})
        self.open("PUT", f"/v1/containers/{container}/files?{query}", archive).read()

    def take(self, container, path):
        """What is at a path of the container, as a tar archive to be read."""
        query = urllib.parse.urlencode({"path": path})
        return self.open("GET", f"/v1/containers/{container}/files?{query}")


class Stream:
    """A connection that carries frames. Iterating gives (kind, payload) up to the program's end, which
    is then in `exit`."""

    def __init__(self, sock, reader, exec_id):
        self._sock = sock
        self._reader = reader
        self.exec_id = exec_id
        self.exit = None
        self.error = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.close()
        self._sock.close()

    def send(self, kind, payload):
        """Sends a frame; an empty one of kind STDIN ends the program's input."""
        self._sock.sendall(struct.pack(">BxxxI", kind, len(payload)) + payload)

    def feed(self, data):
        """Sends all of the program's input, and its end."""
        for start in range(0, len(data), 65536):
            self.send(STDIN, data[start : start + 65536])
        self.send(STDIN, b"")

    def __iter__(self):
        while header := self._reader.read(8):
            kind, length = struct.unpack(">BxxxI", header)
            payload = self._reader.read(length)
            if kind == EXIT:
                self.exit = json.loads(payload)
                return
            if kind == ERROR:
                self.error = payload.decode()
            yield kind, payload
