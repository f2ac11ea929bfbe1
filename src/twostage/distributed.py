"""Several processes that train or score together, as torchrun starts them: each takes its share of every batch.

    torchrun --nproc-per-node 2 -m twostage train DATA

Only the main process, rank 0, writes files and prints. Objects are exchanged by gloo, gradients between GPUs by NCCL.
Gradients are averaged, and losses are normalised by the numbers of all processes, so that the run equals that of one
process with the same batch (Goyal et al. 2017, section 3).
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
_TORCHRUN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # the variables that it sets
_LOST = ("connection", "broken pipe", "timed out", "timeout", "remote", "aborted")


@dataclass(frozen=True)
class Processes:
    """This process in its group. All processes of the group must call a method together, except `is_main`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those on this machine
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def mean(self, number: Tensor) -> Tensor:
        """The mean over all processes, without a gradient."""
        if self.world == 1:
            return number
        total = number.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def mean_of(self, number: float) -> float:
        """The mean of a Python number over all processes."""
        return number if self.world == 1 else float(self.mean(torch.tensor(number, dtype=torch.float64)))

    def max(self, numbers: Sequence[int]) -> list[int]:
        """Each number's maximum over all processes."""
        if self.world == 1:
            return list(numbers)
        largest = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one or more processes."""
        return self.max([int(flag)]) == [1]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in all processes, by rank."""
        values: list[Any] = [value]
        if self.world > 1:
            values *= self.world
            dist.all_gather_object(values, value)
        return values

    def gather_to_main(self, value: T) -> list[T]:
        """The values of all processes by rank, in the main process; an empty list in the others."""
        values: list[Any] = [value]
        if self.world > 1:
            values = values * self.world if self.is_main else []
            dist.gather_object(value, values if self.is_main else None)
        return values

    def broadcast(self, value: T) -> T:
        """The value of the main process, in all processes."""
        holder = [value]
        if self.world > 1:
            dist.broadcast_object_list(holder)
        return holder[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` in the main process and return its result in all. An exception there ends all processes."""
        value: T | None = None
        with self.sync_errors():
            if self.is_main:
                value = work()
        return cast(T, self.broadcast(value))

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's buffers to all: after a step each process has the statistics of its own images."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """The model itself for one process, else the model in DistributedDataParallel, which averages gradients."""
        if self.world == 1:
            return model
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            log.warning(
                "Batch normalisation: each of %d processes normalises by its own images only, so that the run differs "
                "from that of one process. Use --set model.norm=group to avoid this.",
                self.world,
            )
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def device(self, name: str) -> torch.device:
        """`choose_device`, with one GPU per process. Raises UsageError if there are too few GPUs."""
        device = choose_device(name)
        if self.world == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise UsageError(f"The device {name!r} cannot be shared by {self.world} processes. Use 'cuda' or 'cpu'.")
        if torch.cuda.device_count() < self.local_world:
            raise UsageError(
                f"{self.local_world} processes need one GPU each, and this machine has {torch.cuda.device_count()}. "
                f"Use torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu."
            )
        torch.cuda.set_device(self.local_rank)  # NCCL works on the current device
        return torch.device("cuda", self.local_rank)

    def end_all(self, reason: BaseException | None) -> NoReturn:
        """End all processes: the lowest rank with a reason raises it, the others exit without a message."""
        if self.world == 1:
            assert reason is not None
            raise reason
        first = self.gather(reason is not None).index(True)
        if reason is not None and self.rank == first:
            raise reason
        # torchrun kills all processes when one exits: wait until the reason is printed and that process is gone.
        with suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # not a barrier, which between GPUs would wait for ever
        raise SystemExit(getattr(reason, "exit_code", 1))

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """An exception inside ends all processes; only the lowest rank that failed reports it.

        No other method may be called inside: the processes wait for each other at the end.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.world == 1:
                raise
            failure = error
        if self.any(failure is not None):
            self.end_all(failure)


SINGLE_PROCESS = Processes()


@contextmanager
def process_group() -> Iterator[Processes]:
    """The processes that torchrun has started, or `SINGLE_PROCESS`; the others than the main process log errors only.

    If one process dies, the others raise TwostageError. The group is made once and stays until the process exits.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if os.environ.get("WORLD_SIZE", "1") == "1" or not all(name in os.environ for name in _TORCHRUN):
            yield SINGLE_PROCESS
            return
        _init_process_group()
    elif "gloo" not in str(dist.get_backend_config()):  # a group that the calling script made
        raise UsageError(f"The process group has no gloo backend: call init_process_group({_BACKENDS!r}).")
    rank, world = dist.get_rank(), dist.get_world_size()
    local_rank, local_world = (int(os.environ.get(name, n)) for name, n in zip(_TORCHRUN, (rank, world), strict=False))
    logger = logging.getLogger("twostage")
    before = logger.level
    if rank:
        logger.setLevel(logging.ERROR)
    try:
        yield Processes(rank, world, local_rank, local_world)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise TwostageError(
            f"Process {rank} of {world} lost the connection to another process ({str(error).splitlines()[0][:200]}). "
            "The output of that process or of torchrun has the reason. Continue a training run with --resume."
        ) from error
    finally:
        logger.setLevel(before)


def _init_process_group() -> None:
    try:
        dist.init_process_group(_BACKENDS if torch.cuda.is_available() else "gloo")
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TwostageError(f"No process group at {address} ({str(error).splitlines()[0][:200]}).") from error
    atexit.register(dist.destroy_process_group)


def _is_lost_peer(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(name in text for name in ("gloo", "nccl")) and any(word in text for word in _LOST)
