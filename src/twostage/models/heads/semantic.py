"""The semantic branch: what is seen where in the whole picture, for regions that see a part of it (HTC, section 3.2).

Letters: N images, C channels, K classes of stuff.
"""

from collections.abc import Sequence

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from twostage.data.stuff import STRIDE, UNKNOWN
from twostage.models.backbones.norm import ConvNorm
from twostage.models.losses import Mean, alone


class SemanticBranch(nn.Module):
    """All levels brought to stride 8 and summed, some convolutions, then two layers: an embedding, and class logits."""

    def __init__(self, channels: int, strides: Sequence[int], classes: int, convs: int) -> None:
        super().__init__()
        self.middle = list(strides).index(STRIDE)
        self.laterals = nn.ModuleList(ConvNorm(nn.Conv2d(channels, channels, 1), None, "relu") for _ in strides)
        self.convs = nn.Sequential(
            *(ConvNorm(nn.Conv2d(channels, channels, 3, padding=1), None, "relu") for _ in range(convs))
        )
        self.embedding = ConvNorm(nn.Conv2d(channels, channels, 1), None, "relu")
        self.logits = nn.Conv2d(channels, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.01)  # at first all classes are alike

    def seen(self, maps: Sequence[Float[Tensor, "n c _ _"]]) -> Float[Tensor, "n c i j"]:
        """What both layers read."""
        shape = maps[self.middle].shape[2:]
        levels = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=False))  # an extra level is not read
        summed = sum(
            x if x.shape[2:] == shape else interpolate(x, shape, mode="bilinear", align_corners=False) for x in levels
        )
        return self.convs(summed)

    def loss(
        self, seen: Float[Tensor, "n c i j"], stuff: UInt8[Tensor, "n i j"], mean: Mean = alone
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the pixels of which something is known, their mean."""
        known = stuff != UNKNOWN
        each = cross_entropy(self.logits(seen).float(), stuff.long(), ignore_index=UNKNOWN, reduction="sum")
        count = mean(known.sum().float())
        return each / count.where(count > 0, 1.0)
