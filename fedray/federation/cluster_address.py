"""Address of a running Ray cluster: read from RAY_ADDRESS, asked before Ray connects.

Ray itself would ask a silent or foreign address for minutes, and log to the terminal.
"""

import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import grpc
import ray
from ray import _raylet
from ray._private import grpc_utils, services
from ray._private.authentication import authentication_utils
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from fedray.errors import ClusterError
from fedray.federation.host_checks import (
    TOKEN_VARIABLES,
    check_token,
    has_token_place,
    home_folder,
    token_file,
)

CONNECT_TIMEOUT_S = 3.0  # to look up a name, and to connect to one of its addresses
ANSWER_TIMEOUT_S = 5.0  # to answer all that is asked
MIN_TIMEOUT_S = 0.5  # for an address or an answer, whatever took the time before
LOOPBACK = {"127.0.0.1", "::1"}  # as Ray has them
LOCAL = "local"  # start a cluster on this machine
LOOK_AT_IT = "Look at RAY_ADDRESS: HEAD:6379, as `ray start` printed it; or unset it"
ON_A_NODE = "On a node of the cluster it must be HEAD:6379, as `ray start` printed it"
RAYLET: Any = _raylet  # has more than its stubs say, as the next
CALLS: Any = gcs_service_pb2
NO_PROXY = [("grpc.enable_http_proxy", 0)]  # as Ray itself, whatever http_proxy says
ALIVE = 0  # state of a node
REFUSED = grpc.StatusCode.UNAUTHENTICATED
TOKEN_PLACES = (
    "Put the cluster's token into ~/.ray/auth_token (on its head `ray get-auth-token` "
    "prints it)"
)


def asked_address() -> str:
    """The cluster that RAY_ADDRESS asks for: HOST:PORT, auto, or local.

    Raises
    ------
    ClusterError
        If it is none of these.
    """
    text = os.environ.get("RAY_ADDRESS", "").strip()
    if text in ("", LOCAL, "auto"):
        return text or LOCAL
    if text.startswith("ray://"):
        what = f"RAY_ADDRESS={text} is for Ray Client, which fedray does not use"
        raise ClusterError(what, f"{ON_A_NODE}; from elsewhere use `ray job submit`")
    if "://" in text:
        what = f"RAY_ADDRESS={text} is for `ray job`"
        raise ClusterError(what, ON_A_NODE)
    _split(text)
    return text


def _split(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]\s/]+)\]|([^\[\]\s/:]+)):([0-9]{1,5})", address)
    port = int(match[3]) if match else 0
    if match is None or not 0 < port < 1 << 16:
        what = f"RAY_ADDRESS={address} is no address of a Ray cluster"
        raise ClusterError(what, LOOK_AT_IT)
    return match[1] or match[2], port


def find_cluster() -> str:
    """Address of the one Ray cluster on this machine, for RAY_ADDRESS=auto.

    That of `ray start` if it answers, else the only one that has a node here.

    Raises
    ------
    ClusterError
        If there is none, or several.
    """
    started = services.find_bootstrap_address(None)
    if started and ":" in started and connect_error(started) is None:
        return started
    addresses = sorted(services.find_gcs_addresses())
    if len(addresses) == 1:
        return addresses[0]
    if addresses:
        what = f"several Ray clusters run on this machine: {', '.join(addresses)}"
        raise ClusterError(what, "Set RAY_ADDRESS to one of them")
    what = "RAY_ADDRESS=auto, and no Ray cluster runs on this machine"
    raise ClusterError(what, "Start one with `ray start --head`, or unset RAY_ADDRESS")


@dataclass(frozen=True)
class ClusterAddress:
    """Address of a Ray cluster, and who named it.

    run : of this user, whose address file has it; empty: RAY_ADDRESS named it.
    """

    address: str
    run: str = ""

    def __str__(self) -> str:
        return f"{self.address} ({f'run {self.run}' if self.run else 'RAY_ADDRESS'})"

    @property
    def remedy(self) -> str:
        """What to do if it is not there."""
        return f"Has {self.run} ended since?" if self.run else LOOK_AT_IT


def check_cluster(cluster: ClusterAddress) -> bool:
    """Ask whether a Ray cluster is there that this process can connect to.

    Returns whether it listens at this machine's loopback address alone.

    Raises
    ------
    ClusterError
        If nobody listens, it is no head of a cluster, of another Ray, wants another
        token, or if this machine is no node of it.
    """
    check_token(os.environ)
    error = connect_error(cluster.address)
    if error is not None:
        raise ClusterError(f"nobody listens at {cluster}: {error}", cluster.remedy)
    until = time.monotonic() + ANSWER_TIMEOUT_S
    reply = _ask(cluster, "CheckAlive", CALLS.CheckAliveRequest(), until)
    if reply.ray_version != ray.__version__:
        what = f"Ray at {cluster} is {reply.ray_version}, here {ray.__version__}"
        raise ClusterError(what, "Install the same version here and on its nodes")
    return _check_node(cluster, until)


def connect_error(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> OSError | None:
    """Why nothing listens at an address; None if something does.

    timeout_s : for all addresses that its name has, together.
    """
    until, first = time.monotonic() + timeout_s, None
    try:
        for family, kind, protocol, _, place in _look_up(address, timeout_s):
            left_s = max(MIN_TIMEOUT_S, until - time.monotonic())
            with socket.socket(family, kind, protocol) as client:
                client.settimeout(left_s)
                try:
                    client.connect(place)
                    return None
                except OSError as error:
                    first = first or error
            if time.monotonic() > until:
                break
    except OSError as error:
        return error
    return first or OSError("it has no address")


def _look_up(address: str, timeout_s: float) -> list[Any]:
    """What `getaddrinfo` says of an address; it knows no timeout by itself."""
    host, port = _split(address)
    answers: list[Any] = []

    def look_up() -> None:
        try:
            answers.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # a name that cannot be one
            answers.append(OSError(str(error)))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout_s)
    answer = answers[0] if answers else TimeoutError(f"no such name in {timeout_s:g} s")
    if isinstance(answer, OSError):
        raise answer
    return answer


def socket_error(path: str) -> OSError | None:
    """Why nothing listens at a Unix socket; None if something does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_TIMEOUT_S)
        try:
            client.connect(path)
        except OSError as error:
            return error
    return None


def _ask(cluster: ClusterAddress, call: str, request: Any, until: float) -> Any:
    """Call the cluster's head; with the token, if it is a run's and wants one."""
    try:
        channel = grpc_utils.init_grpc_channel(cluster.address, NO_PROXY)
    except (RuntimeError, OSError) as error:  # RAY_USE_TLS without its files
        what = f"cannot encrypt what is sent to {cluster}: {error}"
        raise ClusterError(what, "Set RAY_TLS_… as on the nodes") from None
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        timeout_s = max(MIN_TIMEOUT_S, until - time.monotonic())
        return getattr(stub, call)(request, timeout=timeout_s)
    except grpc.RpcError as error:
        if cluster.run and error.code() is REFUSED and _use_token():
            return _ask(cluster, call, request, until)
        raise _refusal(error, cluster) from None
    except AuthenticationError:
        what = f"Ray at {cluster} wants a token, and there is none here"
        raise ClusterError(what, TOKEN_PLACES) from None
    finally:
        channel.close()


def _refusal(error: grpc.RpcError, cluster: ClusterAddress) -> ClusterError:
    """The error of a cluster that does not answer as a head does."""
    code, text = error.code(), " ".join((error.details() or "").split())[:300]
    if code is REFUSED:
        if not authentication_utils.is_token_auth_enabled():
            what = f"Ray at {cluster} wants a token, and none was sent"
            return ClusterError(what, f"Set RAY_AUTH_MODE=token. {TOKEN_PLACES}")
        variables = [name for name in TOKEN_VARIABLES if os.environ.get(name)]
        hint = f"{variables[0]} has another one: unset it. " if variables else ""
        what = f"Ray at {cluster} does not take the token from here"
        return ClusterError(what, f"{hint}{TOKEN_PLACES}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        what = f"{cluster} takes connections and does not answer"
        return ClusterError(f"{what} in {ANSWER_TIMEOUT_S:g} s", cluster.remedy)
    what = f"no head of a Ray cluster answers at {cluster}: {text}"
    tls = "With TLS there, set RAY_USE_TLS and its files as on the nodes"
    return ClusterError(what, f"{cluster.remedy}. {tls}")


def _use_token() -> bool:
    """Turn token authentication on where nobody has decided; whether it changed."""
    if "RAY_AUTH_MODE" in os.environ:
        return False
    if not has_token_place(os.environ, home_folder()):
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file())
    loader = RAYLET.AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not loader.has_token(ignore_auth_mode=True):
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    RAYLET.Config.initialize("")  # Ray has read the environment already
    return True


def _check_node(cluster: ClusterAddress, until: float) -> bool:
    """Raise ClusterError unless a node of the cluster runs on this machine.

    Ray would look for one for a minute. Returns whether all of it is at loopback.
    """
    request = CALLS.GetAllNodeInfoRequest(state_filter=ALIVE)
    reply = _ask(cluster, "GetAllNodeInfo", request, until)
    there = {node.node_id.hex() for node in reply.node_info_list}
    if there.isdisjoint(services.find_node_ids()):
        what = f"this machine is not a node of the Ray cluster at {cluster}"
        remedy = "Work on one of its nodes, or use `ray job submit`"
        raise ClusterError(what, f"{remedy}; `ray start --address` makes it a node")
    addresses = {node.node_manager_address for node in reply.node_info_list}
    return addresses <= LOOPBACK
