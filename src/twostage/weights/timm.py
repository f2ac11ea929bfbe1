"""Weights of timm's networks: from its hub, kept in the cache, or from a file of timm's own tensors."""

import logging
import urllib.error
import urllib.request
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from twostage.errors import DataError, MissingError
from twostage.folders import cache_folder, made_in_cache
from twostage.models.backbones.timm import PREFIX, TimmNetwork, pretrained_cfg
from twostage.weights.file import save_tensors

log = logging.getLogger("twostage.weights")
_WAITED = 10.0  # seconds for an answer of the hub, which its own client asks for a minute


def bring_timm(given: str, *, offline: bool = False) -> Path:
    """The file of the weights `timm:NAME`, under the names of `TimmNetwork`: from the cache, or else from timm's hub.

    Raises MissingError where timm is not installed, has no weights of that name, or its hub is not reached.
    """
    published = pretrained_cfg(given.removeprefix(PREFIX))
    name = f"{published.architecture}.{published.tag}" if published.tag else published.architecture
    other = "Give a file of timm's tensors by --weights FILE, or begin from random weights: --weights none."
    if not published.hf_hub_id:
        raise MissingError(f"{given}: timm's hub has no weights of this network. {other}")
    folder = cache_folder("weights")
    target = folder / f"timm-{name}.safetensors"
    made_in_cache(folder)
    with FileLock(folder / f".timm-{name}.lock"):
        if not target.exists():
            cached = _in_the_hubs_cache(published.hf_hub_id)
            if cached is None:
                _require_reachable(given, other, offline=offline)
            log.info("%s: weights of timm, licence %s", name, published.license or "not stated")
            try:
                network = TimmNetwork(name, pretrained=cached is None, file=cached)
            except OSError as error:
                raise MissingError(f"{given}: cannot be fetched ({error}). {other}") from None
            save_tensors(target, _loaded(network))
            log.info("Kept as %s", target)
    return target


def timm_tensors(name: str, file: Path) -> dict[str, Tensor]:
    """A safetensors file of timm's own tensors of a network, under the names of `TimmNetwork`.

    Raises DataError where it is of another network.
    """
    # timm leaves what a file lacks as it is: random, and so not the same twice.
    with torch.random.fork_rng(devices=[]):
        try:
            first, second = (_loaded(TimmNetwork(name, file=file)) for _ in range(2))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{file}: these are not the tensors of timm's {name} ({reason}).") from None
    lacking = [each for each, tensor in first.items() if not torch.equal(tensor, second[each])]
    if lacking:
        raise DataError(f"{file}: these are not the tensors of timm's {name}: it lacks {', '.join(lacking[:3])}.")
    return first


def _loaded(network: TimmNetwork) -> dict[str, Tensor]:
    """What timm has filled: all but the pyramid that is ours."""
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith("net.")}


def _in_the_hubs_cache(repository: str) -> Path | None:
    """The file that another program has fetched; the hub's own client would ask the network for a newer one."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _require_reachable(given: str, other: str, *, offline: bool) -> None:
    """Raises MissingError where the hub does not answer soon."""
    from huggingface_hub import constants

    if offline:
        raise MissingError(f"{given}: not in the cache, and nothing is fetched offline. {other}")
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_WAITED).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise MissingError(f"{given}: {constants.ENDPOINT} is not reached ({reason}). {other}") from None
