"""HTTPS calls of an edge: outbound only, through proxies, to verified hosts only.

TLS certificates are verified by the file of --ca, which is read for each new connection
and may hold an old and a new CA side by side, else by the public ones of `requests`.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from fedray.edge.bandwidth import Bandwidth, LimitedBody
from fedray.edge.errors import EdgeEnded, Unreachable
from fedray.edges.protocol import PREFIX, Refusal
from fedray.errors import ConfigError
from fedray.untrusted_text import escape_line

CONNECT_S, READ_S = 15.0, 60.0
MAX_ANSWER = 1 << 20  # bytes of a body that is not an object
MAX_REDIRECTS = 5
MAX_REASON = 300  # characters
BUSY = (429, 502, 503, 504, 507)  # the same call may succeed later
KEEPS_METHOD = (307, 308)
REDIRECTS = (301, 302, 303, *KEEPS_METHOD)
Sink = Callable[[int, bytes], object]


class Answer(NamedTuple):
    """What the service answered: small enough to be in memory."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Call(NamedTuple):
    """One HTTP request.

    path : below the protocol's prefix.
    sink : takes the status and the body of a 200 or 206 piece by piece; None: the body
        is in the answer.
    wait_s : how much longer than usual the answer may take.
    on_send : called before the body leaves, each time that it does.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    sink: Sink | None = None
    wait_s: float = 0.0
    on_send: Callable[[], object] = lambda: None


class BearerToken(AuthBase):
    """Adds the edge's token to a request; nothing of a .netrc file does."""

    def __init__(self, token: str | None):
        self.token = token

    def __call__(self, request: Any) -> Any:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def check_urls(urls: Sequence[str]) -> list[str]:
    """The URLs of services, without a path's end; http:// is for this machine alone.

    Raises
    ------
    ConfigError
        With everything wrong with them.
    """
    problems, checked = [], []
    for url in urls:
        text = url.rstrip("/")
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            problems.append(f"--url {url}: https://host or https://host:port is needed")
        elif parts.username or parts.query or parts.fragment:
            problems.append(f"--url {url}: no user, ? or # belongs there")
        elif parts.scheme == "http" and not is_loopback(host):
            needed = "https:// is needed to leave this machine"
            problems.append(f"--url {url}: http:// is for localhost alone; {needed}")
        else:
            checked.append(text.removesuffix(PREFIX))
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(checked))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


class HttpClient:
    """Makes calls to whichever of several services answers; for one thread.

    Parameters
    ----------
    urls : as `check_urls` returns them; one that answers is kept to.
    ca : file of PEM certificates; None: the public CAs.
    token : of the edge; None before it has enrolled.
    """

    def __init__(
        self,
        urls: Sequence[str],
        ca: Path | None = None,
        bandwidth: Bandwidth | None = None,
        token: str | None = None,
    ):
        self.urls, self.ca, self.token = list(urls), ca, token
        self.bandwidth = bandwidth or Bandwidth()
        self.session = requests.Session()
        self.session.headers.update({"Accept-Encoding": "identity"})
        self._origins = set(map(origin, self.urls))

    @property
    def url(self) -> str:
        """The service that is called first."""
        return self.urls[0]

    def close(self) -> None:
        """Close all connections."""
        self.session.close()

    def call(self, call: Call) -> Answer:
        """Make a call; where a service is not there, or busy, to the next one.

        A body that a sink takes is not asked for twice: it may have a part of it.

        Raises
        ------
        Unreachable
            If no service answered, or none could take the call.
        EdgeEnded
            If a service sends the edge where it must not go.
        """
        failures: list[Unreachable] = []
        for _ in range(len(self.urls)):
            try:
                return self._call_one(call)
            except Unreachable as failure:
                failures.append(failure)
                self.urls.append(self.urls.pop(0))
                if call.sink is not None:
                    break
        waits = [one.retry_after_s for one in failures if one.retry_after_s is not None]
        reason = "; ".join(dict.fromkeys(one.reason for one in failures))
        raise Unreachable(reason, min(waits) if waits else None)

    def _call_one(self, call: Call) -> Answer:
        url, method = f"{self.url}{PREFIX}/{call.path}", call.method
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = self._send(url, method, call)
                try:
                    if response.status_code not in REDIRECTS:
                        return self._read(response, call)
                    url, method = self._follow(url, method, call, response)
                finally:
                    response.close()
            except (requests.RequestException, HTTPError, OSError) as error:
                raise Unreachable(f"{self.url}: {_describe(error)}") from None
        raise Unreachable(f"{self.url} redirects in a circle")

    def _send(self, url: str, method: str, call: Call) -> requests.Response:
        body: Any = call.body
        if body is not None and self.bandwidth.bytes_per_s is not None:
            body = LimitedBody(body, self.bandwidth)
        call.on_send()
        is_known = origin(url) in self._origins
        parts = urlsplit(url)
        is_local = is_loopback(parts.hostname or "")
        return self.session.request(
            method, url, data=body, headers=dict(call.headers), stream=True,
            allow_redirects=False, timeout=(CONNECT_S, READ_S + call.wait_s),
            auth=BearerToken(self.token if is_known else None),
            verify=str(self.ca) if self.ca else True,
            proxies={"http": "", "https": ""} if is_local else None,
        )  # fmt: skip

    def _follow(
        self, url: str, method: str, call: Call, response: requests.Response
    ) -> tuple[str, str]:
        """Where a redirect leads, if the edge may go there.

        The token goes to hosts of --url alone. Objects are known by their SHA-256: they
        may come from any host whose certificate is verified.
        """
        status = response.status_code
        target = urljoin(url, response.headers.get("Location", ""))
        parts = urlsplit(target)
        host = parts.hostname or ""
        is_here = parts.scheme == "http" and is_loopback(host)
        if parts.scheme != "https" and not (is_here and url.startswith("http:")):
            got = f"{self.url} redirects to {parts.scheme}://{host}"
            raise EdgeEnded(f"{got}, which is not https://: nothing was sent there")
        if origin(target) not in self._origins and call.sink is None:
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2][:200]}"
            remedy = f"if it is the service's, add --url {place}"
            what = f"{self.url} redirects to {place}, which no --url names"
            raise EdgeEnded(f"{what}: nothing was sent there; {remedy}")
        is_read = method in ("GET", "HEAD")
        if not is_read and status not in KEEPS_METHOD:
            raise Unreachable(f"{self.url} redirects a {method} with {status}: use 307")
        return target, method

    def _read(self, response: requests.Response, call: Call) -> Answer:
        status = response.status_code
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Unreachable(f"{self.url}: a proxy has compressed the answer")
        is_object = call.sink is not None and status in (200, 206)
        until = time.monotonic() + READ_S + call.wait_s
        body = bytearray()
        while piece := response.raw.read(self.bandwidth.piece):
            self.bandwidth.take(len(piece))
            if is_object:
                assert call.sink is not None
                call.sink(status, piece)
                continue
            body += piece
            if len(body) > MAX_ANSWER or time.monotonic() > until:
                raise Unreachable(f"{self.url}: its answer does not end")
        headers = {name.lower(): text for name, text in response.headers.items()}
        if status in BUSY:
            words = _detail_of(bytes(body)) or HTTPStatus(status).phrase
            raise Unreachable(f"{self.url}: {words} ({status})", _retry_after(headers))
        return Answer(status, headers, bytes(body))


def _detail_of(body: bytes) -> str:
    """What the service says of a refusal, if it is the service that refuses."""
    try:
        detail = Refusal.model_validate_json(body).detail
    except ValueError:
        return ""
    return escape_line(detail)[:MAX_REASON].rstrip(".")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) else None


def retry_after_of(answer: Answer) -> float | None:
    """Seconds until the service wants to hear of the edge again, if it says so."""
    return _retry_after(answer.headers)


def _describe(error: Exception) -> str:
    """Why a connection failed, in one line for people."""
    text = " ".join(str(error).split())
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = re.search(r"CERTIFICATE_VERIFY_FAILED\][^:]*: ([^'\")(]+)", text)
        detail = f" ({why[1].strip()})" if why else ""
        return f"its certificate is not verified{detail}: give --ca, or mend the clock"
    if isinstance(error, requests.Timeout):
        return "it does not answer in time"
    if isinstance(error, requests.exceptions.ProxyError):
        tunnel = re.search(r"Tunnel connection failed: ([^'\")]+)", text)
        if tunnel:
            return f"the proxy does not let it through: {tunnel[1].strip()}"
        return f"the proxy of the environment does not answer: {_meaning_of(text)}"
    meaning = _meaning_of(text)
    return meaning or f"{type(error).__name__}: {text[:MAX_REASON]}"


def _meaning_of(text: str) -> str:
    """What a system's error says in plain words; empty if none are known."""
    every = (words for phrase, words in _MEANINGS.items() if phrase in text)
    return next(every, "")


_MEANINGS = {
    "SOCKS support": "a SOCKS proxy needs one more package: pip install pysocks",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file of --ca has no certificate (PEM)",
    "TLS CA certificate bundle": "the file of --ca is not there",
    "Name or service not known": "no such host is known (DNS)",
    "Temporary failure in name resolution": "no such host is known now (DNS)",
    "Connection refused": "nothing listens there",
    "Network is unreachable": "there is no network",
    "No route to host": "there is no way to this host",
    "Connection reset": "the connection broke",
    "Connection aborted": "the connection broke",
    "RemoteDisconnected": "the connection broke",
    "IncompleteRead": "the connection broke",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: is it http:// on this port?",
}
