// The gradient of a weight matrix: the sum over all rows (time steps x batch) of slot gradients times what
// the product read, as an outer product per row. Both sides are packed for a chunk of rows at a time,
// which makes every read of the loop below consecutive; layouts and their only reader.
//
// A tile is `block` units by NP vectors of columns, whose sums over a chunk stay in registers: one chain of
// fused multiply-adds over the rows in their order, then one addition to the sum of the chunks before.
#pragma once

#include "gemm.h"

namespace fastrnn::FASTRNN_TARGET {

template <class T>
struct OuterTile {
  static constexpr int lanes = Vec<T>::lanes;
  static constexpr int widest = accumulators == 24 ? 8 : 4;
  static constexpr int block = lanes < widest ? lanes : widest;
  static constexpr int vectors = accumulators / block < 6 ? accumulators / block : 6;
};

// [vector][block of units][row][unit]
template <class T>
void pack_slots(const PackSlotsArguments<T>& p) {
  using V = Vec<T>;
  constexpr int block = OuterTile<T>::block;
  constexpr std::int64_t together = 16;  // rows at a time: their pages stay in the first-level TLB
  for (std::int64_t first = 0; first < p.rows; first += together) {
    const std::int64_t last = first + together < p.rows ? first + together : p.rows;
    for (std::int64_t v = 0; v < p.count; ++v) {
      V sum = V::load(p.sums + v * V::lanes);
      for (std::int64_t row = first; row < last; ++row) {
        const T* slot = p.slots + row * p.slots_stride + v * V::lanes;
        __builtin_prefetch(slot + together * p.slots_stride);
        sum = sum + V::load(slot);
#pragma GCC unroll 4
        for (int part = 0; part < V::lanes / block; ++part) {
          T* packed = p.packed + ((v * (V::lanes / block) + part) * p.rows + row) * block;
          __builtin_memcpy(packed, slot + part * block, block * sizeof(T));
        }
      }
      sum.store(p.sums + v * V::lanes);
    }
  }
}

template <class T>
void pack_columns(const PackColumnsArguments<T>& p) {
  using V = Vec<T>;
  constexpr std::int64_t together = 16;
  for (std::int64_t first = 0; first < p.rows; first += together) {
    const std::int64_t last = first + together < p.rows ? first + together : p.rows;
    for (std::int64_t v = p.first; v < p.first + p.count; ++v) {
      const std::int64_t exist = p.columns - v * V::lanes;
      for (std::int64_t row = first; row < last; ++row) {
        const T* x = p.x[row] + v * V::lanes;
        if (row + together < p.rows) __builtin_prefetch(p.x[row + together] + v * V::lanes);
        V value = V::load_up_to(x, exist);
        if (p.scale) value = value * V::load_up_to(p.scale[row] + v * V::lanes, exist);
        value.store(p.packed + (v * p.rows + row) * V::lanes);
      }
    }
  }
}

template <int NP, class T>
FASTRNN_INLINE void outer_tile(const OuterArguments<T>& o, std::int64_t v, int part,
                               std::int64_t column_vector) {
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  constexpr int block = OuterTile<T>::block;
  const int units = o.units[v] - part * block < block ? o.units[v] - part * block : block;
  if (units <= 0) return;
  const std::int64_t column = column_vector * lanes;
  const std::int64_t exist = o.columns - column;
  T* const out = o.out[v] + part * block * o.columns + column;

  V sum[block][NP];
#pragma GCC unroll 8
  for (int m = 0; m < block; ++m) {
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
      sum[m][p] = V(T(0));
      if (o.accumulate) __builtin_prefetch(out + m * o.columns + p * lanes, 1);
    }
  }
  const T* left = o.left + (v * (lanes / block) + part) * o.rows * block;
  const T* right = o.right + column_vector * o.rows * lanes;
  for (std::int64_t row = 0; row < o.rows; ++row) {
    V w[NP];
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) w[p] = V::load(right + (p * o.rows + row) * lanes);
#pragma GCC unroll 8
    for (int m = 0; m < block; ++m) {
      const V x(left[row * block + m]);
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) sum[m][p] = multiply_add(x, w[p], sum[m][p]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < block; ++m) {
    if (m >= units) break;
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
      T* end = out + m * o.columns + p * lanes;
      const std::int64_t left_over = exist - p * lanes;
      if (o.accumulate) sum[m][p] = V::load_up_to(end, left_over) + sum[m][p];
      sum[m][p].store_up_to(end, left_over);
    }
  }
}

template <int NP, class T>
FASTRNN_INLINE void outer_tiles(const OuterArguments<T>& o, std::int64_t column_vector) {
  for (std::int64_t v = 0; v < o.count; ++v) {
    if (!o.out[v]) continue;
    for (int part = 0; part < Vec<T>::lanes / OuterTile<T>::block; ++part) {
      outer_tile<NP>(o, v, part, column_vector);
    }
  }
}

// Columns outside: their few vectors stay in the nearest cache while all units pass.
template <class T>
void outer(const OuterArguments<T>& o) {
  constexpr int most = OuterTile<T>::vectors;
  const std::int64_t all = (o.columns + Vec<T>::lanes - 1) / Vec<T>::lanes;
  for (std::int64_t done = 0; done < all;) {
    const std::int64_t groups = (all - done + most - 1) / most;
    const std::int64_t count = (all - done + groups - 1) / groups;
    if constexpr (most > 3) {
      if (count == 6) outer_tiles<6>(o, done);
      if (count == 5) outer_tiles<5>(o, done);
      if (count == 4) outer_tiles<4>(o, done);
    }
    if (count == 3) outer_tiles<3>(o, done);
    if (count == 2) outer_tiles<2>(o, done);
    if (count == 1) outer_tiles<1>(o, done);
    done += count;
  }
}

// Lane by lane: weight_peep acts on a unit's own cell state.
template <class T>
void peephole(const PeepholeArguments<T>& a) {
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  const int slots = a.slots_per_unit;
  for (std::int64_t panel = 0; panel < a.panels; ++panel) {
    T* const sums = a.sums + panel * 3 * lanes;
    V i = V::load(sums), f = V::load(sums + lanes), o = V::load(sums + 2 * lanes);
    for (std::int64_t row = 0; row < a.rows; ++row) {
      const T* slot = a.slots + row * a.slots_stride + panel * slots * lanes;
      const V before = V::load(a.c_previous[row] + panel * lanes);
      i = multiply_add(V::load(slot), before, i);
      if (slots == 4) f = multiply_add(V::load(slot + lanes), before, f);
      o = multiply_add(V::load(slot + (slots - 1) * lanes), V::load(a.c + row * a.c_stride + panel * lanes),
                       o);
    }
    i.store(sums);
    f.store(sums + lanes);
    o.store(sums + 2 * lanes);
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
