// Weight packing and the register-blocked product that reads it: a layout and its only reader.
//
// Packed weights are [panel][k][gate][lane]. A tile is MR rows by NP panels; its MR * NP * G
// accumulators stay in registers for the whole k loop. Every element is one chain of fused
// multiply-adds over ascending k, whatever the tile: so the result of a row does not depend on the
// rows around it, on the thread that computes it, or on the tile it falls into.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace fastrnn::FASTRNN_TARGET {

template <class T>
void pack(const PackArguments<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  constexpr int block = 64 / sizeof(T);  // k per visit: one cache line of each weight row
  for (std::int64_t panel = p.first_panel; panel < p.first_panel + p.panels; ++panel) {
    T* packed = p.packed + panel * p.columns * p.gates * lanes;
    for (std::int64_t k0 = 0; k0 < p.columns; k0 += block) {
      const std::int64_t k1 = k0 + block < p.columns ? k0 + block : p.columns;
      for (int gate = 0; gate < p.gates; ++gate) {
        for (int lane = 0; lane < lanes; ++lane) {
          const std::int64_t unit = panel * lanes + lane;
          const T* row = p.weight + ((p.first_gate + gate) * p.units + unit) * p.columns;
          for (std::int64_t k = k0; k < k1; ++k) {
            packed[(k * p.gates + gate) * lanes + lane] = unit < p.units ? row[k] : T(0);
          }
        }
      }
    }
  }
}

// accumulator[m][p * G + g] += sum_k a[m][k] * weight[p][k][g]
template <int MR, int NP, int G, class T>
FASTRNN_INLINE void multiply(Vec<T> (&accumulator)[MR][NP * G], const T* const (&a)[MR], const T* weight,
                             std::int64_t columns) {
  using V = Vec<T>;
  const std::int64_t panel_stride = columns * G * V::lanes;
  for (std::int64_t k = 0; k < columns; ++k) {
    V w[NP * G];
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p) {
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        w[p * G + g] = V::load(weight + p * panel_stride + (k * G + g) * V::lanes);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V x(a[m][k]);
#pragma GCC unroll 16
      for (int j = 0; j < NP * G; ++j) {
        accumulator[m][j] = multiply_add(x, w[j], accumulator[m][j]);
      }
    }
  }
}

// Registers for accumulators: the rest holds NP * G weights and one broadcast value.
constexpr int accumulators = vector_registers == 32 ? 24 : 12;

template <int G>
constexpr int max_tile_rows() {
  constexpr int fit = accumulators / G;
  return fit > 8 ? (G == 1 ? 6 : 8) : fit;
}

// Where the accumulators of a tile begin, and how their results lie.
template <class T>
struct TileStart {
  const T* base;
  std::int64_t row_stride, panel_stride;
  int gate_offset[4];
};

// Lane-wise math on slots that were just formed.
template <class T>
using Finish = void (*)(const ProductArguments<T>&, std::int64_t row, std::int64_t rows, std::int64_t panel,
                        std::int64_t panels);

template <class T, int G>
struct Tile {
  const ProductArguments<T>& p;
  const TileStart<T> start;
  const int (&slot_of)[4];

  template <int MR, int NP>
  FASTRNN_INLINE void run(std::int64_t row, std::int64_t panel) const {
    using V = Vec<T>;
    constexpr int lanes = V::lanes;
    const T* operand[MR];
    V sum[MR][NP * G];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      operand[m] = p.operand_rows ? p.operand_rows[row + m] : p.operand + (row + m) * p.operand_stride;
#pragma GCC unroll 8
      for (int n = 0; n < NP; ++n) {
        const T* from = start.base + (row + m) * start.row_stride + (panel + n) * start.panel_stride;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[m][n * G + g] = V::load(from + start.gate_offset[g]);
      }
    }
    multiply<MR, NP, G>(sum, operand, p.weight + panel * p.columns * G * lanes, p.columns);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < NP; ++n) {
        T* to = p.slots + (row + m) * p.slots_stride + (panel + n) * p.slots_per_unit * lanes;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[m][n * G + g].store(to + slot_of[g] * lanes);
      }
    }
  }
};

template <int MR, int NP, int G, class Tile>
FASTRNN_INLINE bool run_tile(const Tile& tile, std::int64_t rows, std::int64_t row, std::int64_t panel) {
  if constexpr (MR * NP * G <= accumulators) {
    if (rows == MR) {
      tile.template run<MR, NP>(row, panel);
      return true;
    }
  }
  if constexpr (MR > 1) return run_tile<MR - 1, NP, G>(tile, rows, row, panel);
  return false;
}

// Visits rows x panels in tiles, and calls finish(row, rows, panel, panels) on what is complete: panels
// outside (a panel's weights stay in the nearest cache while the rows pass), rows inside, in tiles of nearly
// equal height.
template <int G, class Tile, class Finish>
FASTRNN_INLINE void for_each_tile(const Tile& tile, std::int64_t rows, std::int64_t panels,
                                  std::int64_t columns, bool descending, const Finish& finish) {
  if (rows == 0) return;
  constexpr int max_rows = max_tile_rows<G>();
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows;
  const std::int64_t height = rows / tiles, taller = rows % tiles;
  const std::int64_t tallest = height + (taller > 0);
  // Few rows do not fill the registers: take several panels at once. A single row is bound by the
  // stream of weights, and wants no more streams than just hide the latency of a multiply-add, unless
  // the weights stay in L1.
  constexpr std::int64_t l1_bytes = 40 * 1024;
  const bool streams = panels * G * columns * vector_bytes > l1_bytes;
  const std::int64_t wanted = tallest > 1 ? accumulators : streams ? accumulators / 4 : accumulators / 2;
  int together = 8;
  while (together > 1 && tallest * together * G > wanted) together /= 2;

  for (std::int64_t done = 0; done < panels;) {
    std::int64_t count = together;
    while (count > panels - done) count /= 2;
    const std::int64_t panel = descending ? panels - done - count : done;
    std::int64_t row = 0, finished = 0;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t now = height + (t < taller);
      switch (count) {
        case 8:
          run_tile<max_rows, 8, G>(tile, now, row, panel);
          break;
        case 4:
          run_tile<max_rows, 4, G>(tile, now, row, panel);
          break;
        case 2:
          run_tile<max_rows, 2, G>(tile, now, row, panel);
          break;
        default:
          run_tile<max_rows, 1, G>(tile, now, row, panel);
      }
      row += now;
      // Often enough that the slots are still in L1, and no more often.
      if ((row - finished) * count * G >= 128 || row == rows) {
        finish(finished, row - finished, panel, count);
        finished = row;
      }
    }
    done += count;
  }
}

enum class Start { bias, slots, zero };

template <class T, int G>
__attribute__((noinline)) void product(const ProductArguments<T>& p, Start start, const int (&slot_of)[4],
                                       Finish<T> finish) {
  constexpr int lanes = Vec<T>::lanes;
  alignas(64) static constexpr T zero[lanes] = {};
  TileStart<T> from{zero, 0, 0, {}};
  if (start == Start::bias) from = {p.bias, 0, G * lanes, {0, lanes, 2 * lanes, 3 * lanes}};
  if (start == Start::slots) {
    from = {p.slots, p.slots_stride, p.slots_per_unit * lanes, {}};
    for (int g = 0; g < G; ++g) from.gate_offset[g] = slot_of[g] * lanes;
  }
  for_each_tile<G>(Tile<T, G>{p, from, slot_of}, p.rows, p.panels, p.columns, p.descending,
                   [&](std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t panels) {
                     if (finish) finish(p, row, rows, panel, panels);
                   });
}

}  // namespace fastrnn::FASTRNN_TARGET
