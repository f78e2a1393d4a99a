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

// In squares of lanes by lanes, transposed in registers.
template <class T>
void pack(const PackArguments<T>& p) {
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  for (std::int64_t panel = p.first_panel; panel < p.first_panel + p.panels; ++panel) {
    T* packed = p.packed + panel * p.columns * p.gates * lanes;
    for (int gate = 0; gate < p.gates; ++gate) {
      const T* rows = p.weight + ((p.first_gate + gate) * p.units + panel * lanes) * p.columns;
      for (std::int64_t k = 0; k < p.columns; k += lanes) {
        V square[lanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < lanes; ++lane) {
          const bool exists = panel * lanes + lane < p.units;
          square[lane] = exists ? V::load_up_to(rows + lane * p.columns + k, p.columns - k) : V(T(0));
        }
        transpose(square);
        const auto left = static_cast<int>(p.columns - k < lanes ? p.columns - k : lanes);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          if (i < left) square[i].store(packed + ((k + i) * p.gates + gate) * lanes);
        }
      }
    }
  }
}

template <class T>
void pack_transposed(const PackTransposedArguments<T>& p) {
  using V = Vec<T>;
  constexpr std::int64_t together = 8;  // panels at a time: half a kilobyte of each row
  const std::int64_t unit_panels = (p.units + V::lanes - 1) / V::lanes;
  const std::int64_t depth = unit_panels * p.gates * V::lanes;
  const std::int64_t end = p.first_panel + p.panels;
  for (std::int64_t first = p.first_panel; first < end; first += together) {
    const std::int64_t last = first + together < end ? first + together : end;
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::int64_t unit = k / (p.gates * V::lanes) * V::lanes + k % V::lanes;
      const int gate = p.gate[k / V::lanes % p.gates];
      const T* row = p.weight + (gate * p.units + unit) * p.columns;
      for (std::int64_t panel = first; panel < last; ++panel) {
        const std::int64_t exist = unit < p.units ? p.columns - panel * V::lanes : 0;
        const V w = exist > 0 ? V::load_up_to(row + panel * V::lanes, exist) : V(T(0));
        w.store(p.packed + (panel * depth + k) * V::lanes);
      }
    }
  }
}

// accumulator[m][p * G + g] += sum_k a[m][k] * weight[p][k][g]
template <int MR, int NP, int G, class T>
FASTRNN_INLINE void multiply(Vec<T> (&accumulator)[MR][NP * G], const T* const (&a)[MR], const T* weight,
                             std::int64_t columns, std::int64_t panel_stride) {
  using V = Vec<T>;
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

// Which tiles a kernel is made of: each is some kilobytes of code.
//
// Of a cell with G gates, up to `max_rows` rows. A single row is bound by the stream of weights, and wants
// no more streams than just hide the latency of a multiply-add, unless the weights stay in L1. Panels that
// are left over go two at a time and one by one; with a single gate only one by one.
template <int G>
struct CellTiling {
  static constexpr int gates = G;
  static constexpr int fit = accumulators / G;
  static constexpr int max_rows = fit > 8 ? (G == 1 ? 6 : 8) : fit;

  static constexpr int panels_at_once(std::int64_t rows, bool streams) {
    const int wanted = rows > 1 ? accumulators : streams ? 6 : 12;
    int panels = 8;
    while (panels > 1 && rows * panels * G > wanted) panels /= 2;
    return panels == 8 && rows > 1 ? 4 : panels == 2 && G == 1 ? 1 : panels;
  }
  static std::int64_t next(std::int64_t remaining, std::int64_t together) {
    while (together > remaining || (G == 1 && together == 2)) together /= 2;
    return together;
  }
  template <int NP>
  static constexpr bool exists(int rows) {
    return NP != 3 && (NP == 1 || (NP <= panels_at_once(rows, false) && (NP != 2 || G > 1)));
  }
};

// Of a product that is nothing else: three panels by as many rows as fill the registers, and near that.
struct ProductTiling {
  static constexpr int gates = 1;
  static constexpr int max_rows = accumulators / 3;

  static constexpr int panels_at_once(std::int64_t rows, bool streams) {
    if (rows == 1) return streams ? 4 : 8;
    return rows * 4 <= accumulators ? 4 : 3;
  }
  static std::int64_t next(std::int64_t remaining, std::int64_t together) {
    if (together == 8) return remaining >= 8 ? 8 : remaining < 4 ? remaining : 4;
    const std::int64_t groups = (remaining + together - 1) / together;
    return (remaining + groups - 1) / groups;
  }
  template <int NP>
  static constexpr bool exists(int rows) {
    return NP == 8 ? rows == 1 : NP <= 4 && NP <= panels_at_once(rows, true);
  }
};

template <int MR, int NP, class Tiling, class Tile>
FASTRNN_INLINE bool run_tile(const Tile& tile, std::int64_t rows, std::int64_t row, std::int64_t panel) {
  if constexpr (Tiling::template exists<NP>(MR)) {
    if (rows == MR) {
      tile.template run<MR, NP>(row, panel);
      return true;
    }
  }
  if constexpr (MR > 1) return run_tile<MR - 1, NP, Tiling>(tile, rows, row, panel);
  return false;
}

// Visits rows x panels in tiles: panels outside (a panel's weights stay in the nearest cache while
// the rows pass), rows inside, in tiles of nearly equal height.
template <class Tiling, class Tile>
FASTRNN_INLINE void for_each_tile(const Tile& tile, std::int64_t rows, std::int64_t panels,
                                  std::int64_t columns, bool descending) {
  if (rows == 0) return;
  constexpr int max_rows = Tiling::max_rows;
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows;
  const std::int64_t height = rows / tiles, taller = rows % tiles;
  const std::int64_t tallest = height + (taller > 0);
  constexpr std::int64_t l1_bytes = 40 * 1024;
  const bool streams = panels * Tiling::gates * columns * vector_bytes > l1_bytes;
  const int together = Tiling::panels_at_once(tallest, streams);

  for (std::int64_t done = 0; done < panels;) {
    const std::int64_t count = Tiling::next(panels - done, together);
    const std::int64_t panel = descending ? panels - done - count : done;
    std::int64_t row = 0;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t now = height + (t < taller);
      switch (count) {
        case 8:
          run_tile<max_rows, 8, Tiling>(tile, now, row, panel);
          break;
        case 4:
          run_tile<max_rows, 4, Tiling>(tile, now, row, panel);
          break;
        case 3:
          run_tile<max_rows, 3, Tiling>(tile, now, row, panel);
          break;
        case 2:
          run_tile<max_rows, 2, Tiling>(tile, now, row, panel);
          break;
        default:
          run_tile<max_rows, 1, Tiling>(tile, now, row, panel);
      }
      row += now;
    }
    done += count;
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
