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

// How many panels to take at once for `rows` rows, where few rows do not fill the registers. A single row
// is bound by the stream of weights, and wants no more streams than just hide the latency of a
// multiply-add, unless the weights stay in L1.
template <int G>
constexpr int panels_at_once(std::int64_t rows, bool streams) {
  const int wanted = rows > 1 ? accumulators : streams ? 6 : 12;
  int panels = 8;
  while (panels > 1 && rows * panels * G > wanted) panels /= 2;
  return panels == 8 && rows > 1 ? 4 : panels == 2 && G == 1 ? 1 : panels;
}

// The tiles that for_each_tile asks for, and no others: each is some kilobytes of code. Panels that are
// left over go two at a time and one by one; with a single gate only one by one.
template <int NP, int G>
constexpr bool tile_exists(int rows) {
  return NP == 1 || (NP <= panels_at_once<G>(rows, false) && (NP != 2 || G > 1));
}

template <int MR, int NP, int G, class Tile>
FASTRNN_INLINE bool run_tile(const Tile& tile, std::int64_t rows, std::int64_t row, std::int64_t panel) {
  if constexpr (tile_exists<NP, G>(MR)) {
    if (rows == MR) {
      tile.template run<MR, NP>(row, panel);
      return true;
    }
  }
  if constexpr (MR > 1) return run_tile<MR - 1, NP, G>(tile, rows, row, panel);
  return false;
}

// Visits rows x panels in tiles: panels outside (a panel's weights stay in the nearest cache while
// the rows pass), rows inside, in tiles of nearly equal height.
template <int G, class Tile>
FASTRNN_INLINE void for_each_tile(const Tile& tile, std::int64_t rows, std::int64_t panels,
                                  std::int64_t columns, bool descending) {
  if (rows == 0) return;
  constexpr int max_rows = max_tile_rows<G>();
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows;
  const std::int64_t height = rows / tiles, taller = rows % tiles;
  const std::int64_t tallest = height + (taller > 0);
  constexpr std::int64_t l1_bytes = 40 * 1024;
  const int together = panels_at_once<G>(tallest, panels * G * columns * vector_bytes > l1_bytes);

  for (std::int64_t done = 0; done < panels;) {
    std::int64_t count = together;
    while (count > panels - done || (G == 1 && count == 2)) count /= 2;
    const std::int64_t panel = descending ? panels - done - count : done;
    std::int64_t row = 0;
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
    }
    done += count;
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
