"""Several processes that train or score together, as torchrun starts them: each takes its share of every batch.

    torchrun --nproc-per-node 2 -m twostage train DATA

The first process leads: it alone writes and speaks. Words about the run travel by gloo, gradients by NCCL between GPUs.
A learner's gradients are averaged, and losses are normalised by numbers of all processes (`models.losses.Mean`), so
that the run is that of one process with the same batch (Goyal et al. 2017, section 3).
"""

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from twostage.device import choose_device
from twostage.errors import TwostageError, UsageError

log = logging.getLogger("twostage.training")

T = TypeVar("T")

_BACKENDS = "cpu:gloo,cuda:nccl"
_TORCHRUNS = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # what it says to each process
_LOST = ("connection", "broken pipe", "timed out", "timeout", "remote", "aborted")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; every method but `leads` must be called by all of them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def mean(self, number: Tensor) -> Tensor:
        """The mean over all processes; no gradient passes."""
        if self.world == 1:
            return number
        total = number.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def mean_of(self, number: float) -> float:
        """The mean of a plain number."""
        return number if self.world == 1 else float(self.mean(torch.tensor(number, dtype=torch.float64)))

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Each number's maximum over all processes."""
        if self.world == 1:
            return list(numbers)
        most = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true of one of them."""
        return self.largest([int(flag)]) == [1]

    def gather(self, value: T) -> list[T]:
        """The value of every process, to every process."""
        values: list[Any] = [value]
        if self.world > 1:
            values *= self.world
            dist.all_gather_object(values, value)
        return values

    def collect(self, value: T) -> list[T]:
        """The value of every process, to the leader; nothing to the others."""
        values: list[Any] = [value]
        if self.world > 1:
            values = values * self.world if self.leads else []
            dist.gather_object(value, values if self.leads else None)
        return values

    def share(self, value: T) -> T:
        """The leader's value, to all."""
        holder = [value]
        if self.world > 1:
            dist.broadcast_object_list(holder)
        return holder[0]

    def led(self, work: Callable[[], T]) -> T:
        """What the leader alone does, and its result to all; what goes wrong there ends all."""
        value: T | None = None
        with self.one_voice():
            if self.leads:
                value = work()
        return cast(T, self.share(value))

    def copy_buffers(self, model: nn.Module) -> None:
        """Give all the leader's buffers: statistics of batches are each process's own while it learns."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def learner(self, model: nn.Module) -> nn.Module:
        """The model, or around it what averages gradients as they come."""
        if self.world == 1:
            return model
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            log.warning(
                "Batch normalisation: each of %d processes normalises by its own images, so that the run is not that "
                "of one process. With --set model.norm=group it is.",
                self.world,
            )
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def device(self, name: str) -> torch.device:
        """What `choose_device` says, a GPU for each process. Raises UsageError where they are not enough."""
        device = choose_device(name)
        if self.world == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise UsageError(f"The device {name!r} cannot be shared by {self.world} processes. Say 'cuda', or 'cpu'.")
        if torch.cuda.device_count() < self.local_world:
            raise UsageError(
                f"{self.local_world} processes have {torch.cuda.device_count()} GPU between them, and each needs its "
                f"own: torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu."
            )
        torch.cuda.set_device(self.local_rank)  # where NCCL works without being told
        return torch.device("cuda", self.local_rank)

    def end(self, reason: BaseException | None) -> NoReturn:
        """End all processes; the first that has a reason raises it, the others end in silence."""
        if self.world == 1:
            assert reason is not None
            raise reason
        has = [one for one, there in enumerate(self.gather(reason is not None)) if there]
        if reason is not None and self.rank == has[0]:
            raise reason
        # torchrun ends all as soon as one has ended: not before the reason is told.
        with suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # no barrier, which between GPUs would wait for the dead
        raise SystemExit(getattr(reason, "exit_code", 1))

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """What goes wrong here ends all processes, and is told by the first that it befell.

        Within it no other method may be called: the processes wait for each other at its end.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.world == 1:
                raise
            failure = error
        if self.any(failure is not None):
            self.end(failure)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started, or this one alone; only the leader's messages are shown.

    Within it, a process that is lost ends the others with TwostageError. They meet once, for the life of the process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if os.environ.get("WORLD_SIZE", "1") == "1" or not all(name in os.environ for name in _TORCHRUNS):
            yield ALONE
            return
        _meet()
    elif "gloo" not in str(dist.get_backend_config()):  # of a script's own group
        raise UsageError(f"The process group has no gloo, by which words travel: init_process_group({_BACKENDS!r}).")
    rank, world = dist.get_rank(), dist.get_world_size()
    local_rank, local_world = (int(os.environ.get(name, n)) for name, n in zip(_TORCHRUNS, (rank, world), strict=False))
    messages = logging.getLogger("twostage")
    before = messages.level
    if rank:
        messages.setLevel(logging.ERROR)
    try:
        yield Processes(rank, world, local_rank, local_world)
    except RuntimeError as error:
        if not _of_a_lost_process(error):
            raise
        raise TwostageError(
            f"Process {rank} of {world} has lost another one ({str(error).splitlines()[0][:200]}). Why that one ended "
            "is told by itself or by torchrun. A training run goes on from what it saved last with --resume."
        ) from error
    finally:
        messages.setLevel(before)


def _meet() -> None:
    try:
        dist.init_process_group(_BACKENDS if torch.cuda.is_available() else "gloo")
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TwostageError(f"The processes do not meet at {place} ({str(error).splitlines()[0][:200]}).") from error
    atexit.register(dist.destroy_process_group)


def _of_a_lost_process(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(name in text for name in ("gloo", "nccl")) and any(word in text for word in _LOST)
