"""Checks RAY_ADDRESS and whether Ray answers there. Ray itself would try for minutes and then say little."""

from __future__ import annotations

import os
import re
import socket

from mmh_ray.errors import ConfigError

PATIENCE_S = 10.0
"""Seconds that a cluster has to answer: one that is just starting needs a few."""
CLIENT = "ray://"

_EXPECTED = "the address of a running Ray cluster, such as 10.0.0.1:6379"
_REMEDY = "Unset RAY_ADDRESS to work on this machine alone, or start the cluster and give its address."
_PLACE = re.compile(r"(?P<host>\[[\da-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")


def given_address() -> str | None:
    """The address in RAY_ADDRESS; None if Ray is to be started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_address(address: str, patience_s: float = PATIENCE_S) -> None:
    """Raise ConfigError unless a server with Ray's protocol (gRPC) answers at an address.

    Parameters
    ----------
    address:
        ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``, the cluster that runs on this machine.
    patience_s:
        Seconds to wait for an answer.
    """
    place = _address_here() if address == "auto" else address.removeprefix(CLIENT)
    if "://" in place:
        remedy = (
            "An http address is for `ray job submit --address`: unset RAY_ADDRESS, or give the cluster's own address."
        )
        raise ConfigError(f"RAY_ADDRESS={address}", _EXPECTED, remedy)
    match = _PLACE.fullmatch(place)
    port = int(match["port"]) if match else 0
    if match is None or not 0 < port < 2**16:
        raise ConfigError(f"RAY_ADDRESS={address}, which is no HOST:PORT", _EXPECTED, _REMEDY)
    if not _answers(match["host"], port, patience_s):
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray answers there within {patience_s:g} s", _EXPECTED, _REMEDY)


def refused(address: str, error: Exception) -> ConfigError:
    """The error for a cluster that exists but cannot be joined, such as one with another version or token."""
    first_line = str(error).strip().partition("\n")[0]
    return ConfigError(f"RAY_ADDRESS={address}: {type(error).__name__}: {first_line}", _EXPECTED, _REMEDY)


def _address_here() -> str:
    """``HOST:PORT`` of the cluster that runs on this machine, or ran there."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        address = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError) as error:
        raise refused("auto", error) from error
    assert address is not None, "`auto` always gives an address"
    return address


def _answers(host: str, port: int, patience_s: float) -> bool:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # the server would require a certificate first
        return _accepts(host, port, patience_s)
    import grpc

    without_proxy = [("grpc.enable_http_proxy", 0)]  # as Ray itself connects
    with grpc.insecure_channel(f"{host}:{port}", options=without_proxy) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=patience_s)
        except grpc.FutureTimeoutError:
            return False
    return True


def _accepts(host: str, port: int, patience_s: float) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=patience_s):
            return True
    except OSError:
        return False
