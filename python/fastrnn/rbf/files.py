"""Files of fitted radial-basis-function networks.

Letters: D features, M units, P columns that are not of units, k outputs or classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional
from fastrnn.callbacks import History
from fastrnn.estimator_files import SavedEstimator
from fastrnn.rbf.data import Rows, merge
from fastrnn.rbf.output import Factor
from fastrnn.rbf.units import KERNELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    Array = NDArray[np.float64]

__all__ = ["SavedNetwork"]


class SavedNetwork(SavedEstimator):
    """What a network knows after a fit, and how that is saved and loaded."""

    n_features_in_: int
    n_centers_: int
    centers_: Array
    widths_: Array
    weights_: Array
    intercept_: Array
    slopes_: Array | None
    alpha_: float
    history_: History
    n_iter_: int
    cv_results_: dict[str, Any]
    _objective: str  # output
    _kind: tuple[str, bool]  # kernel, normalize
    _tail: tuple[Array | None, Array | None]  # shift, scale
    _factor: Factor
    _memory: Rows | None  # of softmax

    _format = "fastrnn RBFN 1"

    def _knowledge(self) -> dict[str, dict[str, Any]]:
        network: dict[str, Any] = {
            "centers": self.centers_,
            "widths": self.widths_,
            "weights": self.weights_,
            "intercept": self.intercept_,
            "factor": self._factor.R,
        }
        if self.slopes_ is not None:
            network |= {"slopes": self.slopes_, "shift": self._tail[0], "scale": self._tail[1]}
        memory = {}
        if self._memory is not None:
            memory = {name: getattr(self._memory, name) for name in ("X", "Y", "weights")}
        history = self.history_.state_dict() if hasattr(self, "history_") else {}
        return {"network": network, "memory": memory, "history": history, "state": self._state()}

    def _state(self) -> dict[str, Any]:
        """Return what there is beside arrays of numbers."""
        names = getattr(self, "feature_names_in_", None)
        return {
            "rows": self._factor.rows,
            "observations": self._factor.observations,
            "alpha": self.alpha_,
            "output": self._objective,
            "kernel": self._kind[0],
            "normalize": self._kind[1],
            "feature_names": None if names is None else [str(name) for name in names],
            "cv_results": getattr(self, "cv_results_", None),
        }

    @classmethod
    def _restored(cls, parameters: dict[str, Any], knowledge: dict[str, dict[str, Any]]) -> Self:
        estimator = cls(**parameters)
        network, state = knowledge["network"], knowledge["state"]
        _check_shapes(network)
        M, D = network["centers"].shape
        estimator.centers_, estimator.widths_ = network["centers"], network["widths"]
        estimator.weights_, estimator.intercept_ = network["weights"], network["intercept"]
        estimator.slopes_ = network.get("slopes")
        estimator._objective = functional.choice("output", state["output"], ("ridge", "softmax"))
        kernel = functional.choice("kernel", state["kernel"], tuple(KERNELS))
        estimator._kind = kernel, functional.boolean("normalize", state["normalize"])
        estimator._tail = network.get("shift"), network.get("scale")
        estimator.n_centers_, estimator.n_features_in_ = M, D
        estimator.alpha_ = functional.number("alpha", state["alpha"], 0)
        k = len(network["intercept"])
        estimator._factor = Factor(network["factor"].shape[1] - k, k)
        estimator._factor.R = network["factor"]
        estimator._factor.rows = functional.integer("rows", state["rows"], 1)
        estimator._factor.observations = functional.number("observations", state["observations"], 0)
        memory = knowledge["memory"]
        if (estimator._objective == "softmax") != bool(memory):
            raise ValueError("memory: expected rows for output='softmax' alone")
        estimator._memory = _memory(memory, D, k) if memory else None
        if knowledge["history"]:
            estimator.history_ = History()
            estimator.history_.load_state_dict(knowledge["history"])
            estimator.n_iter_ = estimator.history_.epochs[-1]
        estimator._set_state(state)
        return estimator

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if state["feature_names"] is not None:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        if state["cv_results"] is not None:
            self.cv_results_ = state["cv_results"]


def _check_shapes(network: Mapping[str, Any]) -> None:
    """Raise unless the arrays of a network fit each other."""
    M, D = network["centers"].shape
    k = len(network["intercept"])
    P = 1 + D if "slopes" in network else 1
    expected = {"weights": (M, k), "intercept": (k,)}
    if "slopes" in network:
        expected |= {"slopes": (D, k), "shift": (D,), "scale": (D,)}
    for name, shape in expected.items():
        if network[name].shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {network[name].shape}")
    if network["widths"].shape not in ((M,), (M, D)):
        raise ValueError(f"widths: expected {(M,)} or {(M, D)}, got {network['widths'].shape}")
    for name in ("widths", "scale"):
        if name in network and not np.all(network[name] > 0):
            raise ValueError(f"{name}: expected numbers > 0, got {network[name].min()}")
    factor = network["factor"]
    if factor.ndim != 2 or factor.shape[1] != P + M + k:
        raise ValueError(f"factor: expected (rows, {P + M + k}), got {factor.shape}")


def _memory(arrays: Mapping[str, Any], D: int, k: int) -> Rows:
    """Return the rows that were remembered."""
    X, Y, weights = (arrays[name] for name in ("X", "Y", "weights"))
    n = len(X)
    if not n or (X.shape, Y.shape, weights.shape) != ((n, D), (n, k), (n,)):
        raise ValueError(f"memory: expected (n, {D}), (n, {k}) and (n,)")
    if not np.all(weights > 0):
        raise ValueError(f"weights: expected numbers > 0, got {weights.min()}")
    return merge(X, Y, weights)
