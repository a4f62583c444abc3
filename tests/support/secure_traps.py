"""Parties of secure sums that die, fail or wait at a step, as files in a folder say.

``<step>-<party>-<round>`` holds what is to happen: die, fail (both once), or hold,
which waits while the file ``….held`` is there. Steps are KEYS, SHARES, MASKED (before
training), MADE (the masked vector is on disk, nothing has left), ALIVE, REVEAL.
"""

import textwrap
from pathlib import Path

CODE = """
    import os, time
    from pathlib import Path

    from fedray.data import MnistPytorch
    from fedray.secure_sum import Attempt, PartySide
    from fedray.secure_sum.codec import decode

    FOLDER = Path({folder!r})

    def trap(step, name, round):
        file = FOLDER / f"{{step}}-{{name}}-{{round}}"
        try:
            file.rename(f"{{file}}.held")
        except FileNotFoundError:
            return
        held = Path(f"{{file}}.held")
        what = held.read_text()
        if what == "die":
            os.kill(os.getpid(), 9)
        if what == "fail":
            raise ValueError("a trap was set")
        while held.exists():
            time.sleep(0.02)

    def round_of(side, request):
        message = decode(request)
        if message.kind.name == "KEYS_REQUEST":
            return Attempt.decode(message.head).round
        return side.attempt_of(request).round

    def set_traps():
        answer_all, masked = PartySide.answer_all, PartySide.masked
        mask = PartySide.mask

        def trapped_answers(self, requests):
            for request in requests:
                step = decode(request).kind.name.removesuffix("_REQUEST")
                trap(step, self.name, round_of(self, request))
            return answer_all(self, requests)

        def trapped_masked(self, request):
            trap("MASKED", self.name, round_of(self, request))
            return masked(self, request)

        def trapped_mask(self, request, *arguments):
            vector = mask(self, request, *arguments)
            trap("MADE", self.name, round_of(self, request))
            return vector

        PartySide.answer_all, PartySide.masked = trapped_answers, trapped_masked
        PartySide.mask = trapped_mask

    set_traps()

    class Trapped(MnistPytorch):
        pass
"""


class Traps:
    """Sets traps for parties whose data handler is `handler`."""

    def __init__(self, folder: Path):
        self.folder = folder / "traps"
        self.folder.mkdir()
        file = folder / "trapped.py"
        file.write_text(textwrap.dedent(CODE.format(folder=str(self.folder))))
        self.handler = f"{file}:Trapped"

    def set(self, what: str, *places: str) -> None:
        """Let this happen at places such as ``ALIVE-b-2``."""
        for place in places:
            (self.folder / place).write_text(what)

    def sprung(self) -> list[str]:
        """Places where a party has come to."""
        return sorted(p.stem for p in self.folder.glob("*.held"))

    def release(self, place: str) -> None:
        """Let who waits at a place go on."""
        (self.folder / f"{place}.held").unlink()
