"""From a trained model to a fast one that gives the same detections.

1. Fold normalisations with fixed statistics into the convolutions before them.
2. Let convolutions add and activate in the same pass, from weights packed for the CPU.
3. Compute in the precision asked for from the first convolution on: every map is written in it once.
4. On a GPU, record the forward pass for shapes that recur, and replay it (`inference.graphs`).

The trained model stays as it is. The prepared one holds the same composition with other layers in its places and shares
what needs no change.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twostage.data.batch import Batch, Targets
from twostage.inference.graphs import AnyStages, Recordings, cuda_graphs
from twostage.models.backbones.fpn import Nearest
from twostage.models.backbones.norm import FrozenBatchNorm, window_of
from twostage.models.backbones.provided import ProvidedBackbone
from twostage.models.build import Model
from twostage.models.config import DetectorConfig
from twostage.models.fused import FormChoice, FusedConv, FusedLinear, KeptNearest
from twostage.models.heads.bodies import TwoMLPHead
from twostage.models.heads.mask import ClassSpecificLinear, ConvTranspose2x2
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.losses import Losses
from twostage.models.proposals.rpn import RPN
from twostage.models.regions.pooling import Maps
from twostage.ops.cpu.choice import choices
from twostage.ops.cpu.memory import release_freed_memory
from twostage.ops.plain import Activation

M = TypeVar("M", bound=nn.Module)


class LayerOptions(NamedTuple):
    """The dtype of prepared layers, and their forms on a CPU."""

    dtype: torch.dtype
    forms: FormChoice = "fastest"


_PIXELS = 1_500_000  # together in one pass on a CPU


class PreparedModel:
    """A model for inference: its layers folded and packed, the dtype of its maps, and its CUDA graphs.

    Boxes are decoded and suppressed in float32 in every case. It cannot be trained.
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.model = model.eval()
        self.dtype = dtype
        self.config: DetectorConfig = model.config
        self.device = model.normalize.pixel_mean.device
        self._recordings = Recordings(cuda_graphs(self.device)) if self.device.type == "cuda" else None

    @torch.inference_mode()
    def detect(self, batch: Batch, config: PostprocessConfig) -> BatchDetections:
        """Detections of a batch, on the CPU."""
        parts = [self._detect(part, config) for part in self.split(batch)]
        return parts[0] if len(parts) == 1 else BatchDetections.concatenate(parts)

    @torch.inference_mode()
    def stages(self, batch: Batch, config: PostprocessConfig | None = None) -> AnyStages:
        """Every stage of the forward pass, on the model's device."""
        return self._stages(batch.to(self.device), config or self.config.postprocess)

    @torch.inference_mode()
    def finish(self, stages: AnyStages, sizes: Int[Tensor, "n 2"], config: PostprocessConfig) -> BatchDetections:
        """The detections of a forward pass, on the CPU.

        A device suppresses in a constant number of sweeps; the rare batch that needs more (`BatchDetections.overflow`)
        is suppressed again on the CPU, which has no such limit.
        """
        detections = stages.detections.each(Tensor.cpu)
        if self.device.type == "cpu" or not detections.overflow.any():
            return detections
        again = self.model.suppress_again(stages, sizes.to(self.device), config)  # type: ignore[arg-type]
        return again.detections.each(Tensor.cpu)

    @torch.inference_mode()
    def losses(self, stages: AnyStages, sizes: Int[Tensor, "n 2"], targets: Targets, **options: Any) -> Losses:
        """The losses of a forward pass (`TwoStage.losses`)."""
        return self.model.losses(stages, sizes, targets, **options)  # type: ignore[arg-type]

    def split(self, batch: Batch) -> list[Batch]:
        """The images that go through the model together: on a CPU no more than keep it busy.

        There a larger batch gains nothing: its maps leave the cache and take more memory.
        """
        if self.device.type != "cpu":
            return [batch]
        height, width = batch.images.shape[2:]
        return batch.split(max(1, _PIXELS // (height * width)))

    def _detect(self, batch: Batch, config: PostprocessConfig) -> BatchDetections:
        there = batch.to(self.device)
        if self._recordings is None:
            return self.finish(self._stages(there, config), batch.sizes, config)
        return self._recordings(self._stages, there, config, lambda stages: self.finish(stages, batch.sizes, config))

    def features(self, batch: Batch) -> Maps:
        """Feature maps of the normalised images, in the model's dtype."""
        return self.model.backbone(self.model.normalize(batch).to(self.dtype))

    def _stages(self, batch: Batch, config: PostprocessConfig) -> AnyStages:
        with self.computing():
            return self.model.stages_from(self.features(batch), batch, config)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The layers compute in their own dtype, and decisions on their forms are kept."""
        with torch.autocast(self.device.type, enabled=False):
            yield
        if self.device.type == "cpu":
            choices().save()


@torch.no_grad()
def prepare(model: Model, dtype: torch.dtype = torch.float32, *, forms: FormChoice = "fastest") -> PreparedModel:
    """The model for inference in a precision, on the device where it is: folded, fused, packed, channels-last.

    By default each layer is tried in several `forms` on a CPU, at the first input of its size (`ops.cpu.choice`);
    "plain" ones are torch's own operators, which can be exported. A model with forward hooks runs as it is: a hook sees
    what its own layer gives.
    """
    hooked = any(hooks for module in model.modules() for hooks in forward_hooks(module))
    fast = PreparedModel(_as_it_is(model, dtype) if hooked else prepared(model, LayerOptions(dtype, forms)), dtype)
    release_freed_memory()
    return fast


def forward_hooks(module: nn.Module) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """The forward hooks of a module, and those that run before it, by their ids."""
    return module._forward_hooks, module._forward_pre_hooks


def _as_it_is(model: Model, dtype: torch.dtype) -> Model:
    """The model itself, or a copy in the dtype with the same hooks: copied ones would fill copies of their lists."""
    if dtype == torch.float32:
        return model
    copied = copy.deepcopy(model).to(dtype)
    for mine, theirs in zip(copied.modules(), model.modules(), strict=True):
        mine._forward_hooks, mine._forward_pre_hooks = theirs._forward_hooks, theirs._forward_pre_hooks
    return copied


@singledispatch
def prepared(module: nn.Module, options: LayerOptions) -> Any:
    """The fast form of a module of a kind registered below; of any other a copy that shares parameters.

    Of that the children are in their fast forms: a convolution and its norm together. A module of a class from
    elsewhere runs as it is: the order of its children need not be that of its forward pass.
    """
    if not type(module).__module__.startswith(("twostage.", "torch.nn.")):
        return _cast(module, options)
    fast = _own(module)
    children = list(module.named_children())
    folded: nn.Module | None = None
    for (name, child), (_, after) in zip(children, [*children[1:], ("", None)], strict=False):
        if isinstance(child, nn.Conv2d):
            folded = after if _is_foldable(after) else None
            fast._modules[name] = _fused(child, folded, options)
        else:
            fast._modules[name] = None if child is folded else prepared(child, options)
    return fast


@prepared.register(nn.Sequential)
def _sequence(sequence: nn.Sequential, options: LayerOptions) -> nn.Module:
    """In a plain sequence an activation follows by itself: the convolution takes it too, and both places close up."""
    if type(sequence) is not nn.Sequential:
        fast = prepared.dispatch(nn.Module)(sequence, options)
        fast._modules = {name: child for name, child in fast._modules.items() if child is not None}
        return fast
    layers: list[nn.Module] = []
    rest = list(sequence)
    while rest:
        layer = rest.pop(0)
        if not isinstance(layer, nn.Conv2d):
            layers.append(prepared(layer, options))
            continue
        norm = rest.pop(0) if rest and _is_foldable(rest[0]) else None
        activated = bool(rest) and isinstance(rest[0], nn.ReLU)
        if activated:
            rest.pop(0)
        layers.append(_fused(layer, norm, options, "relu" if activated else "none"))
    return nn.Sequential(*layers)


@prepared.register(nn.Linear)
def _linear(layer: nn.Linear, options: LayerOptions) -> nn.Module:
    bias = None if layer.bias is None else layer.bias.detach().to(options.dtype)
    return FusedLinear(layer.weight.detach().to(options.dtype), bias, forms=options.forms)


@prepared.register(TwoMLPHead)
def _two_layers(body: TwoMLPHead, options: LayerOptions) -> nn.Module:
    """With the head's ranks each of its layers becomes two (`truncated`)."""
    fast = _own(body)
    layers = {"fc6": body.fc6, "fc7": body.fc7}
    for (name, layer), rank in zip(layers.items(), body.ranks or (None, None), strict=True):
        split = nn.Sequential(*truncated(layer, rank)) if rank and rank < min(layer.weight.shape) else layer
        fast._modules[name] = prepared(split, options)
    return fast


def truncated(layer: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """The two layers without anything between them that come nearest to one (Fast R-CNN, section 3.1).

    W = U S V^T becomes S V^T of the `rank` largest singular values, then U: rank (inputs + outputs) numbers in place of
    inputs * outputs. Worked out in float64.
    """
    u, s, v = torch.linalg.svd(_exact(layer.weight), full_matrices=False)
    outputs, inputs = layer.weight.shape
    first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(s[:rank, None] * v[:rank])
        second.weight.copy_(u[:, :rank])
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    device = layer.weight.device
    return first.to(device), second.to(device)


@prepared.register(Nearest)
def _nearest(layer: nn.Module, options: LayerOptions) -> nn.Module:
    return layer if options.forms == "plain" else KeptNearest()


@prepared.register(nn.GroupNorm)
@prepared.register(_BatchNorm)
@prepared.register(FrozenBatchNorm)
@prepared.register(ConvTranspose2x2)
@prepared.register(ClassSpecificLinear)
@prepared.register(ProvidedBackbone)
def _cast(module: M, options: LayerOptions) -> M:
    """A copy in the dtype, for what has no faster form: plain matrix products, normalisations left where they are.

    A user's backbone runs as it is: the order of its children need not be that of its forward pass.
    """
    return copy.deepcopy(module).to(options.dtype)


@prepared.register(RPN)
def _rpn(rpn: RPN, options: LayerOptions) -> nn.Module:
    """Objectness and deltas come from one convolution already."""
    fast = _own(rpn)
    for name, child in rpn.named_children():
        fast._modules[name] = (_cast if child in (rpn.objectness, rpn.deltas) else prepared)(child, options)
    return fast


def _own(module: M) -> M:
    """The module without its children; its hooks and the places of its buffers are its own, its tensors shared."""
    fast = copy.copy(module)
    for name, value in vars(fast).items():
        if isinstance(value, dict | set):
            setattr(fast, name, copy.copy(value))
    fast._modules = {}
    return fast


def _is_foldable(module: nn.Module | None) -> bool:
    return isinstance(module, FrozenBatchNorm | _BatchNorm)


def _fused(
    conv: nn.Conv2d, norm: nn.Module | None, options: LayerOptions, activation: Activation = "none"
) -> FusedConv:
    """The convolution with its normalisation folded in, worked out in float64 and rounded once."""
    device = conv.weight.device
    weight, bias = _exact(conv.weight), None if conv.bias is None else _exact(conv.bias)
    if norm is not None:
        scale, shift = _scale_and_shift(norm)
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else shift + scale * bias
    weight, bias = weight.to(device, options.dtype), None if bias is None else bias.to(device, options.dtype)
    return FusedConv(weight, bias, window_of(conv), activation, forms=options.forms)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A normalisation with fixed statistics as one multiplication and one addition, in float64."""
    mean, variance, weight, bias = (
        _exact(cast(Tensor, value)) for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight * (variance + cast(float, norm.eps)).rsqrt()
    return scale, bias - mean * scale


def _exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: Apple's devices have none."""
    return tensor.detach().cpu().double()
