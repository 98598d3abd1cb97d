"""Locations: a path, or a URI such as `s3://bucket/folder`, checked and taken apart.

In: text. Out: a `Place`, or why it names none. Credentials and endpoints come from the environment alone; a location
that holds them is refused.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from ichsearch.errors import ConfigError

SCHEMES: Final[dict[str, set[str]]] = {"s3": {"region"}, "gs": set(), "abfs": set(), "abfss": set(), "file": set()}
"""What a location may begin with, and the query keys it may hold: none that leads credentials elsewhere."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,221}")  # legacy S3 names and dotted GCS names included
_AZURE: Final = re.compile(r"[a-z0-9$-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net")
_REGION: Final = re.compile(r"[a-z0-9-]{2,32}")  # it becomes a part of the host's name
_ONE_SLASH: Final = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


def is_uri(location: str | Path) -> bool:
    """Whether a location begins with `scheme://`; a `Path` never does, for it folds slashes."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(location)) is not None


def check_location(location: str) -> None:
    """Refuse a location that names no place, or that holds what belongs into the environment; it is not echoed.

    Raises:
        ConfigError: the scheme, the bucket, the path or the query is none that ichsearch takes.
    """
    if not location:  # as a path it would be the working folder
        raise ConfigError("a folder must have a name, but got an empty one; is a variable of the shell unset?")
    if wrong := _ONE_SLASH.match(location):
        raise ConfigError(f"a scheme must be followed by ://, but got {wrong.group()}; double the slash")
    if is_uri(location):
        place = parse_location(location)
        check_host(place)
        _check_path(place)


def check_host(place: "Place") -> None:
    """Refuse a place by its scheme, authority and query: they say who gets to see the credentials."""
    _check_authority(place)
    _check_query(place)


class Place(NamedTuple):
    """A URI in parts. The path is decoded, has no leading slash and may hold any character."""

    scheme: str
    authority: str
    path: str
    query: str

    @property
    def shown(self) -> str:
        """What a message may say of it."""
        return f"{self.scheme}://{self.authority}/{self.path}"

    @property
    def location(self) -> str:
        """The URI again."""
        path = self.path.replace("%", "%25").replace("?", "%3F")
        return f"{self.scheme}://{self.authority}/{path}" + (f"?{self.query}" if self.query else "")

    @property
    def key(self) -> str:
        """Arrow's name for it: container, slash, path."""
        return f"{self.authority.partition('@')[0]}/{self.path}".rstrip("/")

    def without_slash(self) -> "Place":
        """The place without a slash at its end."""
        return self._replace(path=self.path.rstrip("/"))

    def below(self, name: str) -> "Place":
        """The place of a name below this one."""
        return self._replace(path=f"{self.path}/{name}" if self.path else name)


def parse_location(location: str) -> Place:
    """Split a URI. `urlsplit` would drop tabs and what follows a `#`, both of which a key may hold."""
    scheme, _, rest = location.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    return Place(scheme.lower(), authority, unquote(path, errors="surrogateescape"), query)


def below(location: str, name: str) -> str:
    """The location of a name below a folder's."""
    if is_uri(location):
        return parse_location(location).without_slash().below(name).location
    return str(Path(location, name))


def local_path(location: str) -> Path | None:
    """The path of a location on a disk, None for one in a store."""
    if not is_uri(location):
        return Path(location)
    place = parse_location(location)
    return Path("/", place.path) if place.scheme == "file" else None


def disk_path(location: str) -> Path:
    """The path of a folder that can only be on a disk.

    Raises:
        ConfigError: the location names no place, or one in a store.
    """
    check_location(location)
    path = local_path(location)
    if path is None:
        raise ConfigError(
            "the folder must be on a disk, but got the URI of a store; give a path, and copy from or to the store"
        )
    return path


def _check_authority(place: Place) -> None:
    scheme, authority = place.scheme, place.authority
    if scheme not in SCHEMES:
        raise ConfigError(
            f"a location must be a path or begin with one of {scheme_names()}, but got {scheme}://; change it"
        )
    if ":" in authority or ("@" in authority and not scheme.startswith("abfs")):
        raise ConfigError(
            f"a location must hold neither credentials nor a port, but this {scheme}:// one does; "
            "give them in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) or a profile"
        )
    if scheme == "file" and authority not in ("", "localhost"):
        raise ConfigError(f"a file:// location must have three slashes, but got file://{authority}; write file:///path")
    if scheme.startswith("abfs") and not _AZURE.fullmatch(authority):
        raise ConfigError(
            f"an Azure location must be {scheme}://container@account.dfs.core.windows.net/path, but this one is not; "
            "write it so"
        )
    if scheme in ("s3", "gs") and not _BUCKET.fullmatch(authority):
        raise ConfigError(
            f"a {scheme}:// location must name a bucket of at least 3 letters, digits, dots or hyphens, "
            f"but got {authority!r}; write {scheme}://bucket/path"
        )


def _check_query(place: Place) -> None:
    allowed = SCHEMES[place.scheme]
    query = dict(parse_qsl(place.query, keep_blank_values=True))
    if unknown := sorted(query.keys() - allowed):
        names = ", ".join(name if re.fullmatch(r"[a-z_]{1,32}", name) else "another" for name in unknown)
        raise ConfigError(
            f"the query of a {place.scheme}:// location may hold {', '.join(sorted(allowed)) or 'nothing'}, "
            f"but got {names}; give it in the environment (an S3 endpoint as AWS_ENDPOINT_URL)"
        )
    if not _REGION.fullmatch(query.get("region", "any")):
        raise ConfigError("a region must be a name such as eu-central-1, but this one is not; correct it")


def _check_path(place: Place) -> None:
    path = place.path.rstrip("/")
    if path and place.scheme != "file" and not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ConfigError(
            f"a {place.scheme}:// path must have no empty part, . or .., but this one has; write it plainly"
        )


def scheme_names() -> str:
    """The schemes as a message lists them."""
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)
