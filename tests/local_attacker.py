"""What another user of this machine tries, run as a script of its own: `call PORTS CALLS` or `write ADDRESS`.

`call` speaks Ray's protocol, HTTP/2 with gRPC's headers, by the package h2; `write` is Ray's own client, and
puts a value where workers look for the functions that they unpickle.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys

NOBODY = 65534
AGENT = ("get_or_create_runtime_env", "delete_runtime_env_if_possible", "get_runtime_envs_info")
NO_GRPC = "no gRPC"


def become_nobody() -> None:
    "x".encode("idna")  # this user may not read Python's own library, so all of it is loaded before
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def call(ports: list[int], calls: list[str]) -> dict[str, str]:
    """Port, call and the first character of the token -> the status that is answered."""
    import h2.config
    import h2.connection
    import h2.events

    become_nobody()
    os.environ.clear()

    def status(port: int, name: str, token: str) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
            connection.initiate_connection()
            headers = {":method": "POST", ":scheme": "http", ":path": f"/ray.rpc.{name}"}
            headers |= {":authority": "127.0.0.1", "content-type": "application/grpc", "te": "trailers"}
            headers |= {"authorization": f"Bearer {token}"} if token else {}
            connection.send_headers(1, list(headers.items()))
            connection.send_data(1, bytes(5), end_stream=True)  # an empty message
            line.sendall(connection.data_to_send())
            while data := line.recv(65536):
                for event in connection.receive_data(data):
                    answered = isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived))
                    if answered and "grpc-status" in dict(event.headers):
                        return str(dict(event.headers)["grpc-status"])
                line.sendall(connection.data_to_send())
        return NO_GRPC

    answers = {}
    for port in ports:
        for name in calls:
            for token in ("", "0" * 64):
                try:
                    answer = status(port, name, token)
                except OSError:
                    answer = NO_GRPC
                answers[f"{port} {name} {token[:1]}"] = answer
        if {answer for name, answer in answers.items() if name.startswith(f"{port} ")} == {NO_GRPC}:
            for path in AGENT:
                answers[f"{port} {path}"] = post(port, f"/{path}")
    return answers


def post(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", path, b"")
    return str(connection.getresponse().status)


def write(address: str) -> str:
    from ray._raylet import GcsClient

    become_nobody()
    client = GcsClient(address=address, cluster_id=None)
    return f"written {client.internal_kv_put(b'key', b'value', True, b'fun')}"


if __name__ == "__main__":
    if sys.argv[1] == "call":
        print(json.dumps(call(json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        print(write(sys.argv[2]))
