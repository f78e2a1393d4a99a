// The affine map of rows, y = W·x + b, forward and backward, on the kernels of the engine: layers that are
// not recurrent need no other library, whose threads would still be spinning when ours begin.
#pragma once

#include <cstdint>

namespace fastrnn {

// Sizes of an affine map: x is (rows, columns), W is (units, columns), y is (rows, units). All arrays are
// contiguous and row-major, outputs overlap nothing, and any size may be 0.
struct AffineShape {
  std::int64_t rows, columns, units;
};

// y = x·Wᵀ + bias; without `bias` (units) if it is null. Every element is one chain of multiply-adds over
// ascending columns that begins with the bias, so no bit of a row depends on other rows or on threads.
template <class T>
void affine(const AffineShape& shape, const T* x, const T* weight, const T* bias, T* y);

// grad_x = grad_y·W, unless grad_x is null; grad_weight = grad_yᵀ·x; grad_bias = the sum of the rows of
// grad_y, unless it is null. Rows are added up in their order, in chunks that follow from the shape.
template <class T>
void affine_backward(const AffineShape& shape, const T* x, const T* weight, const T* grad_y, T* grad_x,
                     T* grad_weight, T* grad_bias);

}  // namespace fastrnn
