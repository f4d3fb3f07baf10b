"""A worker's health port cannot be used to hold the worker up."""

from __future__ import annotations

import socket

from nommerd.health import CONNECTIONS_MAX, serve


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
        return answer


def test_many_silent_connections_leave_room_for_the_next_question() -> None:
    server = serve("127.0.0.1", 0, lambda: True, lambda accept: (b"figures\n", "text/plain"))
    silent = [socket.create_connection(("127.0.0.1", server.server_port), timeout=10) for _ in range(4 * CONNECTIONS_MAX)]
    try:
        answer = ask(server.server_port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(server.pool) <= CONNECTIONS_MAX
    finally:
        for connection in silent:
            connection.close()
        server.stop(0)


def test_an_answer_to_head_has_no_body() -> None:
    server = serve("127.0.0.1", 0, lambda: True, lambda accept: (b"figures\n", "text/plain"))
    try:
        answer = ask(server.server_port, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
    finally:
        server.stop(0)
