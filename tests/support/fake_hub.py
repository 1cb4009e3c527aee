"""A fake Hub: its API on a local port, and its cache as a download leaves it."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest


def commit_of(folder: Path) -> str:
    """The commit under which a folder's files are published."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


def put_in_cache(cache: Path, repository: str, folder: Path, *, weights: bool = True) -> None:
    """Put `folder` into the cache as the newest commit of a downloaded repository.

    With `weights=False` its weights are left out.
    """
    repository_folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = repository_folder / "snapshots" / commit_of(folder)
    for name, path in _files(folder).items():
        if weights or path.suffix != ".safetensors":
            blob, link = repository_folder / "blobs" / _blob_name(path), snapshot / name
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link.symlink_to(Path(*[".."] * (2 + name.count("/")), "blobs", blob.name))
    (repository_folder / "refs").mkdir(exist_ok=True)
    (repository_folder / "refs" / "main").write_text(commit_of(folder))


@contextmanager
def serve_hub(
    repositories: Mapping[str, Path | Sequence[Path]], trouble: Callable[[int], int] = lambda number: 0
) -> Iterator[tuple[str, list[str]]]:
    """Serve a Hub with these repositories; yield its address and the list of the requests that it answers.

    A repository, of models or data sets, is a folder, or a list with one for each commit, the last of which
    all branches name.
    `trouble` says with which status the request of a number, from 0 on, is refused instead; 0: it is not.
    """
    requests: list[str] = []
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status := trouble(next(numbers)):
                self.send_error(status)
                return
            requests.append(f"{self.command} {self.path}")
            path = urlsplit(self.path).path.strip("/").removeprefix("api/").removeprefix("models/")
            parts = [unquote(name) for name in path.removeprefix("datasets/").split("/")]
            repository, rest = repositories.get("/".join(parts[:2])), parts[2:]
            if repository is None:
                self.send_error(404)
                return
            commits = [repository] if isinstance(repository, Path) else repository
            revision = rest[1] if len(rest) > 1 else "main"
            folder = next((each for each in commits if commit_of(each) == revision), commits[-1])
            if len(revision) == 40 and revision != commit_of(folder):
                self._answer(b"", {"X-Error-Code": "RevisionNotFound"}, status=404)
            elif rest[:1] == ["resolve"]:
                path = folder / "/".join(rest[2:])
                if not path.is_file():
                    self._answer(b"", {"X-Error-Code": "EntryNotFound"}, status=404)
                    return
                headers = {"ETag": f'"{_blob_name(path)}"', "X-Repo-Commit": commit_of(folder)}
                self._answer_range(path.read_bytes(), headers)
            elif rest[:1] == ["tree"]:
                below = "".join(f"{name}/" for name in rest[2:])
                files = {name: path for name, path in _files(folder).items() if name.startswith(below)}
                if not files:
                    self._answer(b"", {"X-Error-Code": "EntryNotFound"}, status=404)
                    return
                entries = _folder_entries(files) + [_tree_entry(name, path) for name, path in files.items()]
                if "recursive=true" not in self.path.lower():
                    entries = [each for each in entries if "/" not in each["path"].removeprefix(below)]
                self._answer_json(entries)
            else:
                siblings = [_sibling(name, path) for name, path in _files(folder).items()]
                self._answer_json({"id": "/".join(parts[:2]), "sha": commit_of(folder), "siblings": siblings})

        do_HEAD = do_GET  # noqa: N815

        def _answer_json(self, answer: object) -> None:
            self._answer(json.dumps(answer).encode(), {})

        def _answer_range(self, content: bytes, headers: Mapping[str, str]) -> None:
            """Answer with the part of the content that the request asks for."""
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if last:
                self._answer(content[int(first) : int(last) + 1], headers, status=206)
            else:
                self._answer(content, headers)

        def _answer(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


def use_address(patch: pytest.MonkeyPatch, address: str) -> None:
    """Let this process use the Hub at an address; its session is to be closed afterwards."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", address)


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _blob_name(path: Path) -> str:
    """The name of a file's blob: SHA-256 for files in Git LFS, Git's own hash for all others."""
    content = path.read_bytes()
    if path.suffix in (".safetensors", ".bin"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _sibling(name: str, path: Path) -> dict[str, Any]:
    """A file's entry in the card of a repository."""
    size, digest = path.stat().st_size, _blob_name(path)
    lfs = {"lfs": {"sha256": digest, "size": size, "pointerSize": 130}} if len(digest) == 64 else {}
    return {"rfilename": name, "size": size, "blobId": digest[:40], **lfs}


def _folder_entries(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The entries of the folders in which these files are, in the tree of a repository."""
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}
    return [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]


def _tree_entry(name: str, path: Path) -> dict[str, Any]:
    """A file's entry in the tree of a repository."""
    size, digest = path.stat().st_size, _blob_name(path)
    lfs = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if len(digest) == 64 else {}
    return {"type": "file", "path": name, "size": size, "oid": digest[:40], **lfs}
