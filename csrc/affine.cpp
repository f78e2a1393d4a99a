#include "affine.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"
#include "partition.h"
#include "storage.h"

namespace fastrnn {
namespace {

constexpr std::int64_t block_rows = 64;   // whose part of the left side stays in L2 while all weights pass
constexpr std::int64_t unit_vectors = 4;  // of the gradient of the weight at a time
constexpr std::int64_t held_bytes = 256 * 1024, least_chunk = 64, most_chunk = 512;
constexpr std::int64_t rows_to_share = 8;  // for each thread, or they share the units
constexpr double worth_threads = 30000;    // cycles of one thread

std::int64_t vectors_of(std::int64_t size, int lanes) { return (size + lanes - 1) / lanes; }

// Multiply-adds of one thread take half a cycle per vector, packing the weights takes one.
double cycles(const AffineShape& shape, int lanes, int products) {
  const auto vectors = static_cast<double>(shape.columns * vectors_of(shape.units, lanes));
  return static_cast<double>(products) * vectors * (static_cast<double>(shape.rows) / 2 + 1);
}

Team make_team(double cycles_alone) {
  return Team(cycles_alone < worth_threads ? 1 : num_threads(), cycles_alone / 4e9);
}

// Rows of out = start + a·W by blocks, where packed is W as the right side, [panel][k][lane].
template <class T>
struct RowProduct {
  const Kernels<T>& kernels;
  const T* a;  // (rows, depth)
  std::int64_t depth;
  const T* packed;
  const T* start;  // (columns) or null: zeros
  T* out;          // (rows, columns)
  std::int64_t columns;

  void run(const Range& own, const Range& panels) const {
    const std::int64_t column = panels.first * kernels.lanes;
    const std::int64_t count = std::min(columns - column, panels.count * kernels.lanes);
    T* out_rows[block_rows];
    for (std::int64_t first = own.first; first < own.first + own.count; first += block_rows) {
      const std::int64_t rows = std::min(block_rows, own.first + own.count - first);
      for (std::int64_t i = 0; i < rows; ++i) {
        out_rows[i] = out + (first + i) * columns + column;
        if (start) {
          std::copy_n(start + column, count, out_rows[i]);
        } else if (depth == 0) {
          std::fill_n(out_rows[i], count, T(0));
        }
      }
      if (depth == 0) continue;  // nothing for a kernel to do
      kernels.product({rows, panels.count, count, a + first * depth, depth, 1, depth, 0,
                       packed + column * depth, out_rows, start != nullptr, false});
    }
  }
};

// What the threads of the gradient of the weight share.
template <class T>
struct WeightGradient {
  const Kernels<T>& kernels;
  const AffineShape& shape;
  const T *x, *grad_y;
  T *grad_weight, *grad_bias;
  std::int64_t chunk;
  T* right;          // x of a chunk, packed
  const T** rows;    // pointers to it
  T *padded, *left;  // for each thread (chunk, unit_vectors, lanes): grad_y of a chunk, and packed
  T* sums;           // (units, whole vectors)

  void run(int thread, int threads, Barrier& barrier) const {
    const int lanes = kernels.lanes;
    const Range own = part_of(vectors_of(shape.units, lanes), threads, thread);
    const Range own_columns = part_of(vectors_of(shape.columns, lanes), threads, thread);
    std::fill_n(sums + own.first * lanes, own.count * lanes, T(0));
    for (std::int64_t n = 0; n < shape.rows; n += chunk) {
      const std::int64_t count = std::min(chunk, shape.rows - n);
      if (thread == 0) {
        for (std::int64_t i = 0; i < count; ++i) rows[i] = x + (n + i) * shape.columns;
      }
      barrier.wait(thread);
      kernels.pack_columns(
          {rows, nullptr, count, shape.columns, own_columns.first, own_columns.count, right});
      barrier.wait(thread);
      for (std::int64_t v = own.first; v < own.first + own.count; v += unit_vectors) {
        add_units(thread, n, count, v, std::min(unit_vectors, own.first + own.count - v));
      }
      barrier.wait(thread);
    }
    const std::int64_t first = own.first * lanes;
    const std::int64_t last = std::min(shape.units, (own.first + own.count) * lanes);
    if (shape.rows == 0 && first < last) {
      std::fill_n(grad_weight + first * shape.columns, (last - first) * shape.columns, T(0));
    }
    if (grad_bias && first < last) std::copy(sums + first, sums + last, grad_bias + first);
  }

 private:
  // Adds rows [n, n + count) to the gradient of some vectors of units.
  void add_units(int thread, std::int64_t n, std::int64_t count, std::int64_t v, std::int64_t vectors) const {
    const int lanes = kernels.lanes;
    const std::int64_t own = thread * chunk * unit_vectors * lanes, stride = vectors * lanes;
    const std::int64_t first = v * lanes, exist = std::min(stride, shape.units - first);
    for (std::int64_t i = 0; i < count; ++i) {
      T* const row = padded + own + i * stride;
      std::copy_n(grad_y + (n + i) * shape.units + first, exist, row);
      std::fill_n(row + exist, stride - exist, T(0));
    }
    kernels.pack_slots({count, vectors, padded + own, stride, left + own, sums + first});
    T* out[unit_vectors];
    int units[unit_vectors];
    for (std::int64_t i = 0; i < vectors; ++i) {
      out[i] = grad_weight + (first + i * lanes) * shape.columns;
      units[i] = static_cast<int>(std::min<std::int64_t>(lanes, shape.units - first - i * lanes));
    }
    kernels.outer({count, vectors, shape.columns, left + own, right, out, units, n > 0});
  }
};

// The chunk follows from the shape alone, since its size is seen in the last bits.
template <class T>
std::int64_t chunk_rows(const AffineShape& shape, int lanes) {
  const std::int64_t row_bytes =
      std::max<std::int64_t>(1, vectors_of(shape.columns, lanes)) * lanes * std::int64_t{sizeof(T)};
  return std::clamp(held_bytes / row_bytes, least_chunk, most_chunk);
}

}  // namespace

template <class T>
void affine(const AffineShape& shape, const T* x, const T* weight, const T* bias, T* y) {
  const Kernels<T>& kernels = kernel_table().of<T>();
  const std::int64_t panels = vectors_of(shape.units, kernels.lanes);
  Storage storage;
  T* const packed =
      Arena(storage.reserve(static_cast<std::size_t>(panels * shape.columns * kernels.lanes + 1) * sizeof(T)))
          .template take<T>(panels * shape.columns * kernels.lanes);
  Team team = make_team(cycles(shape, kernels.lanes, 1));
  Barrier barrier(team.size());
  const RowProduct<T> product{kernels, x, shape.columns, packed, bias, y, shape.units};
  team.run([&](int thread) {
    const Range own = part_of(panels, team.size(), thread);
    kernels.pack({weight, shape.units, shape.columns, 0, 1, own.first, own.count, packed});
    if (shape.rows < rows_to_share * team.size()) {  // each multiplies what it has packed
      product.run({0, shape.rows}, own);
    } else {
      barrier.wait(thread);
      product.run(part_of(shape.rows, team.size(), thread), {0, panels});
    }
  });
}

template <class T>
void affine_backward(const AffineShape& shape, const T* x, const T* weight, const T* grad_y, T* grad_x,
                     T* grad_weight, T* grad_bias) {
  const Kernels<T>& kernels = kernel_table().of<T>();
  const int lanes = kernels.lanes;
  const std::int64_t panels = vectors_of(shape.columns, lanes);
  Team team = make_team(cycles(shape, lanes, grad_x ? 2 : 1));
  Barrier barrier(team.size());
  WeightGradient<T> gradient{
      kernels, shape,   x,       grad_y,  grad_weight, grad_bias, chunk_rows<T>(shape, lanes),
      nullptr, nullptr, nullptr, nullptr, nullptr};
  T* packed = nullptr;
  const T** weight_rows = nullptr;
  const auto lay_out = [&](Arena arena) {
    gradient.right = arena.take<T>(panels * lanes * gradient.chunk);
    gradient.rows = arena.take<const T*>(gradient.chunk);
    gradient.padded = arena.take<T>(team.size() * gradient.chunk * unit_vectors * lanes);
    gradient.left = arena.take<T>(team.size() * gradient.chunk * unit_vectors * lanes);
    gradient.sums = arena.take<T>(vectors_of(shape.units, lanes) * lanes);
    packed = arena.take<T>(grad_x ? panels * shape.units * lanes : 0);
    weight_rows = arena.take<const T*>(grad_x ? shape.units : 0);
    return arena.used();
  };
  Storage storage;
  lay_out(Arena(storage.reserve(lay_out(Arena()))));
  for (std::int64_t u = 0; grad_x && u < shape.units; ++u) weight_rows[u] = weight + u * shape.columns;
  team.run([&](int thread) {
    if (grad_x) {
      const Range own = part_of(panels, team.size(), thread);
      kernels.pack_columns({weight_rows, nullptr, shape.units, shape.columns, own.first, own.count, packed});
      barrier.wait(thread);
      RowProduct<T>{kernels, grad_y, shape.units, packed, nullptr, grad_x, shape.columns}.run(
          part_of(shape.rows, team.size(), thread), {0, panels});
    }
    gradient.run(thread, team.size(), barrier);
  });
}

template void affine(const AffineShape&, const float*, const float*, const float*, float*);
template void affine(const AffineShape&, const double*, const double*, const double*, double*);
template void affine_backward(const AffineShape&, const float*, const float*, const float*, float*, float*,
                              float*);
template void affine_backward(const AffineShape&, const double*, const double*, const double*, double*,
                              double*, double*);

}  // namespace fastrnn
