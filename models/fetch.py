"""Download one public model of models/manifest.json, e.g. `python models/fetch.py mobilenetv2-12`.

A file counts only when its size and sha256 are those of the manifest, and it appears under its name only then: the
download goes to a temporary file in the same folder that is renamed at the end. Every failure is one line on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

MANIFEST = Path(__file__).resolve().parent / "manifest.json"
CHUNK = 1 << 20
TIMEOUT_S = 30
POINTER = b"version https://git-lfs.github.com/"


class FetchError(Exception):
    """Why a model could not be had; the message is one line for the user."""


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def download(url: str, entry: dict[str, object], target: Path) -> None:
    """Stream `url` into `target`; nothing is left there unless size and sha256 are the manifest's."""
    size, sha256, found, first = int(str(entry["bytes"])), hashlib.sha256(), 0, b""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out, urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            while found <= size and (chunk := response.read(CHUNK)):
                first = first or chunk[: len(POINTER)]
                found += len(chunk)
                sha256.update(chunk)
                out.write(chunk)
        if first == POINTER:
            raise FetchError(f"{url} gives a Git-LFS pointer instead of the model; try another --url")
        if found != size:
            raise FetchError(f"{url} gives {'more than ' if found > size else ''}{min(found, size)} bytes, not {size}")
        if sha256.hexdigest() != entry["sha256"]:
            raise FetchError(f"{url} has sha256 {sha256.hexdigest()}, not {entry['sha256']}")
        os.chmod(name, 0o644)
        os.replace(name, target)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchError(f"cannot download {url}: {getattr(error, 'reason', error)}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def fetch(name: str, folder: Path, url: str | None = None) -> Path:
    """The verified file of a manifest entry in `folder`, downloaded unless it is there already."""
    models = {entry["name"]: entry for entry in json.loads(MANIFEST.read_text())["models"]}
    if name not in models:
        raise FetchError(f"no model {name!r} in {MANIFEST.name}; it has: {', '.join(models)}")
    entry, target = models[name], folder / f"{name}.onnx"
    if not (target.is_file() and target.stat().st_size == entry["bytes"] and digest(target) == entry["sha256"]):
        folder.mkdir(parents=True, exist_ok=True)
        download(url or entry["url"], entry, target)
    return target


def main() -> int:
    """Command line: print the path of the file, or one line saying why there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of an entry of manifest.json")
    parser.add_argument("--folder", type=Path, default=MANIFEST.parent / "public", help="where the file goes")
    parser.add_argument("--url", help="another place of the same file; size and sha256 must still match")
    args = parser.parse_args()
    try:
        print(fetch(args.name, args.folder, args.url))
    except (FetchError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
