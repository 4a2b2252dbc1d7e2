"""Which base model a stage started from: a digest that takes moments also for files of many gigabytes.

A folder's digest is over the names, sizes and contents of its files; of a large file only blocks at even distances are
read, which any training of a model changes. Times do not matter. A hub's model is known by the commit in the cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from utils.config import ROOT
from utils.files import is_temporary, sha256

HUB = "hub:"
"""In front of the id of a hub's model, where a manifest names its inputs."""
SAMPLED = "sampled:"
"""In front of a folder's digest."""
WHOLE_BYTES = 64 << 20
"""Files up to this size are read whole."""
BLOCKS, BLOCK_BYTES = 64, 64 << 10
"""Of larger files so many blocks of this size, the first and the last bytes among them."""


def find_folder(name: str) -> Path | None:
    """The folder of a local model, as given or seen from the repository's root; None for a hub's."""
    return next((folder for folder in (Path(name), ROOT / name) if folder.is_dir()), None)


def sampled(folder: Path) -> str:
    """The digest of a model's folder; hidden files and leftovers of writes are passed over."""
    digest = hashlib.sha256()
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(files):
        if not (is_temporary(name) or any(part.startswith(".") for part in name.parts)):
            digest.update(f"{name.as_posix()}\0{_file_digest(files[name])}\n".encode())
    return SAMPLED + digest.hexdigest()


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256(path)
    digest = hashlib.sha256(f"{size}\0".encode())
    with open(path, "rb") as stream:
        for block in range(BLOCKS):
            stream.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()


def hub_commit(name: str) -> str | None:
    """The commit of a hub's model that lies in the cache, which is the one that is loaded; None when none does."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def digest_of(name: str) -> str:
    """The digest of a base model by its name; of a hub's model that is not in the cache the name is all there is."""
    folder = find_folder(name)
    return sampled(folder) if folder else hub_commit(name) or name


def changed(name: str, digest: str) -> bool:
    """Whether a hub's model in the cache is another than noted; one that is not there any more has not changed."""
    return hub_commit(name) not in (None, digest)
