"""Three hosts on one machine: namespaces with addresses and mounts of their own.

They reach each other over a bridge in a fourth namespace, and nothing else. Needs the
right to make namespaces; `can_make_namespaces` says whether it is there.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
NET = "10.77.0"  # private, and no namespace has a route out
QUICK = (
    '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,'
    ' "health_check_timeout_ms": 1000, "health_check_failure_threshold": 10}'
)


def ip(*words: str) -> None:
    """Run `ip`; what it says of a mistake is the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def can_make_namespaces() -> bool:
    """Whether this machine lets us make namespaces, links and mounts."""
    if not all(map(shutil.which, ("ip", "unshare", "mount", "openssl"))):
        return False
    name = f"fr-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
    except OSError:
        return False
    try:
        ip("-n", name, "link", "add", "try", "type", "bridge")
        mount = ["ip", "netns", "exec", name, "mount", "-t", "tmpfs", "none", "/mnt"]
        return not subprocess.run(mount, capture_output=True, check=False).returncode
    except OSError:
        return False
    finally:
        ip("netns", "del", name)


class Host:
    """One of them: its namespace, its address, its own files over shared folders."""

    def __init__(self, network: "Network", number: int):
        self.network, self.address = network, f"{NET}.{number}"
        self.name = f"{network.name}-{number}"
        self.port = f"p{number}"  # its end of the cable at the bridge
        self.processes: list[subprocess.Popen] = []
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        far = ("peer", "name", self.port, "netns", network.switch)
        ip("-n", self.name, "link", "add", "eth0", "type", "veth", *far)
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", network.switch, "link", "set", self.port, "master", "bridge")
        self.plug(True)

    def plug(self, is_in: bool) -> None:
        """Plug its cable in, or pull it."""
        state = "up" if is_in else "down"
        ip("-n", self.network.switch, "link", "set", self.port, state)

    def command(self, words: list[str], mounts: dict[Path, Path | None]) -> list[str]:
        """Words run here; mounts: folder -> what is seen there, None: an empty one."""
        script = ""
        for folder, source in mounts.items():
            kind = "-t tmpfs none" if source is None else f"--bind {source}"
            script += f"mount {kind} {folder} && "
        within = ["ip", "netns", "exec", self.name, "sh", "-c", f'{script}exec "$@"']
        return [*within, "sh", *words]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        """Run a program here to its end, as a person at a terminal."""
        return subprocess.run(
            self.command([*words], {}),
            cwd=ROOT,
            env={**self.network.env, **env},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def start_ray(self, *words: str, mounts: dict[Path, Path | None]) -> None:
        """`ray start` here, seeing folders as `mounts` says."""
        self.start_again = functools.partial(self.start_ray, *words, mounts=mounts)
        self.log = self.network.folder / f"{self.name}-{len(self.processes)}.log"
        ray = [str(BIN / "ray"), "start", "--block", "--num-cpus=1"]
        ray += [f"--node-ip-address={self.address}", *words]
        ray += [f"--object-store-memory={100 << 20}"]
        with self.log.open("w") as out:
            process = subprocess.Popen(
                self.command(ray, mounts),
                stdout=out,
                stderr=out,
                env=self.network.env,
                cwd=self.network.folder,
                start_new_session=True,
            )
        self.processes.append(process)

    def has_joined(self) -> bool:
        """Whether `ray start` says so; cheaper to ask than Ray.

        One that has ended is started again, as a host's init does: on a busy machine
        Ray may give up, or take a node for dead that is only slow.
        """
        if self.processes[-1].poll() is not None:
            self.start_again()
        return "Ray runtime started" in self.log.read_text()

    def pids(self) -> list[int]:
        """Everything that runs here."""
        words = ["ip", "netns", "pids", self.name]
        return [int(word) for word in subprocess.check_output(words, text=True).split()]

    def stop_ray(self) -> None:
        """End everything here, as a host that is switched off."""
        until = time.monotonic() + 120
        while (pids := self.pids()) and time.monotonic() < until:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for process in self.processes:
            process.wait(120)


class Network:
    """A bridge, the hosts at it, and the token and certificates that they share."""

    def __init__(self, folder: Path, ray_tmp: Path, n_hosts: int):
        self.folder, self.ray_tmp = folder, ray_tmp
        self.name = f"fr-{secrets.token_hex(3)}"
        self.switch = f"{self.name}-switch"
        self.hosts: list[Host] = []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        self.hosts += [Host(self, i + 1) for i in range(n_hosts)]
        self.env = {
            "HOME": str(folder),
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(ray_tmp),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            **self._certificates(),
        }
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))

    def _certificates(self) -> dict[str, str]:
        """Made as the comments of cluster.yaml say; the hosts share one."""
        names = ",".join(f"IP:{host.address}" for host in self.hosts)
        ca, key, host = (self.folder / name for name in ("ca.crt", "ca.key", "host"))
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9"]
        authority = [*new, "-subj", "/CN=fedray", "-keyout", str(key), "-out", str(ca)]
        subprocess.run(authority, capture_output=True, check=True)
        signed = [*new, "-subj", "/CN=host", "-CA", str(ca), "-CAkey", str(key)]
        signed += ["-addext", f"subjectAltName=DNS:localhost,IP:127.0.0.1,{names}"]
        signed += ["-keyout", f"{host}.key", "-out", f"{host}.crt"]
        subprocess.run(signed, capture_output=True, check=True)
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_CA_CERT": str(ca),
            "RAY_TLS_SERVER_CERT": f"{host}.crt",
            "RAY_TLS_SERVER_KEY": f"{host}.key",
        }

    def end(self) -> None:
        """Switch every host off, and take the namespaces away."""
        for host in self.hosts:
            host.stop_ray()
            ip("netns", "del", host.name)
        ip("netns", "del", self.switch)


@contextlib.contextmanager
def network(folder: Path, ray_tmp: Path, n_hosts: int) -> Iterator[Network]:
    """Hosts for the time of a test."""
    made = Network(folder, ray_tmp, n_hosts)
    try:
        yield made
    finally:
        made.end()
