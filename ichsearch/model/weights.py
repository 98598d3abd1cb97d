"""The weights that a run's backbones start from, fetched once and kept in the run folder.

In: a backbone, a policy and a folder of weights files. Out: a safetensors file in the run folder, or none and why.
"""

import re
import urllib.error
import urllib.request
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from ichsearch.errors import ConfigError
from ichsearch.files import write_text, written_aside
from ichsearch.model.blueprint import is_made_for_a_size, is_of_timm
from ichsearch.model.loading import load_state
from ichsearch.model.states import UNREADABLE, fitting_state, read_state

Policy = Literal["require", "auto", "no"]
PRETRAINED: Final = "pretrained"
PROBE_TIMEOUT_S: Final = 5.0


class UnavailableError(OSError):
    """Weights that neither the hub nor a folder has."""


class StartWeights(NamedTuple):
    """Where a backbone starts: a file of the run folder (None: random weights), and how that came about."""

    path: Path | None
    origin: str


def obtain_weights(
    backbone: str, policy: Policy, folder: Path, source: Path | None = None, sizes: Collection[int] = ()
) -> StartWeights:
    """The start weights of `backbone`, copied to `folder/<backbone>.safetensors` unless they are there.

    They come from `source` when it is given, a file or a folder with `<backbone>.safetensors` (or .pth); else from the
    hub or its local cache. With `auto` what cannot be had is replaced by random weights, and `origin` says so. Weights
    that are there but belong to another backbone, or not to the image `sizes`, are refused under each policy but `no`.
    What `auto` has found, an absence too, is kept in `folder/<backbone>.origin` and holds for the whole life of a run.

    Raises:
        ConfigError: they cannot be had, but are required or were there when the run began; or they do not fit.
    """
    target, kept = folder / f"{backbone}.safetensors", folder / f"{backbone}.origin"
    if policy == "no":
        return StartWeights(None, "scratch")
    known = kept.read_text(encoding="utf-8") if policy == "auto" and kept.is_file() else ""
    if known not in ("", PRETRAINED):
        return StartWeights(None, known)
    try:
        path = target if target.is_file() else _from_source(backbone, source) if source else _from_hub(backbone)
        state = read_state(path)
    except (*UNREADABLE, HfHubHTTPError) as error:
        # Only messages of our own are sure to hold no path of the machine.
        reason = str(error) if isinstance(error, UnavailableError) else f"unreadable: {type(error).__name__}"
        if policy == "require":
            raise ConfigError(
                f"pretrained: require needs weights of {backbone}, but they cannot be had ({reason}); "
                "give weights_folder, or pretrained: auto"
            ) from error
        if known:
            raise ConfigError(
                f"a run must keep its weights, and this one began with those of {backbone}, but they cannot be had "
                f"({reason}); bring weights/{target.name} back, or give another --out"
            ) from error
        origin = f"scratch ({reason})"
        write_text(kept, origin)
        return StartWeights(None, origin)
    state = fitting_state(backbone, state, path.name)
    for size in sizes if is_made_for_a_size(backbone) else ():
        load_state(backbone, 3, 1, size, state)
    if path != target:
        with written_aside(target) as aside:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, aside)
    if not known:
        write_text(kept, PRETRAINED)
    return StartWeights(target, PRETRAINED)


def _from_source(backbone: str, source: Path) -> Path:
    if source.is_file():
        return source
    for suffix in (".safetensors", ".pth"):
        if (path := source / f"{backbone}{suffix}").is_file():
            return path
    raise UnavailableError(f"no {backbone}.safetensors in the weights folder")


def _from_hub(backbone: str) -> Path:
    if not is_of_timm(backbone):
        return _from_torchvision(get_model_weights(backbone).DEFAULT.url)
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.hf_hub_id:
        raise UnavailableError("timm has no pretrained weights for it")
    offline = not _reachable(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors", local_files_only=offline))
    except LocalEntryNotFoundError:
        raise UnavailableError("the weights hub does not answer, and its local cache has none") from None


def whereabouts(backbone: str) -> Literal["cached", "hub", "nowhere"]:
    """Where a run on this machine would find the start weights of `backbone`; nothing is fetched."""
    if not is_of_timm(backbone):
        url = get_model_weights(backbone).DEFAULT.url
        cached, asked = _torchvision_path(url).is_file(), url
    else:
        config = timm.get_pretrained_cfg(backbone)
        if config is None or not config.hf_hub_id:
            return "nowhere"
        cached = isinstance(try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str)
        asked = constants.ENDPOINT
    if cached:
        return "cached"
    return "hub" if _reachable(asked) else "nowhere"


def _torchvision_path(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _from_torchvision(url: str) -> Path:
    path = _torchvision_path(url)
    if not path.is_file():
        if not _reachable(url):
            raise UnavailableError("the weights hub does not answer, and its local cache has none")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8})\.", url)
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    return path


@cache
def _reachable(url: str) -> bool:
    """Whether a server answers: asked once, because the hub's own retries take a minute for every backbone."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the hub's own address, not a user's
    try:
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
