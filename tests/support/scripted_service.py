"""One federation of the REST service, from upload to stop, by its real code of files.

Without HTTP, Ray and training. Each call is made again if it failed, or if the machine
stopped before it was answered, as a client would.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from fedray import durable_files
from fedray.errors import CallRefused
from fedray.service import federation_actor, lifecycle, store
from fedray.service.federation_actor import Federation
from fedray.service.settings import Settings
from fedray.service.uploads import FormData, MultipartTarget

MODEL = b"a model" * 3000  # more than one write
ANSWER = b'{"global_model": 1}'
HANDLER = b"class Mine:\n    def get_data(self): ...\n"


class ScriptedService:
    """One federation below `home`, whose calls are repeated until they are answered.

    acknowledged : what clients were answered; errors : how calls failed.
    """

    title = "a federation of the service: uploads, joins, a leave, training, stop"

    def __init__(self, home: Path, user: Path):
        self.root = home / "service"
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.has_actor = False

    @property
    def folder(self) -> Path:
        """The federation's folder, after it was made."""
        (state,) = store.list_states(self.root)
        return self.root / state.id

    def play(self) -> None:
        """Make every call that has no effect yet."""
        with (
            mock.patch.object(Federation, "_train_and_end"),
            mock.patch.object(federation_actor, "join_run", return_value=2),
            mock.patch.object(federation_actor, "find", self._find_actor),
            mock.patch.object(federation_actor, "get_or_start", self._start_actor),
            mock.patch.object(federation_actor, "kill", self._kill_actor),
        ):
            self._call("created", self._create)
            for i in (0, 1):
                if not self._has_joined(i) and not self._has_joined(2):
                    self._call(f"{i} joined", lambda i=i: self._join(i))
            if self._has_joined(0):
                self._call("0 left", self._leave)
            if not self._has_joined(2):
                self._call("2 joined", lambda: self._join(2))
            self._call("trains", self._train)
            if not self._has_joined(3) and self._state() == store.TRAINING:
                self._call("3 joined", lambda: self._join(3))
            self._call("trained", self._end)
            self._call("stopped", lambda: asyncio.run(lifecycle.stop(self.folder)))

    def _call(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except (OSError, CallRefused) as error:
            self.errors.append(str(error))
            call()
        self.acknowledged.append(what)

    def _upload(self, **files: bytes) -> FormData:
        """Receive a form's files, as the parser of a call does."""
        target = MultipartTarget(store.upload_folder(self.root), Settings())
        try:
            for name, content in files.items():
                target.begin_part()
                head = f'form-data; name="{name}"; filename="{name}.bin"'.encode()
                target.headers[b"content-disposition"] = head
                target.end_headers()
                for start in range(0, len(content), 8000):
                    target.add_data(content, start, min(start + 8000, len(content)))
                    target.flush(4000)
                target.end_part()
        except BaseException:
            target.discard()
            raise
        return target.form

    def _create(self) -> None:
        if not list(store.list_states(self.root)):
            form = self._upload(model_file=MODEL)
            state = store.State(store.make_id(), None, {"rounds": 2}, 2)
            try:
                store.create(self.root, state, form.files["model_file"].path)
            finally:
                form.discard()

    def _join(self, i: int) -> None:
        form = self._upload(data=b"%d" % i * 9000, custom_data_handler=HANDLER)
        try:
            code = asyncio.run(form.rename("custom_data_handler", ".py"))
            path = str(form.files["data"].path)
            party = {
                "data_handler": f"{code}:Mine",
                "data": path,
                "fields": {"i": f"{i}"},
            }
            asyncio.run(lifecycle.join(self.folder, party, form, 9))
        finally:
            form.discard()

    def _leave(self) -> None:
        for party in store.read(self.folder).parties:
            if party["fields"]["i"] == "0":
                asyncio.run(lifecycle.leave(self.folder, party["name"]))

    def _train(self) -> None:
        if self._state() == store.WAITING:
            lifecycle.queue_training(self.folder, "call-train", Settings())
        lifecycle.start_training(self.folder, Settings())
        if self._state() == store.TRAINING:
            lifecycle.resume_training(self.folder)

    def _end(self) -> None:
        if self._state() == store.TRAINING:
            answer = b'{"global_model": 1}'
            durable_files.write_bytes(self.folder / store.ANSWER, answer)
            Federation(str(self.folder))._end_training(state=store.TRAINED)

    def _find_actor(self, folder: Path) -> SimpleNamespace | None:
        """A stand-in for the actor's handle, which calls it at once."""
        if not self.has_actor:
            return None
        actor = Federation(str(folder))
        return SimpleNamespace(join=SimpleNamespace(remote=actor.join))

    def _start_actor(self, folder: Path) -> None:
        self.has_actor = True

    def _kill_actor(self, folder: Path) -> None:
        self.has_actor = False

    def _state(self) -> str:
        return store.read(self.folder).state

    def _has_joined(self, i: int) -> bool:
        parties = store.read(self.folder).parties
        return any(party["fields"]["i"] == f"{i}" for party in parties)

    def check_acknowledged(self) -> None:
        """See that all that was answered is so, and that every file is whole."""
        states = list(store.list_states(self.root))
        if "created" in self.acknowledged:
            assert len(states) == 1
        if not states:
            return
        (state,) = states
        assert Path(state.model_file).read_bytes() == MODEL
        joined = {party["fields"]["i"] for party in state.parties}
        answered = {a[0] for a in self.acknowledged if a.endswith("joined")}
        gone = {a[0] for a in self.acknowledged if a.endswith("left")}
        assert gone.isdisjoint(joined)
        assert answered - joined <= {"0"}  # whose leave may be done, but not answered
        if state.state != store.STOPPED and not state.is_stopping:
            for party in state.parties:
                content = party["fields"]["i"].encode() * 9000
                assert Path(party["data"]).read_bytes() == content
                code = Path(party["data_handler"].rpartition(":")[0])
                assert code.read_bytes() == HANDLER
        if "trained" in self.acknowledged:
            assert (self.folder / store.ANSWER).read_bytes() == ANSWER
        if "stopped" in self.acknowledged:
            assert state.state == store.STOPPED
            assert self._uploads() == [MODEL]

    def _uploads(self) -> list[bytes]:
        return [file.read_bytes() for file in (self.folder / store.UPLOADS).iterdir()]

    def result(self) -> dict[str, object]:
        """What a federation is in the end, whatever happened on the way."""
        self.check_acknowledged()
        durable_files.remove_leftovers(self.folder)  # as a training or a sweep does
        state = store.read(self.folder)
        return {
            "state": (state.state, state.num_parties, state.n_remaining),
            "joined": sorted(party["fields"]["i"] for party in state.parties),
            "uploads": self._uploads(),
            "files": sorted(path.name for path in self.folder.iterdir()),
        }
