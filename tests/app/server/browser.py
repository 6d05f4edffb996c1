"""A minimal client of the DevTools protocol of headless Chromium, for the tests of the page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """Return the path of the browser, or None if it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Page]:
    """Start a browser with a new profile, and yield its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--hide-scrollbars"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([find_chromium(), *flags, "about:blank"], **silent) as process:
            try:
                browser = _address(Path(profile) / "DevToolsActivePort")
                with connect(browser, max_size=None) as socket:
                    yield Page(socket)
            finally:
                process.kill()


def _address(file: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.is_file() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start within 60 seconds.")


class Page:
    """One page: protocol commands, scripts, keys, files and screenshots.

    Attributes:
        requests: Every URL that the page has requested.
        complaints: Errors of scripts, and violations of the content security policy.
    """

    def __init__(self, socket):
        self._socket, self._count, self._session = socket, 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded: list[str] = []  # the identifiers of the documents that have loaded, the newest last
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a protocol command and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._record(answer)

    def _record(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event["method"] == "Page.lifecycleEvent" and parameters["name"] == "load":
            self._loaded.append(parameters["loaderId"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"])[:500])
        elif event["method"] == "Log.entryAdded" and parameters["entry"]["source"] != "network":
            self.complaints.append(parameters["entry"]["text"])

    def run(self, script: str) -> Any:
        """Run a script and return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 30) -> Any:
        """Run a script until its value is true, and return the value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"not true within {seconds} seconds: {script}")

    def go(
        self, address: str, *, width: int = 1200, height: int = 900, dark: bool = False, phone: bool = False
    ) -> None:
        """Open an address in a window of the given size and colour scheme."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        answer = self.call("Page.navigate", url=address)
        assert "errorText" not in answer, f"{address}: {answer['errorText']}"
        # the address and the state of the document could be those of the previous one, if that had the same address
        self._wait_until(lambda: answer["loaderId"] in self._loaded)

    def follow(self, script: str) -> None:
        """Run a script that opens another document, and wait until that has loaded."""
        before = len(self._loaded)
        self.run(script)
        self._wait_until(lambda: len(self._loaded) > before)

    def _wait_until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self._record(json.loads(self._socket.recv(timeout=60)))

    def choose(self, selector: str, files: list[Path]) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        key_facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **key_facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key_facts)

    def screenshot(self, file: Path, *, whole: bool = True) -> Path:
        """Write a screenshot as PNG, of the whole page or only its visible part."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(result["data"]))
        return file
