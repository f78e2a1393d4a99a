"""Networks on trees instead of sequences, run level by level over many trees at once.

Letters: N nodes, I inputs, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fastrnn import functional, initializers
from fastrnn.layer import Gradients, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    from fastrnn.functional import FloatArray, SupportsArray
    from fastrnn.layer import Shape

    # Of each kernel by its name, in the engine's order.
    Weights = dict[str, tuple[FloatArray, ...]]

__all__ = ["RecursiveNetwork", "TreeLSTM", "Trees"]

# A gate with this bias and no weights is 1: exp(-100) is lost beside 1 even in float64.
_OPEN = 100.0


class _Level(NamedTuple):
    """The nodes of one height, as rows of arrays that are sorted by height.

    Attributes
    ----------
    rows : slice
        Of the nodes.
    children : integers (E,)
        Rows of their E children: those of the first node, then those of the second, ...
    counts : integers (n,)
        How many children each node has.
    starts : integers (n,)
        Where they start.
    """

    rows: slice
    children: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def add_up(self, values: FloatArray) -> FloatArray:
        """Return the sums (n, ...) over the children (E, ...) of each node."""
        # Child after child of all nodes: several times as fast as numpy.add.reduceat.
        result: FloatArray = values[self.starts]
        nodes = np.arange(len(self.counts))
        for i in range(1, int(self.counts.max())):
            nodes = nodes[self.counts[nodes] > i]
            result[nodes] += values[self.starts[nodes] + i]
        return result

    def pairs(self, missing: int) -> NDArray[np.int64]:
        """Return the first and second child (n, 2) of each node, `missing` for one it lacks."""
        result = np.full((len(self.counts), 2), missing)
        result[:, 0] = self.children[self.starts]
        both = self.counts == 2
        result[both, 1] = self.children[self.starts[both] + 1]
        return result


class Trees:
    """Trees of any shapes, as flat arrays over all their nodes.

    Nodes are numbered tree after tree. The children of a node are in the order of their numbers.

    Parameters
    ----------
    parents : sequence of integer arrays
        Of each tree the parent of each of its nodes, counted within the tree, and -1 for the root.
    leaves : iterable, optional
        Values of all leaves in the order of their numbers, such as token ids.

    Attributes
    ----------
    parent : ndarray (N,) of int64
        Parent of each node, counted over all trees; -1 for roots.
    tree : ndarray (N,) of int64
        Tree of each node.
    root : ndarray of int64
        Root of each tree.
    height : ndarray (N,) of int64
        Steps from each node down to its farthest leaf; 0 for leaves.
    child_counts : ndarray (N,) of int64
        How many children each node has.
    leaf : ndarray of int64
        The nodes that are leaves.
    leaves : tuple or None
        Their values.

    See Also
    --------
    Trees.from_nested, Trees.from_parents

    Examples
    --------
    >>> trees = Trees([[-1, 0, 0], [-1]], leaves=[7, 8, 9])
    >>> trees
    Trees(2 trees, 4 nodes, 3 leaves, height 1)
    >>> trees.height.tolist(), trees.root.tolist(), trees.leaf.tolist()
    ([1, 0, 0, 0], [0, 3], [1, 2, 3])
    """

    def __init__(self, parents: Iterable[ArrayLike], leaves: Iterable[Any] | None = None) -> None:
        arrays = [_read_parents(f"parents[{i}]", array) for i, array in enumerate(parents)]
        if not arrays:
            raise ValueError("parents: expected one tree or more, got none")
        sizes = np.array([len(array) for array in arrays])
        firsts = np.cumsum(sizes) - sizes
        self.tree = np.repeat(np.arange(len(arrays)), sizes)
        local = np.concatenate(arrays)
        self.parent = np.where(local < 0, -1, local + firsts[self.tree])
        self.root = np.flatnonzero(local < 0)
        self._children = np.flatnonzero(local >= 0)  # all that are children
        self.child_counts = np.bincount(self.parent[self._children], minlength=len(local)).astype(
            np.int64
        )
        self.leaf = np.flatnonzero(self.child_counts == 0)
        self.height = self._measure()
        if (self.height < 0).any():
            node = int(np.argmax(self.height < 0))
            tree = int(self.tree[node])
            raise ValueError(
                f"parents[{tree}]: expected a tree, got a cycle at or below node"
                f" {node - firsts[tree]}"
            )
        self.leaves = None if leaves is None else tuple(leaves)
        if self.leaves is not None and len(self.leaves) != len(self.leaf):
            raise ValueError(
                f"leaves: expected {len(self.leaf)} values, one per leaf, got {len(self.leaves)}"
            )
        # Rows are sorted by height, so that each level is contiguous, and leaves come first.
        self._by_height = np.argsort(self.height, kind="stable")
        self._row = np.empty_like(self._by_height)
        self._row[self._by_height] = np.arange(len(local))
        self._levels = self._split()
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    @classmethod
    def from_parents(
        cls, parents: Iterable[ArrayLike], leaves: Iterable[Any] | None = None
    ) -> Self:
        """Make trees from the parents of their nodes, as the constructor does.

        Parameters
        ----------
        parents : sequence of integer arrays
            Of each tree the parent of each of its nodes, counted within the tree, and -1 for the
            root.
        leaves : iterable, optional
            Values of all leaves in the order of their numbers.

        Returns
        -------
        Trees
            The trees.

        Raises
        ------
        ValueError, TypeError
            If one is not a tree: empty, without a root, with two, or with a cycle.

        Examples
        --------
        >>> Trees.from_parents([[2, 2, -1]]).height.tolist()
        [0, 0, 1]
        """
        return cls(parents, leaves)

    @classmethod
    def from_nested(cls, trees: Sequence[Any]) -> Self:
        """Make trees from nested tuples or lists.

        A node is numbered before its children and these from left to right, so that a root is the
        first node of its tree.

        Parameters
        ----------
        trees : sequence
            The trees. A tuple or list is a node with its children, anything else is a leaf.

        Returns
        -------
        Trees
            The trees, with the values of their leaves.

        Raises
        ------
        ValueError, TypeError
            If there is no tree, a node has no children, or a list contains itself.

        Examples
        --------
        >>> trees = Trees.from_nested([((3, 1), 4), 1])
        >>> trees.parent.tolist(), trees.leaves
        ([-1, 0, 1, 1, 0, -1], (3, 1, 4, 1))
        """
        if not isinstance(trees, (tuple, list)):
            raise TypeError(f"trees: expected a list of trees, got {type(trees).__name__}")
        if not trees:
            raise ValueError("trees: expected one tree or more, got none")
        leaves: list[Any] = []
        return cls([_number(f"trees[{i}]", tree, leaves) for i, tree in enumerate(trees)], leaves)

    def roots(self, h: SupportsArray) -> NDArray[Any]:
        """Pick the rows of the roots.

        Parameters
        ----------
        h : array (N, ...)
            Rows of all nodes.

        Returns
        -------
        ndarray (number of trees, ...)
            A copy of those of the roots.

        Examples
        --------
        >>> Trees.from_nested([(1, 2), 3]).roots(np.array([[10.0], [1.0], [2.0], [3.0]])).tolist()
        [[10.0], [3.0]]
        """
        rows = functional.view("h", h)
        if rows.ndim < 1 or len(rows) != self.nodes:
            raise ValueError(f"h: expected ({self.nodes}, ...), got {rows.shape}")
        picked: NDArray[Any] = rows[self.root]
        return picked

    def roots_backward(self, grad: SupportsArray) -> NDArray[Any]:
        """Put the gradient of `roots` back where it came from.

        Parameters
        ----------
        grad : array (number of trees, ...)
            Gradient of the roots' rows.

        Returns
        -------
        ndarray (N, ...)
            Gradient of all rows, 0 but for the roots.

        Examples
        --------
        >>> Trees.from_nested([(1, 2), 3]).roots_backward(np.array([5.0, 6.0])).tolist()
        [5.0, 0.0, 0.0, 6.0]
        """
        rows = functional.view("grad", grad)
        if rows.ndim < 1 or len(rows) != len(self):
            raise ValueError(f"grad: expected ({len(self)}, ...), got {rows.shape}")
        result = np.zeros((self.nodes, *rows.shape[1:]), rows.dtype)
        result[self.root] = rows
        return result

    @property
    def nodes(self) -> int:
        """Number N of nodes."""
        return len(self.parent)

    def __len__(self) -> int:
        return len(self.root)

    def __repr__(self) -> str:
        return (
            f"Trees({len(self)} trees, {self.nodes} nodes, {len(self.leaf)} leaves, height"
            f" {self.height.max()})"
        )

    def _measure(self) -> NDArray[np.int64]:
        """Return the height of each node, -1 for those from which a cycle is reached."""
        height = np.full(self.nodes, -1, np.int64)
        pending = self.child_counts.copy()
        level, steps = self.leaf, 0
        while level.size:
            height[level] = steps
            above = self.parent[level]
            above = above[above >= 0]
            np.subtract.at(pending, above, 1)
            # The last child to come is the highest one.
            level = np.unique(above[pending[above] == 0])
            steps += 1
        return height

    def _split(self) -> list[_Level]:
        """Return the levels, from the leaves on."""
        counts = self.child_counts[self._by_height]
        # Stable, so that siblings stay in the order of their numbers.
        order = np.argsort(self._row[self.parent[self._children]], kind="stable")
        children = self._row[self._children[order]]
        rows = np.concatenate([[0], np.cumsum(np.bincount(self.height))])
        levels = []
        for first, end in zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True):
            starts = np.cumsum(counts[first:end]) - counts[first:end]
            here, children = np.split(children, [counts[first:end].sum()])
            levels.append(_Level(slice(first, end), here, counts[first:end], starts))
        return levels


def _read_parents(name: str, value: ArrayLike) -> NDArray[np.int64]:
    expected = "integers (nodes,)"
    array = functional.listed(name, expected, value)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected {expected}, one or more, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected {expected}, got {array.shape} {array.dtype}")
    wrong = array[(array < -1) | (array >= len(array))]
    if wrong.size:
        raise ValueError(f"{name}: expected integers in [-1, {len(array)}), got {wrong[0]}")
    roots = int(np.count_nonzero(array == -1))
    if roots != 1:
        raise ValueError(f"{name}: expected one root (-1), got {roots}")
    return array.astype(np.int64, copy=False)


def _number(name: str, tree: Any, leaves: list[Any]) -> list[int]:
    """Return the parent of each node of a nested tree, and append its leaves."""
    parents = [-1]
    if not isinstance(tree, (tuple, list)):
        leaves.append(tree)
        return parents
    # A stack of its own, because Python's is too small for deep trees. The ids are those of nodes
    # that are open: a list that contains itself would never end.
    stack = [(0, iter(tree), id(tree))]
    opened = {id(tree)}
    while stack:
        node, children, identity = stack[-1]
        child = next(children, stack)  # the stack itself is no child, so it can mark the end
        if child is stack:
            if node == len(parents) - 1:
                raise ValueError(f"{name}: expected a child or more of each node, got none")
            opened.discard(identity)
            stack.pop()
            continue
        parents.append(node)
        if not isinstance(child, (tuple, list)):
            leaves.append(child)
        elif id(child) in opened:
            raise ValueError(f"{name}: expected a tree, got a list that contains itself")
        else:
            opened.add(id(child))
            stack.append((len(parents) - 1, iter(child), id(child)))
    return parents


class _Cell:
    """One step of a recurrent cell for many rows, on the engine's kernels.

    A state is a tuple: (h,), of an LSTM (h, c).
    """

    def __init__(
        self, kind: str, inputs: int, units: int, dtype: np.dtype[np.floating[Any]]
    ) -> None:
        self._engine = functional.Engine(
            kind, inputs, units, 1, False, 0, True, "concat", False, False, math.inf, dtype.name
        )

    def pack(self, weights: tuple[FloatArray, ...]) -> None:
        """Prepare for calls of `forward` without weights."""
        self._engine.pack(weights)

    def forward(
        self, weights: tuple[FloatArray, ...] | None, x: FloatArray, *state: FloatArray
    ) -> tuple[tuple[FloatArray, ...], Any]:
        """Return the new state and the tape; with packed weights, which None is for, no tape."""
        keep = weights is not None
        _, after, *tape = functional.forward(
            self._engine,
            x[np.newaxis],
            _as_sequence(state),
            None,
            None,
            False,
            functional.Noise(),
            0,
            weights,
            keep=keep,
        )
        parts = after if isinstance(after, tuple) else (after,)
        return tuple(part[0] for part in parts), tape[0] if keep else None

    def backward(
        self, weights: tuple[FloatArray, ...], tape: Any, *grads: FloatArray, input_grad: bool
    ) -> tuple[Any, tuple[FloatArray, ...], list[FloatArray]]:
        """Return the gradients of x, or None, of the state, and of the weights."""
        grad_x, before, gradients = functional.backward(
            self._engine,
            tape,
            weights,
            None,
            _as_sequence(grads),
            retain=False,
            input_grad=input_grad,
        )
        parts = before if isinstance(before, tuple) else (before,)
        grad_state = tuple(part[0] for part in parts)
        return None if grad_x is None else grad_x[0], grad_state, gradients


def _as_sequence(state: tuple[FloatArray, ...]) -> Any:
    if not state:
        return None
    parts = tuple(part[np.newaxis] for part in state)
    return parts if len(parts) > 1 else parts[0]


class _Method:
    """How the state of a node follows from its input and its children; see those below.

    `forward` and `backward` treat one level. Rows are sorted by height, and the last row of
    `states` and `grads` is that of missing children: its states are 0, its gradients go nowhere.
    """

    # How many arrays a state is: h, or h and c.
    parts: ClassVar[int] = 1
    cells: dict[str, _Cell]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights, and of the bias."""
        raise NotImplementedError

    def check(self, trees: Trees) -> None:
        """Raise an error if a node has too many children, or too few."""

    def assemble(self, parameters: Mapping[str, FloatArray]) -> Weights:
        """Return new weights of the cells."""
        raise NotImplementedError

    def take_apart(self, totals: Mapping[str, list[FloatArray]]) -> dict[str, FloatArray]:
        """Return the gradients of the parameters from those of the cells' weights."""
        raise NotImplementedError

    def forward(
        self,
        weights: Weights | None,
        level: _Level,
        x: FloatArray,
        states: tuple[FloatArray, ...],
    ) -> Any:
        """Fill the level's rows of `states`, and return what `backward` needs."""
        raise NotImplementedError

    def backward(
        self,
        sink: _Sink,
        level: _Level,
        record: Any,
        grads: tuple[FloatArray, ...],
    ) -> FloatArray | None:
        """Add to the children's rows of `grads`, and return the gradient of x if it is wanted."""
        raise NotImplementedError


class _Sink:
    """Runs cells backwards, and adds up the gradients of their weights over all levels."""

    def __init__(self, cells: dict[str, _Cell], weights: Weights, input_grad: bool) -> None:
        self._cells = cells
        self._weights = weights
        self.input_grad = input_grad
        self.totals = {
            name: [np.zeros_like(array) for array in arrays] for name, arrays in weights.items()
        }

    def backward(
        self, name: str, tape: Any, *grads: FloatArray, input_grad: bool | None = None
    ) -> tuple[Any, tuple[FloatArray, ...]]:
        """Return the gradients of x, or None, and of the state."""
        wanted = self.input_grad if input_grad is None else input_grad
        grad_x, grad_state, gradients = self._cells[name].backward(
            self._weights[name], tape, *grads, input_grad=wanted
        )
        for total, gradient in zip(self.totals[name], gradients, strict=True):
            total += gradient
        return grad_x, grad_state


def _without_forget(weight: FloatArray, H: int) -> FloatArray:
    """Copy the rows of i, f, u, o with zeros for f."""
    result = weight.copy()
    result[H : 2 * H] = 0
    return result


def _bias(parameters: Mapping[str, FloatArray], H: int) -> FloatArray:
    """Return the bias of i, f, u, o, zero if there is none."""
    if "bias" in parameters:
        return parameters["bias"]
    return np.zeros(4 * H, parameters["weight_ih"].dtype)


def _gate_biases(bias: FloatArray, H: int) -> tuple[FloatArray, FloatArray]:
    """Return both biases of an LSTM whose forget gate is 1."""
    result = bias.copy()
    result[H : 2 * H] = _OPEN
    return result, np.zeros_like(result)


class _ChildSum(_Method):
    """Equations 2 to 8 of Tai et al.

    Cell "gates" is an LSTM with forget gates of 1: its c is the sum of f * c over the children.
    Cell "forget" computes these f, one row for each child.
    """

    parts = 2

    def __init__(self, I: int, H: int, dtype: np.dtype[np.floating[Any]]) -> None:  # noqa: E741
        self.I, self.H = I, H
        self.cells = {
            "gates": _Cell("lstm", I, H, dtype),
            "forget": _Cell("rnn_sigmoid", I, H, dtype),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        H = self.H
        return {"weight_ih": (4 * H, self.I), "weight_hh": (4 * H, H), "bias": (4 * H,)}

    def assemble(self, parameters: Mapping[str, FloatArray]) -> Weights:
        H, forget = self.H, slice(self.H, 2 * self.H)
        ih, hh, bias = parameters["weight_ih"], parameters["weight_hh"], _bias(parameters, self.H)
        return {
            "gates": (_without_forget(ih, H), _without_forget(hh, H), *_gate_biases(bias, H)),
            "forget": (
                ih[forget].copy(),
                hh[forget].copy(),
                bias[forget].copy(),
                np.zeros_like(bias[forget]),
            ),
        }

    def take_apart(self, totals: Mapping[str, list[FloatArray]]) -> dict[str, FloatArray]:
        gates, forget = totals["gates"], totals["forget"]
        for gradient, gradient_of_f in zip(gates, forget, strict=True):
            gradient[self.H : 2 * self.H] = gradient_of_f
        return {"weight_ih": gates[0], "weight_hh": gates[1], "bias": gates[2]}

    def forward(
        self,
        weights: Weights | None,
        level: _Level,
        x: FloatArray,
        states: tuple[FloatArray, ...],
    ) -> Any:
        h, c = states
        gates, forget = (weights["gates"], weights["forget"]) if weights else (None, None)
        if not level.children.size:
            (h[level.rows], c[level.rows]), tape = self.cells["gates"].forward(gates, x)
            return tape
        children_h, children_c = h[level.children], c[level.children]
        x_of_children = np.repeat(x, level.counts, axis=0)
        (f,), forget_tape = self.cells["forget"].forward(forget, x_of_children, children_h)
        (h[level.rows], c[level.rows]), tape = self.cells["gates"].forward(
            gates,
            x,
            level.add_up(children_h),
            level.add_up(f * children_c),
        )
        return tape, forget_tape, f, children_c

    def backward(
        self,
        sink: _Sink,
        level: _Level,
        record: Any,
        grads: tuple[FloatArray, ...],
    ) -> FloatArray | None:
        grad_h, grad_c = grads
        upper = grad_h[level.rows], grad_c[level.rows]
        if not level.children.size:
            grad_x, _ = sink.backward("gates", record, *upper)
            return grad_x  # type: ignore[no-any-return]
        tape, forget_tape, f, children_c = record
        grad_x, grad_sums = sink.backward("gates", tape, *upper)
        each_h, each_c = (np.repeat(grad, level.counts, axis=0) for grad in grad_sums)
        grad_c[level.children] += each_c * f
        each_x, (each_h_of_f,) = sink.backward("forget", forget_tape, each_c * children_c)
        grad_h[level.children] += each_h + each_h_of_f
        if grad_x is None:
            return None
        grad_x += level.add_up(each_x)
        return grad_x  # type: ignore[no-any-return]


class _Binary(_Method):
    """Equations 9 to 14 of Tai et al. for two children.

    Cell "gates" is an LSTM with forget gates of 1: its c is the sum of f * c over the children, its
    h that of the left one, and h of the right one is appended to its input. Cell "leaf" is the same
    without children. Cell "forget" computes both f at once: its h is that of both children.
    """

    parts = 2

    def __init__(self, I: int, H: int, dtype: np.dtype[np.floating[Any]]) -> None:  # noqa: E741
        self.I, self.H = I, H
        self.cells = {
            "leaf": _Cell("lstm", I, H, dtype),
            "gates": _Cell("lstm", I + H, H, dtype),
            "forget": _Cell("rnn_sigmoid", I, 2 * H, dtype),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        H = self.H
        return {"weight_ih": (4 * H, self.I), "weight_hh": (5 * H, 2 * H), "bias": (4 * H,)}

    def check(self, trees: Trees) -> None:
        _check_children(trees, trees.child_counts > 2, "two children or fewer")

    def assemble(self, parameters: Mapping[str, FloatArray]) -> Weights:
        H, forget = self.H, slice(self.H, 2 * self.H)
        ih, hh, bias = parameters["weight_ih"], parameters["weight_hh"], _bias(parameters, self.H)
        from_x = _without_forget(ih, H)
        from_children = _without_forget(np.concatenate([hh[: 2 * H], hh[3 * H :]]), H)
        left, right = from_children[:, :H].copy(), from_children[:, H:]
        biases = _gate_biases(bias, H)
        return {
            "leaf": (from_x, left, *biases),
            "gates": (np.concatenate([from_x, right], axis=1), left, *biases),
            "forget": (
                np.tile(ih[forget], (2, 1)),
                hh[H : 3 * H].copy(),
                np.tile(bias[forget], 2),
                np.zeros(2 * H, bias.dtype),
            ),
        }

    def take_apart(self, totals: Mapping[str, list[FloatArray]]) -> dict[str, FloatArray]:
        H, forget = self.H, slice(self.H, 2 * self.H)
        gates, of_f = totals["gates"], totals["forget"]
        ih = totals["leaf"][0] + gates[0][:, : self.I]
        bias = totals["leaf"][2] + gates[2]
        ih[forget] = of_f[0][:H] + of_f[0][H:]
        bias[forget] = of_f[2][:H] + of_f[2][H:]
        from_children = np.concatenate([gates[1], gates[0][:, self.I :]], axis=1)
        hh = np.concatenate([from_children[:H], of_f[1], from_children[2 * H :]])
        return {"weight_ih": ih, "weight_hh": hh, "bias": bias}

    def forward(
        self,
        weights: Weights | None,
        level: _Level,
        x: FloatArray,
        states: tuple[FloatArray, ...],
    ) -> Any:
        h, c = states
        if not level.children.size:
            (h[level.rows], c[level.rows]), tape = self.cells["leaf"].forward(
                weights["leaf"] if weights else None, x
            )
            return tape
        pairs = level.pairs(len(h) - 1)
        pairs_h, pairs_c = h[pairs], c[pairs]  # (n, 2, H)
        (f,), forget_tape = self.cells["forget"].forward(
            weights["forget"] if weights else None, x, pairs_h.reshape(len(x), -1)
        )
        f = f.reshape(pairs_c.shape)
        (h[level.rows], c[level.rows]), tape = self.cells["gates"].forward(
            weights["gates"] if weights else None,
            np.concatenate([x, pairs_h[:, 1]], axis=1),
            np.ascontiguousarray(pairs_h[:, 0]),
            (f * pairs_c).sum(axis=1),
        )
        return tape, forget_tape, f, pairs, pairs_c

    def backward(
        self,
        sink: _Sink,
        level: _Level,
        record: Any,
        grads: tuple[FloatArray, ...],
    ) -> FloatArray | None:
        grad_h, grad_c = grads
        upper = grad_h[level.rows], grad_c[level.rows]
        if not level.children.size:
            grad_x, _ = sink.backward("leaf", record, *upper)
            return grad_x  # type: ignore[no-any-return]
        tape, forget_tape, f, pairs, pairs_c = record
        grad_x, (grad_left, grad_sum) = sink.backward("gates", tape, *upper, input_grad=True)
        grad_c[pairs] += grad_sum[:, np.newaxis] * f
        grad_f = grad_sum[:, np.newaxis] * pairs_c
        grad_x_of_f, (grad_pairs,) = sink.backward(
            "forget", forget_tape, grad_f.reshape(len(grad_f), -1)
        )
        grad_h[pairs] += grad_pairs.reshape(pairs_c.shape)
        grad_h[pairs[:, 0]] += grad_left
        grad_h[pairs[:, 1]] += grad_x[:, self.I :]
        if grad_x_of_f is None:
            return None
        return grad_x[:, : self.I] + grad_x_of_f  # type: ignore[no-any-return]


class _Merge(_Method):
    """The network of Socher et al.: an Elman step from the left child with the right one as x."""

    def __init__(self, H: int, nonlinearity: str, dtype: np.dtype[np.floating[Any]]) -> None:
        self.H = H
        self.cells = {"merge": _Cell(f"rnn_{nonlinearity}", H, H, dtype)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.H, 2 * self.H), "bias": (self.H,)}

    def check(self, trees: Trees) -> None:
        counts = trees.child_counts
        _check_children(trees, (counts != 0) & (counts != 2), "two children or none")

    def assemble(self, parameters: Mapping[str, FloatArray]) -> Weights:
        weight = parameters["weight"]
        zeros = np.zeros(self.H, weight.dtype)
        bias = parameters["bias"].copy() if "bias" in parameters else zeros
        return {
            "merge": (weight[:, self.H :].copy(), weight[:, : self.H].copy(), bias, zeros.copy())
        }

    def take_apart(self, totals: Mapping[str, list[FloatArray]]) -> dict[str, FloatArray]:
        right, left, bias, _ = totals["merge"]
        return {"weight": np.concatenate([left, right], axis=1), "bias": bias}

    def forward(
        self,
        weights: Weights | None,
        level: _Level,
        x: FloatArray,
        states: tuple[FloatArray, ...],
    ) -> Any:
        (h,) = states
        if not level.children.size:
            h[level.rows] = x
            return None
        left, right = level.children[::2], level.children[1::2]
        (h[level.rows],), tape = self.cells["merge"].forward(
            weights["merge"] if weights else None, h[right], h[left]
        )
        return tape

    def backward(
        self,
        sink: _Sink,
        level: _Level,
        record: Any,
        grads: tuple[FloatArray, ...],
    ) -> FloatArray | None:
        (grad_h,) = grads
        upper = grad_h[level.rows]
        if not level.children.size:
            return upper
        grad_right, (grad_left,) = sink.backward("merge", record, upper, input_grad=True)
        grad_h[level.children[::2]] += grad_left
        grad_h[level.children[1::2]] += grad_right
        return np.zeros_like(upper)


def _check_children(trees: Trees, wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        node = int(np.argmax(wrong))
        raise ValueError(
            f"trees: expected {expected} of each node, got {trees.child_counts[node]} of node"
            f" {node}"
        )


class _TreeTape(NamedTuple):
    """What the backward pass needs.

    Attributes
    ----------
    layer : _TreeLayer
        That made it.
    trees : Trees
        The trees.
    leaves_only : bool
        Whether the input had rows for leaves only.
    weights : dict
        Of the cells, as they were.
    records : list
        What the method wants to remember of each level.
    """

    layer: _TreeLayer
    trees: Trees
    leaves_only: bool
    weights: Weights
    records: list[Any]


class _TreeLayer(Layer):
    """What `TreeLSTM` and `RecursiveNetwork` share."""

    _DEFAULTS: ClassVar[dict[str, object]]
    stackable = False
    # Whether inner nodes may have inputs.
    _inner_inputs: ClassVar[bool]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        seed: int | np.random.Generator | None,
        dtype: DTypeLike,
    ) -> None:
        super().__init__()
        self.input_size = functional.integer("input_size", input_size, 1)
        self.hidden_size = functional.integer("hidden_size", hidden_size, 1)
        self.bias = functional.boolean("bias", bias)
        self.dtype = functional.float_dtype("dtype", dtype)
        generator = functional.generator("seed", seed)
        self._start()
        shapes = self._method.shapes()
        if not self.bias:
            del shapes["bias"]
        self._parameters = initializers.initialize(
            "torch", shapes, self.hidden_size, generator, self.dtype
        )

    def _make_method(self) -> _Method:
        raise NotImplementedError

    def _start(self) -> None:
        self._method = self._make_method()

    def _pack(self) -> None:
        for name, weights in self._method.assemble(self._parameters).items():
            self._method.cells[name].pack(weights)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for array in self._parameters.values():
            array.flags.writeable = mode
        if not mode:
            self._pack()
        return self

    def __call__(self, x: SupportsArray, trees: Trees) -> Any:  # type: ignore[override]
        """Run over trees, without keeping what `backward` needs.

        Parameters
        ----------
        x, trees
            As in `forward`.

        Returns
        -------
        h : ndarray (N, H)
            Output of all nodes, see `Trees.roots` for that of roots.
        c : ndarray (N, H)
            Of `TreeLSTM` only: their cells.
        """
        rows, _ = self._read(x, trees)
        if self._training:
            self._pack()
        states, _ = self._climb(None, rows, trees)
        return states if len(states) > 1 else states[0]

    # The trees stand where a sequence has its state and lengths.
    def forward(  # type: ignore[override]
        self, x: SupportsArray, trees: Trees
    ) -> tuple[FloatArray, FloatArray | None, Any]:
        """Run over trees, and keep what `backward` needs.

        Parameters
        ----------
        x : array (N, I) or (leaves, I)
            Input of all nodes, or of the leaves only, in the order of their numbers; other nodes
            then have zeros. `RecursiveNetwork` takes leaves only. Of the layer's dtype.
        trees : Trees
            The trees.

        Returns
        -------
        h : ndarray (N, H)
            Output of all nodes, see `Trees.roots` for that of roots.
        c : ndarray (N, H) or None
            Their cells, None of `RecursiveNetwork`.
        tape
            What `backward` needs. Several can be open. It does not refer to `x` and to the
            parameters, which may change.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit, or a node has more or fewer children than the layer can have.
        """
        rows, leaves_only = self._read(x, trees)
        weights = self._method.assemble(self._parameters)
        (h, *rest), records = self._climb(weights, rows, trees)
        return h, rest[0] if rest else None, _TreeTape(self, trees, leaves_only, weights, records)

    def backward(
        self,
        tape: Any,
        grad_output: Any = None,
        grad_state: Any = None,
        *,
        input_grad: bool = True,
    ) -> Gradients:
        """Backpropagate through structure [1]_: differentiate the call that made a tape.

        Parameters
        ----------
        tape
            Of this layer's `forward`. It is consumed.
        grad_output : array (N, H), optional
            Gradient dL/dh of a loss L, zero by default. See `Trees.roots_backward`.
        grad_state : array (N, H), optional
            Gradient dL/dc of the cells of `TreeLSTM`, zero by default.
        input_grad : bool, default True
            Whether dL/dx is wanted.

        Returns
        -------
        Gradients
            dL/dx, laid out as x, None for the state, and dL/d(parameters).

        Raises
        ------
        ValueError, TypeError
            If a gradient does not fit, or the tape is another layer's or consumed.

        References
        ----------
        .. [1] C. Goller, A. Küchler. Learning task-dependent distributed representations by
               backpropagation through structure. ICNN 1996.
        """
        if not isinstance(tape, _TreeTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape.layer is not self:
            raise ValueError("tape: expected one that this layer made, got another layer's")
        input_grad = functional.boolean("input_grad", input_grad)
        if grad_state is not None and self._method.parts == 1:
            raise ValueError(
                f"grad_state: expected None of {type(self).__name__}, which has no cells"
            )
        trees, records = tape.trees, tape.records
        named = (("grad_output", grad_output), ("grad_state", grad_state))
        grads = tuple(
            self._read_gradient(name, given, trees) for name, given in named[: self._method.parts]
        )
        if not records:
            raise ValueError("tape: expected one that is open, got one that backward consumed")
        sink = _Sink(self._method.cells, tape.weights, input_grad)
        grad_rows = np.zeros((trees.nodes, self.input_size), self.dtype)
        for level in reversed(trees._levels):
            grad_x = self._method.backward(sink, level, records.pop(), grads)
            if grad_x is not None:
                grad_rows[level.rows] = grad_x
        gradients = self._method.take_apart(sink.totals)
        grad_input = None
        if input_grad:
            leaves = len(trees.leaf)
            grad_input = grad_rows[:leaves].copy() if tape.leaves_only else grad_rows[trees._row]
        return Gradients(grad_input, None, {name: gradients[name] for name in self._parameters})

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.hidden_size)

    def multiply_adds(self, shape: Shape) -> int:
        """Return how many multiplications with weights a node takes that has all its children.

        Parameters
        ----------
        shape : tuple
            Of the input.

        Returns
        -------
        int
            That of a node with one child for ``kind="child_sum"``, else of one with two.
        """
        return sum(array.size for array in self._parameters.values() if array.ndim == 2)

    @property
    def stepwise(self) -> bool:
        """False: there are no steps."""
        return False

    def _read(self, x: SupportsArray, trees: Trees) -> tuple[FloatArray, bool]:
        """Return the input (N, I) by height, and whether only leaves have one."""
        if not isinstance(trees, Trees):
            raise TypeError(f"trees: expected Trees, got {type(trees).__name__}")
        self._method.check(trees)
        array = functional.view("x", x)
        N, leaves = trees.nodes, len(trees.leaf)
        counts = (N, leaves) if self._inner_inputs else (leaves,)
        allowed = [(count, self.input_size) for count in dict.fromkeys(counts)]
        if array.dtype != self.dtype or array.shape not in allowed:
            raise ValueError(
                f"x: expected {' or '.join(map(str, allowed))} {self.dtype}, got {array.shape}"
                f" {array.dtype}"
            )
        if len(array) == N and self._inner_inputs:
            return array[trees._by_height], False
        rows = np.zeros((N, self.input_size), self.dtype)
        rows[:leaves] = array
        return rows, True

    def _read_gradient(self, name: str, given: Any, trees: Trees) -> FloatArray:
        """Return a gradient by height, with a row for missing children."""
        shape = (trees.nodes, self.hidden_size)
        result = np.zeros((shape[0] + 1, shape[1]), self.dtype)
        if given is not None:
            array = functional.view(name, given)
            if array.shape != shape or array.dtype != self.dtype:
                raise ValueError(
                    f"{name}: expected {shape} {self.dtype}, got {array.shape} {array.dtype}"
                )
            result[:-1] = array[trees._by_height]
        return result

    def _climb(
        self, weights: Weights | None, rows: FloatArray, trees: Trees
    ) -> tuple[tuple[FloatArray, ...], list[Any]]:
        """Run from the leaves to the roots; None uses the packed weights."""
        states = tuple(
            np.zeros((trees.nodes + 1, self.hidden_size), self.dtype)
            for _ in range(self._method.parts)
        )
        records = []
        for level in trees._levels:
            record = self._method.forward(weights, level, rows[level.rows], states)
            if weights is not None:  # or nothing will go back
                records.append(record)
        return tuple(state[trees._row] for state in states), records

    def __repr__(self) -> str:
        shown = [str(self.hidden_size)]
        if self._inner_inputs:
            shown.insert(0, str(self.input_size))
        for name, default in self._DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={value!r}")
        if self.dtype != np.float32:
            shown.append(f"dtype={self.dtype.name!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_method"]  # made anew
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Copies, because an array that was pickled read-only can never be made writable.
        self._parameters = self.state_dict()
        self._start()
        self.train(self._training)


class TreeLSTM(_TreeLayer):
    """LSTM on trees [1]_: a node reads its input and the states of its children.

    Each child k has a forget gate f_k of its own, and c = i * u + sum_k f_k * c_k,
    h = o * tanh(c). With ``kind="child_sum"``, i, o and u see the sum of the children's h, and f_k
    sees h_k; the order of the children does not matter, nor does their number. With
    ``kind="binary"`` all gates see the h of a left and a right child, with weights of their own;
    what a node lacks is zero, an only child is the left one.

    Parameters
    ----------
    input_size : int
        Inputs I.
    hidden_size : int
        Hidden units H.
    kind : {"child_sum", "binary"}, default "child_sum"
        How the states of children join.
    bias : bool, default True
        Whether the gates have biases.
    seed : int or numpy.random.Generator, optional
        Source of the initial parameters, from U(-1/sqrt(H), 1/sqrt(H)); fresh entropy by default.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    The parameters are ``weight_ih`` (4·H, I) and ``bias`` (4·H), in the order i, f, u, o, and
    ``weight_hh``. Of ``"child_sum"`` it is (4·H, H) in the same order, so that on a chain of only
    children the layer is an `LSTM` with the same weights. Of ``"binary"`` it is (5·H, 2·H): rows in
    the order i, f of the left child, f of the right child, u, o; the first H columns for h of the
    left child, the others for that of the right one.

    All nodes of one height run as one step of the engine's kernels, whichever trees they are of:
    the time is that of the highest tree's levels, and trees of similar height batch best.

    References
    ----------
    .. [1] K. S. Tai, R. Socher, C. D. Manning. Improved semantic representations from
           tree-structured long short-term memory networks. ACL 2015.

    Examples
    --------
    >>> trees = Trees.from_nested([((0, 1), 2), (2, 0)])
    >>> vectors = np.eye(3, 8, dtype=np.float32)
    >>> layer = TreeLSTM(8, 16, kind="binary", seed=0)
    >>> h, c, tape = layer.forward(vectors[list(trees.leaves)], trees)
    >>> h.shape, trees.roots(h).shape
    ((8, 16), (2, 16))
    >>> g = layer.backward(tape, trees.roots_backward(np.ones((2, 16), np.float32)))
    >>> g.input.shape, g.parameters["weight_hh"].shape
    ((5, 8), (80, 32))
    """

    _DEFAULTS: ClassVar[dict[str, object]] = {"kind": "child_sum", "bias": True}
    _inner_inputs = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kind: str = "child_sum",
        *,
        bias: bool = True,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.kind = functional.choice("kind", kind, ("child_sum", "binary"))
        super().__init__(input_size, hidden_size, bias, seed, dtype)

    def _make_method(self) -> _Method:
        method = _ChildSum if self.kind == "child_sum" else _Binary
        return method(self.input_size, self.hidden_size, self.dtype)


class RecursiveNetwork(_TreeLayer):
    """Recursive network [1]_: two children with vectors a and b have the parent f(W·[a; b] + b).

    Every node has two children or none. Leaves have vectors of size H, which are the input.

    Parameters
    ----------
    hidden_size : int
        Units H of every node.
    nonlinearity : {"tanh", "relu", "sigmoid"}, default "tanh"
        The function f.
    bias : bool, default True
        Whether there is a bias.
    seed : int or numpy.random.Generator, optional
        Source of the initial parameters, from U(-1/sqrt(H), 1/sqrt(H)); fresh entropy by default.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
        Type of parameters, inputs and outputs.

    Notes
    -----
    The parameters are ``weight`` (H, 2·H), its first H columns for the left child, and ``bias``
    (H,). All nodes of one height run as one step of the engine's kernels.

    References
    ----------
    .. [1] R. Socher, C. C. Lin, A. Y. Ng, C. D. Manning. Parsing natural scenes and natural
           language with recursive neural networks. ICML 2011.

    Examples
    --------
    >>> trees = Trees.from_nested([((0, 1), 2)])
    >>> layer = RecursiveNetwork(3, seed=0, dtype=np.float64)
    >>> x = np.eye(3)
    >>> h = layer(x, trees)
    >>> W, b = layer.parameters["weight"], layer.parameters["bias"]
    >>> lower = np.tanh(W @ np.concatenate([x[0], x[1]]) + b)
    >>> bool(np.allclose(h[0], np.tanh(W @ np.concatenate([lower, x[2]]) + b)))
    True
    """

    _DEFAULTS: ClassVar[dict[str, object]] = {"nonlinearity": "tanh", "bias": True}
    _inner_inputs = False

    def __init__(
        self,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        seed: int | np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.nonlinearity = functional.choice(
            "nonlinearity", nonlinearity, ("tanh", "relu", "sigmoid")
        )
        super().__init__(hidden_size, hidden_size, bias, seed, dtype)

    def _make_method(self) -> _Method:
        return _Merge(self.hidden_size, self.nonlinearity, self.dtype)
