#!/usr/bin/env python3
"""Boots a sandbox through the command line, and then runs, feeds, streams, copies and stops through its
api.sock.

    sandbox.py IMAGE            an image with a shell, such as busybox

BULKHEAD names the command, if it is not in the PATH. Python's standard library is all this needs.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import uuid

from bulkhead_api import STDIN, STDOUT, Agent, ApiError

BULKHEAD = os.environ.get("BULKHEAD", "bulkhead")


def bulkhead(*args):
    """The command's output."""
    done = subprocess.run([BULKHEAD, *args], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main(image):
    name = f"example-{uuid.uuid4().hex[:8]}"
    bulkhead("run", "--detach", "--name", name, image, "sleep", "1000000")
    try:
        [sandbox] = json.loads(bulkhead("inspect", name))
        drive(Agent(sandbox["Sandbox"]["ApiSocket"]))
    finally:
        bulkhead("rm", "--force", name)


def drive(agent):
    info = agent.ask("GET", "/v1/info")
    print(f"guest: {info['kernel']['sysname']} {info['kernel']['release']}")
    container = agent.container()

    # Run: a program's output, and how it ended.
    exit, out, _ = agent.run(container, ["sh", "-c", "echo $((6 * 7)); exit 3"])
    print(f"run: said {out.decode().strip()}, ended with {exit['code']}")
    exit, _, _ = agent.run(container, ["/no/such/program"])
    print(f"run: ended with {exit['code']}, as {exit['error']}")

    # Feed: what goes in comes out again.
    data = os.urandom(1 << 20)
    exit, out, _ = agent.run(container, ["cat"], stdin=data)
    assert out == data and exit["code"] == 0
    print(f"feed: {len(out)} bytes there and back, sha256 {hashlib.sha256(out).hexdigest()[:16]}")

    # Stream: answers as they come, while the questions go out.
    script = "while read line; do echo you said $line; done"
    with agent.exec(container, ["sh", "-c", script], stdin=True) as stream:

        def talk():
            for word in ("one", "two", "three"):
                stream.send(STDIN, word.encode() + b"\n")
            stream.send(STDIN, b"")

        threading.Thread(target=talk).start()
        said = b"".join(payload for kind, payload in stream if kind == STDOUT)
    print("stream:", ", ".join(said.decode().splitlines()))

    # Copy: files in and out, as tar archives.
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("notes/letter.txt")
        member.size, member.mode = 6, 0o640
        tar.addfile(member, io.BytesIO(b"hello\n"))
    agent.put(container, "/tmp", archive.getvalue())
    exit, _, _ = agent.run(container, ["sh", "-c", "echo from the guest >>/tmp/notes/letter.txt"])
    assert exit["code"] == 0
    with agent.take(container, "/tmp/notes") as answer:
        with tarfile.open(fileobj=answer, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    text = tar.extractfile(member).read().decode()
                    print(f"copy: {member.name} has {text.splitlines()}")

    # Stop: a signal, and the end it brings. The sandbox goes with its container, so the answer may too.
    try:
        agent.ask("POST", f"/v1/containers/{container}/kill", {"signal": 9})
        exit = agent.ask("GET", f"/v1/containers/{container}/wait")
        print(f"stop: ended with {exit['code']}")
    except (OSError, ApiError) as error:
        print(f"stop: the sandbox is gone ({error})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
