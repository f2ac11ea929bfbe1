"""Ridge regression from pool5 to the four deltas of a box (R-CNN, section 3.5 and appendix C)."""

import numpy as np
from jaxtyping import Float, Float32

from twostage.errors import MissingError
from twostage.models.proposals.selective_search import INSTALL

LAMBDA = 1000.0


def fit_ridge(
    pool5: Float[np.ndarray, "n d"], deltas: Float[np.ndarray, "n 4"], *, strength: float = LAMBDA
) -> tuple[Float32[np.ndarray, "4 d"], Float32[np.ndarray, " 4"]]:
    """Weights and offsets of least squares with an L2 penalty of `strength` on the weights.

    Without pairs all are 0: boxes stay where they are. Raises MissingError without the extra `lineage`.
    """
    if not len(pool5):
        return np.zeros((4, pool5.shape[1]), np.float32), np.zeros(4, np.float32)
    try:
        from sklearn.linear_model import Ridge
    except ImportError:
        raise MissingError(f"The box regressors of R-CNN and SPPnet need scikit-learn: {INSTALL}") from None
    ridge = Ridge(alpha=strength).fit(pool5, deltas)
    return ridge.coef_.astype(np.float32), ridge.intercept_.astype(np.float32)
