// The products that the driver asks of a device, and what they are for a library of column-major products.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace fastrnn {

// out = op(left) op(right) + beta out, row-major, for each of `count` triples of matrices: op(left) is
// (rows, depth) and op(right) is (depth, columns). A stride is the distance of two rows as they lie. With
// beta 0 what `out` held does not matter. No matrix overlaps an output. Sums are in MathOf<Out>.
template <class In, class Out>
struct Product {
  std::int64_t rows = 0, columns = 0, depth = 0;
  bool transpose_left = false, transpose_right = false;
  std::int64_t left_stride = 0, right_stride = 0, out_stride = 0;
  int count = 1;
  const In* left[2] = {};
  const In* right[2] = {};
  Out* out[2] = {};
  MathOf<Out> beta = 0;
  bool tf32 = false;  // operands in float32 may be rounded to 10 bits
};

// c = op(a) op(b) + beta c, column-major: op(a) is (m, k) and op(b) is (k, n); a leading dimension is the
// distance of two columns as they lie. The matrices of a batch are a step apart, 0 or more elements.
template <class In, class Out>
struct ColumnMajorProduct {
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
  const In* a;
  std::int64_t a_leading, a_step;
  const In* b;
  std::int64_t b_leading, b_step;
  Out* c;
  std::int64_t c_leading, c_step;
  int count;
  MathOf<Out> beta;
  bool tf32;
};

// In elements, of a type whose pointers may belong to different arrays.
template <class X>
std::int64_t distance(const X* from, const X* to) {
  const auto bytes = reinterpret_cast<std::intptr_t>(to) - reinterpret_cast<std::intptr_t>(from);
  return static_cast<std::int64_t>(bytes / static_cast<std::intptr_t>(sizeof(X)));
}

// Calls multiply with one batch, or with one product after the other. Seen as column-major, a row-major
// matrix is its transpose; so the product of the transposes in turn is what is wanted. Two triples of
// matrices anywhere make a batch if all three second ones lie behind the first ones, or all before, and a
// whole number of elements apart.
template <class In, class Out, class Multiply>
void as_column_major(const Product<In, Out>& p, const Multiply& multiply) {
  const auto batch = [&](int first, int count, std::int64_t left, std::int64_t right, std::int64_t out) {
    multiply(ColumnMajorProduct<In, Out>{p.transpose_right, p.transpose_left, p.columns, p.rows, p.depth,
                                         p.right[first], p.right_stride, right, p.left[first], p.left_stride,
                                         left, p.out[first], p.out_stride, out, count, p.beta, p.tf32});
  };
  if (p.count == 1) return batch(0, 1, 0, 0, 0);
  const std::int64_t left = distance(p.left[0], p.left[1]), right = distance(p.right[0], p.right[1]);
  const std::int64_t out = distance(p.out[0], p.out[1]);
  const bool whole = p.left[0] + left == p.left[1] && p.right[0] + right == p.right[1];
  if (whole && left >= 0 && right >= 0 && out > 0) return batch(0, 2, left, right, out);
  if (whole && left <= 0 && right <= 0 && out < 0) return batch(1, 2, -left, -right, -out);
  batch(0, 1, 0, 0, 0);
  batch(1, 1, 0, 0, 0);
}

}  // namespace fastrnn
