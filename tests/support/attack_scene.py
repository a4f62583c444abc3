"""The scene of attacks on the REST service: the service, a neighbour, an attacker.

`Scene` runs `fedray serve` with keys and a cluster of its own, in a memory cgroup where
one can be made, its folder on a disk of its own in memory. A neighbour, another client
from another address, trains two parties again and again. `Scene.play` lets an attacker
do its worst meanwhile and holds what must be so, whatever it does (`Watched`).

``python attack_scene.py serve ...`` is ``python -m fedray serve ...`` with workers that
are forked from processes of its own.
"""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent)] * (str(HERE.parent) not in sys.path)

from support.memory_group import MemoryGroup, Peak  # noqa: E402
from support.rest import Client, json_of  # noqa: E402
from support.waiting import PATIENCE_S, wait_for  # noqa: E402

MIB = 1 << 20
DISK = 384 * MIB  # of the service, in memory
EXTRA = 512 * MIB  # an attack may let the service take so much more than its peak
LASTING = 100 * MIB  # so much of it may remain
RECOVERY_S = 30.0  # after an attack
SHORT_S = 10.0  # attacks of as long or less
N_UNDISTURBED = 4  # trainings of the neighbour, one after another
HEALTH_S = 1.0
# what lies below the service's folder beside uploads under way
HARMLESS = re.compile(r"[0-9a-f]{32}|\.(incoming|usage|examiner|reserve)|[a-z.-]*lock")
SPARE = re.compile(r"ray::IDLE|.* fedray\.service\.examiner ")
SETTINGS = {  # of a service on a small machine; all others are the defaults
    "max_upload": 64 * MIB,
    "min_free_disk": 32 * MIB,
    "max_disk_per_client": 128 * MIB,
    "max_trainings_per_client": 1,
    "max_party_processes_per_client": 3,
    "max_examiner_memory": 384 * MIB,
    "max_examiner_s_per_file": 5,
    "max_memory_per_federation": 1024 * MIB,
    "max_memory_per_client": 1024 * MIB,
    "body_timeout_s": 5,
    "header_timeout_s": 5,
    "answer_timeout_s": 5,
}
DOC2VEC = {"fusion_algorithm": "doc2vec", "model_type": "doc2vec", "rounds": 1,
           "epochs": 1, "learning_rate": 0.05, "num_parties": 1}  # fmt: skip


@dataclass
class Attacker:
    """One client with a key of its own, which attacks for some seconds.

    neighbours_id : a federation that is not its own.
    """

    client: Client
    port: int
    seconds: float
    neighbours_id: str
    statuses: Counter = field(default_factory=Counter)  # of the answers it has read
    errors: list[BaseException] = field(default_factory=list)
    until: float = 0.0

    def begin(self) -> None:
        """What was done so far was preparation."""
        self.until = time.monotonic() + self.seconds

    @property
    def is_on(self) -> bool:
        """Whether the attack is still to go on."""
        return time.monotonic() < self.until

    def count(self, answer: requests.Response) -> requests.Response:
        """Count an answer; none may be an error of the service."""
        self.statuses[answer.status_code] += 1
        assert answer.status_code not in (500, 502), answer.text[:500]
        if answer.status_code in (429, 507):
            assert json_of(answer)["limit"], answer.text
            assert int(answer.headers["retry-after"]) > 0
        return answer

    def repeat(self, n_threads: int, call: Callable[[], object]) -> None:
        """Call it again and again in many threads; a connection may be cut."""

        def go() -> None:
            while self.is_on and not self.errors:
                try:
                    call()
                except (requests.RequestException, OSError):
                    time.sleep(0.05)
                except BaseException as error:
                    self.errors.append(error)

        threads = [threading.Thread(target=go, daemon=True) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        for error in self.errors:
            raise error

    def connect(self) -> socket.socket:
        """A connection that reads as little ahead as can be."""
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(PATIENCE_S)
        line.connect(("127.0.0.1", self.port))
        return line

    def head(self, call: str, *more: str) -> bytes:
        """Request line and headers of a call, such as "POST /stop"."""
        keys = [f"{name}: {value}" for name, value in self.client.headers.items()]
        lines = [f"{call} HTTP/1.1", "Host: 127.0.0.1", *keys, *more, "", ""]
        return "\r\n".join(lines).encode()

    def stop_all(self) -> None:
        """Stop what it has made; a stop is always answered."""
        for one in json_of(self.client.get("/aggregators"))["aggregators"]:
            if one["state"] != "stopped":
                answer = self.client.stop(one["aggregator_id"])
                assert answer.status_code == 200, answer.text


class OtherAddress(HTTPAdapter):
    """Calls from 127.0.0.2."""

    def init_poolmanager(self, *args, **how):
        super().init_poolmanager(*args, **how, source_address=("127.0.0.2", 0))


class Neighbour:
    """Another client: it trains two parties, and has the same model each time."""

    def __init__(self, client: Client):
        self.client, self.seconds, self.model = client, 0.0, None
        session = requests.Session()
        session.mount("http://", OtherAddress())
        self.client.http = session

    def prepare(self) -> str:
        """A federation that is ready to train; its id."""
        return self.client.ready()

    def train(self, id: str) -> None:
        """Train and stop it: the model has the same bits as the first one."""
        answer = self.client.train(id)
        assert answer.status_code == 200, answer.text
        model = json_of(answer)["global_model"]
        self.model = self.model or model
        assert model == self.model, "the neighbour's model has other bits"
        stopped = json_of(self.client.stop(id))
        assert stopped["global_model"] == self.model
        self.client.ids.clear()


@dataclass
class Watched:
    """What was seen while an attack was played."""

    name: str
    health_s: float = 0.0  # the slowest answer, on a machine that has a core free
    n_health: int = 0
    n_trained: int = 0  # federations of the neighbour
    training_s: float = 0.0  # the longest of them
    used: int = 0  # bytes more than the undisturbed peak
    largest: str = ""  # processes then
    lasting: int = 0  # bytes more than before, afterwards
    statuses: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.name}: health {self.health_s:.2f} s of {self.n_health}, "
            f"{self.n_trained} trained in up to {self.training_s:.1f} s, "
            f"{self.used >> 20:+} MB ({self.largest}), "
            f"lasting {self.lasting >> 20:+} MB, {self.statuses}"
        )


class Scene:
    """The service with its neighbour, played undisturbed once."""

    def __init__(self, folder: Path):
        self.folder, self.group = folder, MemoryGroup()
        self.root, self.data = folder / "root", folder / "data"
        self.temporary = Path(f"/tmp/fra-{os.getpid()}")  # short: for Ray's sockets
        for one in (self.root, self.data, self.temporary, folder / "mine"):
            one.mkdir(0o700)
        self.keys = folder / "keys"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self.probe: subprocess.Popen | None = None
        self.has_disk, self.ready = False, ""
        self.kinds: Counter = Counter()  # of the service's processes at rest

    def start(self) -> None:
        """Start everything, and play it undisturbed."""
        self._mount()
        self._serve()
        log = (self.folder / "health").open("w")
        probe = [sys.executable, str(HERE / "health_probe.py"), str(self.port)]
        self.probe = subprocess.Popen(probe, stdout=log)
        self.neighbour = Neighbour(self.client("neighbour"))
        self._warm_up()
        wait_for(self._is_settled, "spare processes to end")
        self.kinds = self._kinds()
        with Peak(self.group) as peak:
            started = time.monotonic()
            for _ in range(N_UNDISTURBED):  # one begins as another's processes end
                self.neighbour.train(self.neighbour.prepare())
            self.neighbour.seconds = (time.monotonic() - started) / N_UNDISTURBED
        self._sweep()
        self.undisturbed = peak.most
        if self.group.peak():
            self.group.limit(self.group.peak() + EXTRA + DISK)
        self.n_killed = self.group.n_killed()

    def _is_settled(self) -> bool:
        before = self.group.pss()
        time.sleep(1)
        return abs(self.group.pss() - before) < 10 * MIB

    def _warm_up(self) -> None:
        """Let it import once what it imports when it is first needed."""
        self.neighbour.train(self.neighbour.prepare())
        attacker = self.attacker("warm-up", 0)
        made = attacker.client.post("/start-aggregator", data=DOC2VEC)
        assert made.status_code == 200, made.text
        attacker.stop_all()

    def _serve(self) -> None:
        flags = {name: str(value) for name, value in SETTINGS.items()}
        flags |= {"port": str(self.port), "root": str(self.root)}
        flags |= {"api_keys": str(self.keys), "data_root": str(self.data)}
        command = [sys.executable, __file__, "serve"]
        for name, value in flags.items():
            command += [f"--{name.replace('_', '-')}", value]
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        env |= {"RAY_TMPDIR": str(self.temporary), "TMPDIR": str(self.temporary)}
        self.client("neighbour")  # a key, without which it does not start
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log,
                preexec_fn=self.group.enter, start_new_session=True,
            )  # fmt: skip
        self.group.first = self.process.pid
        wait_for(self._is_up, "the service")

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health").status_code == 200
        return False

    def log(self) -> str:
        """The end of what the service has written."""
        return (self.folder / "log").read_text()[-3000:]

    def _mount(self) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(self.root)]
        self.has_disk = not subprocess.run(mount, capture_output=True).returncode

    def client(self, name: str) -> Client:
        """A client with a key of its own, made if there is none."""
        file = self.folder / "mine" / name
        if not file.exists():
            from fedray.service import auth

            file.write_text(auth.add_key(str(self.keys), name)[1])
        keys = {"X-IBM-Client-Id": name, "X-IBM-Client-Secret": file.read_text()}
        return Client(self.url, **keys)

    def attacker(self, name: str, seconds: float, neighbours_id: str = "") -> Attacker:
        """Another client for each attack."""
        return Attacker(self.client(name), self.port, seconds, neighbours_id)

    @property
    def slowness(self) -> float:
        """How much slower than a quiet machine this one is; at least 1."""
        return max(1.0, self.neighbour.seconds / 5.0)

    def play(self, name: str, attack: Callable[[Attacker], None], seconds: float):
        """Play an attack; what was seen, all of which is as it must be."""
        wait_for(lambda: not self._kinds() - self.kinds, "earlier trainings to end")
        seen, before = Watched(name), self.group.pss()
        id, started = self.ready or self.neighbour.prepare(), time.monotonic()
        attacker = self.attacker(name, seconds, id)
        attacking = threading.Thread(target=_run, args=(attacker, attack), daemon=True)
        with Peak(self.group) as peak:
            attacking.start()
            self._train_meanwhile(seen, id, attacking, seconds)
            attacking.join(PATIENCE_S)
            ended = time.monotonic()
            seen.statuses = dict(attacker.statuses)
            for error in attacker.errors:
                raise error
            self._see_health(seen, started, ended)
            self._recover(seen, attacker, before)
        seen.used, seen.largest = peak.most - self.undisturbed, peak.largest
        self._check(seen)
        return seen

    def _train_meanwhile(
        self, seen: Watched, id: str, attacking: threading.Thread, seconds: float
    ) -> None:
        """Once, and in a long attack again and again.

        Else processes of more trainings than undisturbed would be ending at once.
        """
        while not seen.n_trained or (attacking.is_alive() and seconds > SHORT_S):
            started = time.monotonic()
            self.neighbour.train(id or self.neighbour.prepare())
            seen.training_s = max(seen.training_s, time.monotonic() - started)
            seen.n_trained, id = seen.n_trained + 1, ""

    def _see_health(self, seen: Watched, started: float, ended: float) -> None:
        wait_for(lambda: self._probes()[-1]["at"] > ended, "answers of /health")
        probes = [one for one in self._probes() if started <= one["at"] <= ended]
        for one in probes:
            near = [p["slowdown"] for p in probes if abs(p["at"] - one["at"]) < 2]
            seen.health_s = max(seen.health_s, one["seconds"] / max(near))
            assert one["status"] == 200, f"/health answered {one} during {seen.name}"
        seen.n_health = len(probes)

    def _probes(self) -> list[dict]:
        assert self.probe.poll() is None
        lines = (self.folder / "health").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _recover(self, seen: Watched, attacker: Attacker, before: int) -> None:
        """Wait until nothing is left of an attack, its federations aside."""
        attacker.stop_all()
        self.ready = self.neighbour.prepare()  # examiners of other models end then

        def problem() -> str:
            seen.lasting = self.group.pss() - before
            more = self._kinds() - self.kinds
            litter = self.litter()
            if litter or more:
                return f"left: {litter} {dict(more)}"
            return f"{seen.lasting >> 20} MB more" * (seen.lasting > LASTING)

        until = time.monotonic() + RECOVERY_S * self.slowness
        while (text := problem()) and time.monotonic() < until:
            time.sleep(0.2)
        assert not text, f"{seen.name}: {text}\n{self.log()}"
        self._sweep()

    def litter(self) -> list[str]:
        """Files below the service's folder that belong to no federation."""
        names = [p.name for p in self.root.iterdir() if not HARMLESS.fullmatch(p.name)]
        names += [p.name for p in (self.root / ".incoming").iterdir()]
        names += [p.name for p in (self.root / ".examiner").rglob("*") if p.is_file()]
        for file in self.root.glob("*/federation.json"):
            uploads = list((file.parent / "uploads").glob("*"))
            if json.loads(file.read_text())["state"] == "stopped" and len(uploads) > 1:
                names += [str(one.relative_to(self.root)) for one in uploads[1:]]
        for folder in self.root.glob("[0-9a-f]*/"):
            names += [folder.name] * (folder.is_dir() and not any(folder.iterdir()))
        return names + sorted(p.name for p in self.temporary.glob("tmp*"))

    def _kinds(self) -> Counter:
        """The service's processes, by what they are; spare ones aside.

        Those are Ray's workers, and an examiner of each model type.
        """
        kinds: Counter = Counter()
        for pid in self.group.pids():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                if title and not SPARE.match(title.decode()):
                    kind = re.sub(r"[0-9a-f]{8,}|\d+", "#", title.decode()[:100])
                    kinds[kind.strip()] += 1
        return kinds

    def _sweep(self) -> None:
        """Delete the federations that are stopped, as their operator may."""
        for file in self.root.glob("*/federation.json"):
            if json.loads(file.read_text())["state"] == "stopped":
                shutil.rmtree(file.parent)

    def _check(self, seen: Watched) -> None:
        assert seen.health_s < HEALTH_S, str(seen)
        assert seen.used < EXTRA, str(seen)
        assert self.group.n_killed() == self.n_killed, f"killed for memory: {seen}"
        assert self.process.poll() is None, self.log()

    def end(self) -> None:
        """End everything."""
        self.group.limit(None)
        if self.probe:
            self.probe.kill()
            self.probe.wait()
        pids = self.group.pids() if self.process else set()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S)
        for pid in pids | (self.group.pids() if self.group.folder else set()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.has_disk:
            subprocess.run(["umount", "-l", str(self.root)], check=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.group.remove()


def _run(attacker: Attacker, attack: Callable[[Attacker], None]) -> None:
    try:
        attacker.begin()
        attack(attacker)
    except BaseException as error:
        attacker.errors.append(error)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """A scene that has been played undisturbed."""
    one = Scene(folder)
    try:
        one.start()
        yield one
    finally:
        one.end()


if __name__ == "__main__":
    from support.worker_server import EXTRAS, forked_workers

    os.environ["PYTHONPATH"] = str(ROOT)
    with forked_workers(*EXTRAS):
        runpy.run_module("fedray", run_name="__main__", alter_sys=True)
