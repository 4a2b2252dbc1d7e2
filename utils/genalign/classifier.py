"""The classifier that tells what texts are good for: trained on them, scored on golden ones.

Multinomial logistic regression over words, convex and so without a seed or a schedule: each call begins at zero and
ends at the one optimum. What a single text contributes follows in closed form from influence functions (Koh and Liang
2017, arXiv:1703.04730, eq. 2): by how much the golden loss would rise, to first order, were the text left out.

Shapes: `_N` training texts, `_M` golden texts, `_D` features, `_C` labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

FEATURES = 4096
L2 = 0.3
"""Weight of half the squared norm beside the sum of the texts' losses."""
TOLERANCE = 1e-6
TIE = 1e-9
UNDECIDED = -1
OPTIONS = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}


WORD = r"[^\W_]+"
"""What is a word, here and wherever texts of this task are counted or compared."""


def words_of_text(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(WORD, text.lower())


def features(texts: Sequence[str]) -> Any:
    """Words of each text as a sparse row of length 1 [_N, _D]; hashed, so that they need no vocabulary."""
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=FEATURES, alternate_sign=False, norm="l2", token_pattern=WORD)
    return words.transform(list(texts)).tocsr()


@dataclass(frozen=True)
class Classifier:
    """Weights [columns, _C] that were learned from rows `x` [_N, columns] with labels `y` [_N].

    `columns` are the features that stand in the training texts; the weights of all others are 0.
    """

    weights: Matrix
    columns: NDArray[np.int64]
    x: Any
    y: NDArray[np.int64]

    def log_probs(self, x: Any) -> Matrix:
        """Log-probabilities of the labels [_M, _C] for rows [_M, _D]."""
        return _log_softmax(x[:, self.columns] @ self.weights)

    def predict(self, x: Any) -> NDArray[np.int64]:
        """The likeliest label of each row [_M]; UNDECIDED where two are equally likely, as without any known word."""
        log_probs = self.log_probs(x)
        best = np.sort(log_probs, axis=1)[:, -2:]
        found: NDArray[np.int64] = np.where(best[:, 1] - best[:, 0] > TIE, log_probs.argmax(axis=1), UNDECIDED)
        return found

    def credits(self, golden: Any, labels: NDArray[np.int64]) -> Matrix:
        """By how much the mean golden loss would rise without each training text [_N], to first order.

        Solves H s = (gradient of the golden loss) with conjugate gradients, then multiplies with each text's own
        gradient; H is the Hessian of the training loss.
        """
        from scipy.sparse.linalg import LinearOperator, cg

        shape = self.weights.shape
        if not self.columns.size:
            return np.zeros(len(self.y))
        gradient = np.asarray(golden[:, self.columns].T @ _residual(self.log_probs(golden), labels)) / len(labels)
        log_probs = _log_softmax(self.x @ self.weights)
        probabilities = np.exp(log_probs)

        def times_hessian(flat: Matrix) -> Matrix:
            change = self.x @ flat.reshape(shape)
            inner = probabilities * (change - (probabilities * change).sum(axis=1, keepdims=True))
            return (np.asarray(self.x.T @ inner) + L2 * flat.reshape(shape)).ravel()

        operator = LinearOperator((gradient.size, gradient.size), matvec=times_hessian, dtype=np.float64)
        solution, _ = cg(operator, gradient.ravel(), rtol=TOLERANCE, maxiter=500)
        found: Matrix = ((self.x @ solution.reshape(shape)) * _residual(log_probs, self.y)).sum(axis=1)
        return found


def train(x: Any, y: NDArray[np.int64], classes: int) -> Classifier:
    """Learn from rows [_N, _D]; with no row all labels stay equally likely."""
    from scipy.optimize import minimize

    columns = np.unique(x.indices).astype(np.int64)
    x = x[:, columns]
    shape = (len(columns), classes)
    if not columns.size:
        return Classifier(np.zeros(shape), columns, x, y)

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(shape)
        log_probs = _log_softmax(x @ weights)
        loss = -float(log_probs[np.arange(len(y)), y].sum()) + 0.5 * L2 * float(flat @ flat)
        gradient = np.asarray(x.T @ _residual(log_probs, y)) + L2 * weights
        return loss, gradient.ravel()

    start = np.zeros(shape[0] * classes)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=OPTIONS)
    return Classifier(found.x.reshape(shape), columns, x, y)


def golden_loss(log_probs: Matrix, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats: 0 for a sure and right classifier, log(_C) for one that knows nothing."""
    return -float(log_probs[np.arange(len(labels)), labels].mean())


def _log_softmax(logits: Matrix) -> Matrix:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Matrix = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _residual(log_probs: Matrix, labels: NDArray[np.int64]) -> Matrix:
    """Gradient of each row's loss by its logits [_N, _C]."""
    residual = np.exp(log_probs)
    residual[np.arange(len(labels)), labels] -= 1
    return residual
