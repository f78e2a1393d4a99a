"""Files of fitted radial-basis-function networks.

Letters: D features, M units, P columns that are not of units, k outputs or classes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import functional, io
from fastrnn.callbacks import History
from fastrnn.rbf.data import Rows, merge
from fastrnn.rbf.output import Factor
from fastrnn.rbf.units import KERNELS
from fastrnn.scikit import finite_array

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    Array = NDArray[np.float64]

__all__ = ["SavedNetwork"]

_FORMAT = "fastrnn RBFN 1"


class SavedNetwork:
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

    if TYPE_CHECKING:

        def _check_fitted(self) -> None: ...

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, without pickle.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            A file there is replaced.

        Notes
        -----
        A `random_state` that is no integer is saved as None. The file of a classifier with
        ``output="softmax"`` holds the rows that it keeps for `partial_fit`.
        """
        self._check_fitted()
        arrays: dict[str, NDArray[Any]] = {
            "centers": self.centers_,
            "widths": self.widths_,
            "weights": self.weights_,
            "intercept": self.intercept_,
            "factor": self._factor.R,
        }
        if self.slopes_ is not None:
            arrays["slopes"] = self.slopes_
            for name, value in zip(("shift", "scale"), self._tail, strict=True):
                assert value is not None
                arrays[name] = value
        if self._memory is not None:
            for name in ("X", "Y", "weights"):
                arrays[f"memory/{name}"] = getattr(self._memory, name)
        if hasattr(self, "history_"):
            for name, value in self.history_.state_dict().items():
                arrays[f"history/{name}"] = value
        parameters = {}
        for name, value in self.get_params().items():
            if name == "random_state" and not isinstance(value, (int, np.integer)):
                value = None
            if isinstance(value, (list, tuple, np.ndarray)):
                arrays[f"parameters/{name}"] = finite_array(name, "numbers", value)
            else:
                parameters[name] = value.item() if isinstance(value, np.generic) else value
        metadata = {
            "format": _FORMAT,
            "class": type(self).__name__,
            "parameters": json.dumps(parameters),
            "state": json.dumps(self._state()),
        }
        io.save_arrays(path, arrays, metadata)

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
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : path ending in ``.safetensors`` or ``.npz``
            Where the file is.

        Returns
        -------
        estimator
            It predicts what the saved one did, and can go on with `partial_fit`.

        Raises
        ------
        ValueError
            If the file is damaged or holds something else.
        """
        arrays, metadata = io.load_arrays(path)
        if metadata.get("format") != _FORMAT or metadata.get("class") != cls.__name__:
            raise ValueError(
                f"{path}: expected a file that {cls.__name__}.save wrote, got one of"
                f" {metadata.get('class')!r} in format {metadata.get('format')!r}"
            )
        try:
            return cls._restored(arrays, metadata)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: expected what save writes, got {error!r}") from error

    @classmethod
    def _restored(cls, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Self:
        parameters = json.loads(metadata["parameters"])
        state = json.loads(metadata["state"])
        for name, array in arrays.items():
            if not name.startswith("history/") and not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers")
            if name in ("widths", "scale", "memory/weights") and not np.all(array > 0):
                raise ValueError(f"{name}: expected numbers > 0, got {array.min()}")
            if name.startswith("parameters/"):
                parameters[name.partition("/")[2]] = array
        estimator = cls(**parameters)
        M, D = arrays["centers"].shape
        k = len(arrays["intercept"])
        has_tail = "slopes" in arrays
        P = 1 + D if has_tail else 1
        expected = {"weights": (M, k), "intercept": (k,)}
        if has_tail:
            expected |= {"slopes": (D, k), "shift": (D,), "scale": (D,)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name}: expected {shape}, got {arrays[name].shape}")
        if arrays["widths"].shape not in ((M,), (M, D)):
            raise ValueError(f"widths: expected {(M,)} or {(M, D)}, got {arrays['widths'].shape}")
        if arrays["factor"].ndim != 2 or arrays["factor"].shape[1] != P + M + k:
            raise ValueError(f"factor: expected (rows, {P + M + k}), got {arrays['factor'].shape}")
        estimator.centers_, estimator.widths_ = arrays["centers"], arrays["widths"]
        estimator.weights_, estimator.intercept_ = arrays["weights"], arrays["intercept"]
        estimator.slopes_ = arrays.get("slopes")
        estimator._objective = functional.choice("output", state["output"], ("ridge", "softmax"))
        if (estimator._objective == "softmax") != ("memory/X" in arrays):
            raise ValueError("memory: expected rows for output='softmax' alone")
        kernel = functional.choice("kernel", state["kernel"], tuple(KERNELS))
        estimator._kind = kernel, functional.boolean("normalize", state["normalize"])
        estimator._tail = arrays.get("shift"), arrays.get("scale")
        estimator.n_centers_, estimator.n_features_in_ = M, D
        estimator.alpha_ = functional.number("alpha", state["alpha"], 0)
        estimator._factor = Factor(P + M, k)
        estimator._factor.R = arrays["factor"]
        estimator._factor.rows = functional.integer("rows", state["rows"], 1)
        estimator._factor.observations = functional.number("observations", state["observations"], 0)
        estimator._memory = None
        if "memory/X" in arrays:
            X, Y, weights = (arrays[f"memory/{name}"] for name in ("X", "Y", "weights"))
            if not len(X) or (X.shape, Y.shape, weights.shape) != (
                (len(X), D),
                (len(X), k),
                (len(X),),
            ):
                raise ValueError(f"memory: expected (n, {D}), (n, {k}) and (n,)")
            estimator._memory = merge(X, Y, weights)
        history = {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith("history/")}
        if history:
            estimator.history_ = History()
            estimator.history_.load_state_dict(history)
            estimator.n_iter_ = estimator.history_.epochs[-1]
        estimator._set_state(state)
        return estimator

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if state["feature_names"] is not None:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        if state["cv_results"] is not None:
            self.cv_results_ = state["cv_results"]
