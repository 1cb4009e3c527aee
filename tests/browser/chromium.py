"""A headless Chromium, told what to do through its DevTools protocol."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
MAX_MESSAGE_BYTES = 64 << 20


def installed() -> str | None:
    """The path of a Chromium on this machine; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page, in a `with` block. Events are collected as they come."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._loop = asyncio.new_event_loop()
        self._ids = itertools.count(1)
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        self._folder = tempfile.TemporaryDirectory(prefix="darkroom-browser-", ignore_cleanup_errors=True)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        self._process = subprocess.Popen(
            [self._program, *options, *quiet, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._loop.run_until_complete(self._connect(self._address()))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_client"):
            self._loop.run_until_complete(self._client.close())
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._loop.close()
        self._folder.cleanup()

    def _address(self) -> str:
        """Where the browser takes commands. It writes this into its folder once it is ready."""
        file, deadline = Path(self._folder.name, "DevToolsActivePort"), time.monotonic() + PATIENCE_S
        while not file.exists() or len(file.read_text().splitlines()) < 2:
            assert self._process.poll() is None, "the browser has ended"
            assert time.monotonic() < deadline, "the browser does not come up"
            time.sleep(0.05)
        port, path = file.read_text().splitlines()
        return f"ws://127.0.0.1:{port}{path}"

    async def _connect(self, address: str) -> None:
        self._client = aiohttp.ClientSession()
        self._socket = await self._client.ws_connect(address, max_msg_size=MAX_MESSAGE_BYTES)
        target = await self._send("Target.createTarget", {"url": "about:blank"})
        attached = await self._send(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._send(f"{domain}.enable", {})

    async def _send(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        while True:
            message = json.loads((await self._socket.receive(PATIENCE_S)).data)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply to a command of the protocol."""
        return self._loop.run_until_complete(self._send(method, parameters))

    def open(self, uri: str, *, width: int = 1400, height: int = 900) -> None:
        """Open a page, and wait until it is loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url="about:blank")
        self.events.clear()
        self.send("Page.navigate", url=uri)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression on the page, which may be a promise."""
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.ask(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def press(self, key: str, *, text: str = "") -> None:
        """Press a key of the keyboard, by its name in JavaScript; `text` is what it types."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, **_code(key))
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **_code(key))

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds."""
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    def problems(self) -> list[str]:
        """What the page has written to the console as a warning or an error, and exceptions."""
        return [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method")
            in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ]

    def requests(self) -> list[str]:
        """The addresses that the page has asked for, without its own and without data: URIs."""
        sent = (
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        )
        return [url for url in sent if not url.startswith(("data:", "file:"))]


def _code(key: str) -> dict[str, int]:
    codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
    return {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
