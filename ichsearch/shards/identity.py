"""Identifiers without identities: patients, studies and files appear only as keyed hashes.

In: the key of this user, in a file of mode 0600 below `ICHSEARCH_HOME` (default `~/.ichsearch`). Out: hashes.
"""

import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from ichsearch.errors import ConfigError

KEY_BYTES: Final = 32


def home_folder() -> Path:
    """Where ichsearch keeps what is private to a user and a machine: the key, and by default the node cache."""
    return Path(os.environ.get("ICHSEARCH_HOME") or Path.home() / ".ichsearch")


def cache_folder() -> Path:
    """This node's cache: `ICHSEARCH_CACHE`, or a folder of the home."""
    return Path(os.environ.get("ICHSEARCH_CACHE") or home_folder() / "cache")


class Key:
    """A secret under which text is hashed; equal text gives equal hashes, and nobody without the key can try names."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def hash(self, kind: str, identifier: str) -> str:
        """32 hexadecimal digits for an identifier; the same text of another `kind` gives others."""
        text = f"{kind}\0{identifier}".encode(errors="surrogateescape")  # a file's name need not be UTF-8
        return hmac.digest(self._secret, text, "sha256").hex()[:32]

    @property
    def id(self) -> str:
        """Tells whether two files were made under the same key, without telling the key."""
        return self.hash("key", "ichsearch")[:16]


def load_key(home: Path) -> Key:
    """The user's key, made on first use; it and `home` are closed to others where they are the user's own.

    Raises:
        ConfigError: the key file does not hold a key.
    """
    path = home / "patient.key"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with NamedTemporaryFile(dir=home, prefix=".patient.key.") as file:  # of mode 0600
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            with suppress(FileExistsError):  # another process was first
                os.link(file.name, path)
    _close_to_others(home, 0o700)
    _close_to_others(path, 0o600)
    secret = path.read_bytes()
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"a key has {KEY_BYTES} bytes, but {path} has {len(secret)}; restore it, or remove it")
    return Key(secret)


def _close_to_others(path: Path, mode: int) -> None:
    """Give a path of the user's that others may enter or read `mode`; not a shared place such as `/tmp`."""
    info = path.stat()
    if info.st_uid == os.getuid() and info.st_mode & 0o077 and not info.st_mode & stat.S_ISVTX:
        with suppress(OSError):  # some file systems know no permissions
            path.chmod(mode)
