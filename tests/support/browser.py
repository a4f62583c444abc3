"""Chromium without a window, driven over its debugging pipe: no driver, no network."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WAIT_S = 300.0  # for a condition, on a busy machine
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--remote-debugging-pipe"),
)
START = """
import fcntl, os, sys  # Chromium reads its pipe at 3 and writes at 4
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowDown": 40}


class Browser:
    """One page of a Chromium of its own.

    errors : what the page's console and its security policy have said.
    """

    def __init__(self, folder: Path):
        to_read, self.out = os.pipe()
        self.into, to_write = os.pipe()
        self.numbers, self.rest, self.answers = itertools.count(1), b"", {}
        self.errors: list[str] = []
        command = [BROWSER, *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"]
        words = [sys.executable, "-S", "-c", START, to_read, to_write, *command]
        self.process = subprocess.Popen(
            [*map(str, words)], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self.session = ""
        pages = self._call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in pages if one["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError):
            os.close(self.out)
            os.close(self.into)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait(60)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while number not in self.answers:
            self._read()
        answer = self.answers.pop(number)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def _read(self) -> None:
        data = os.read(self.into, 1 << 20)
        assert data, "the browser has ended"
        *whole, self.rest = (self.rest + data).split(b"\0")
        for text in whole:
            message = json.loads(text)
            if "id" in message:
                self.answers[message["id"]] = message
            elif message["method"] == "Log.entryAdded":
                self.errors.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))

    def open(self, url: str, width: int = 1280, is_dark: bool = False) -> None:
        """Load a page in a window of this width and theme."""
        self.set_window(width, is_dark)
        self._call("Page.navigate", url=url)

    def set_window(self, width: int, is_dark: bool = False) -> None:
        """Give the window another width and theme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        theme = {
            "name": "prefers-color-scheme",
            "value": "dark" if is_dark else "light",
        }
        self._call("Emulation.setEmulatedMedia", features=[theme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression holds; its value."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError):
                value = self.run(script)
                if value or value == {}:  # an element comes as an empty object
                    return value
            time.sleep(0.05)
        raise AssertionError(f"{script}: {self.run('document.body.innerText')[:3000]}")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key."""
        for _ in range(times):
            own = {"key": key, "code": "Space" if key == " " else key,
                   "windowsVirtualKeyCode": KEYS[key]}  # fmt: skip
            text = {"Enter": "\r", " ": " "}.get(key)
            more = {"text": text} if text else {}
            self._call("Input.dispatchKeyEvent", type="keyDown", **own, **more)
            self._call("Input.dispatchKeyEvent", type="keyUp", **own)

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self._call("Input.insertText", text=text)

    def shoot(self, file: Path) -> None:
        """Save what the page looks like, as far as it goes down."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(b64decode(answer["data"]))
