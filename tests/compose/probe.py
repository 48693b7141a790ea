"""Ask every port of a Ray node, without a token: `python probe.py ADDRESS PORT ...` prints {port: answer} as JSON.

"refused": it wants a token (or speaks neither gRPC nor HTTP with us); "closed": nothing listens; "open": it answered.
"""

from __future__ import annotations

import http.client
import json
import sys

import grpc

METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "ReporterService/GetTraceback",
    "RayletDriver/ClusterInfo",
    "CoreWorkerService/GetCoreWorkerStats",
)
WANTS_TOKEN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def over_http(address: str, port: int) -> int | None:
    """Return the status of a request that needs a token wherever tokens are asked for, None where it's not HTTP."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/api/jobs/")
        return connection.getresponse().status
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        return None
    finally:
        connection.close()


def over_grpc(address: str, port: int) -> list[grpc.StatusCode]:
    """Return how each service's method answers, OK where it does what it is asked."""
    codes = []
    with grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
    return codes


def verdict(address: str, port: int) -> str:
    """Return what a port says to somebody without a token."""
    status = over_http(address, port)
    if status is not None:
        return "refused" if status in (401, 403) else "open"
    codes = over_grpc(address, port)
    if grpc.StatusCode.OK in codes:
        return "open"
    # A service that does not know a method says so before it asks who we are.
    return "refused" if any(code in WANTS_TOKEN for code in codes) else "closed"


if __name__ == "__main__":
    print(json.dumps({int(port): verdict(sys.argv[1], int(port)) for port in sys.argv[2:]}))
