// Compiled once per instruction set (FASTRNN_TARGET names it): fills that target's kernel table.
// Nothing here may have weak linkage outside the target's namespace; tests/test_symbols.py checks.
#include "kernels.h"

#include "cells.h"
#include "gemm.h"
#include "simd.h"

namespace fastrnn::FASTRNN_TARGET {
namespace {

template <class T, int G>
struct InputTile {
  const InputArguments<T>& in;

  template <int MR, int NP>
  FASTRNN_INLINE void run(std::int64_t row, std::int64_t panel) const {
    using V = Vec<T>;
    constexpr int lanes = V::lanes;
    const T* x[MR];
    V sum[MR][NP * G];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      x[m] = in.x[row + m];
#pragma GCC unroll 16
      for (int j = 0; j < NP * G; ++j) sum[m][j] = V::load(in.bias + (panel * G + j) * lanes);
    }
    multiply<MR, NP, G>(sum, x, in.weight + panel * in.columns * G * lanes, in.columns);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        T* slots = in.slots + (row + m) * in.slots_stride + (panel + p) * in.slots_per_unit * lanes;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[m][p * G + g].store(slots + g * lanes);
      }
    }
  }
};

template <class T, int G>
void input(const InputArguments<T>& in) {
  for_each_tile<G>(InputTile<T, G>{in}, in.rows, in.panels, in.columns, false);
}

template <class T, class Cell>
struct StepTile {
  const StepArguments<T>& s;

  template <int MR, int NP>
  FASTRNN_INLINE void run(std::int64_t row, std::int64_t panel) const {
    using V = Vec<T>;
    constexpr int lanes = V::lanes;
    constexpr int G = Cell::gates;
    const T* operand[MR];
    V sum[MR][NP * G];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      operand[m] = s.operand + (row + m) * s.operand_stride;
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        const T* slots = slots_of(row + m, panel + p);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
          V& start = sum[m][p * G + g];
          if constexpr (!Cell::reads_slots) {
            start = V(T(0));
          } else if (g == Cell::separate) {
            start = V::load(s.recurrent_bias + (panel + p) * lanes);
          } else {
            start = V::load(slots + (Cell::first_slot + g) * lanes);
          }
        }
      }
    }
    multiply<MR, NP, G>(sum, operand, s.weight + panel * s.columns * G * lanes, s.columns);
    finish<MR, NP, 0>(row, panel, sum);
  }

  FASTRNN_INLINE T* slots_of(std::int64_t row, std::int64_t panel) const {
    return s.slots + row * s.slots_stride + (panel * s.slots_per_unit + Cell::slot_offset) * Vec<T>::lanes;
  }

  // The lane-wise math on the finished products, for as many vectors at a time as it pays to have in
  // flight: those of the tile from number `first` on, which counts panels within rows.
  template <int MR, int NP, int first>
  FASTRNN_INLINE void finish(std::int64_t row, std::int64_t panel,
                             const Vec<T> (&product)[MR][NP * Cell::gates]) const {
    constexpr int count = MR * NP - first < abreast ? MR * NP - first : abreast;
    using W = Wide<T, count>;
    using V = Vec<T>;
    constexpr int lanes = V::lanes;
    W slot[Cell::slots];
    State<W> state{};
    Peephole<W> peep{};
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const int m = (first + i) / NP, p = (first + i) % NP;
      const std::int64_t unit = (panel + p) * lanes;
      const T* slots = slots_of(row + m, panel + p);
#pragma GCC unroll 4
      for (int j = 0; j < Cell::slots; ++j) {
        const int gate = j - Cell::first_slot;
        if (Cell::separate >= 0 && j == Cell::slots - 1) {
          slot[j].part[i] = product[m][p * Cell::gates + Cell::separate];
        } else if (gate >= 0 && gate < Cell::gates && gate != Cell::separate) {
          slot[j].part[i] = product[m][p * Cell::gates + gate];
        } else {
          slot[j].part[i] = V::load(slots + j * lanes);
        }
      }
      if constexpr (Cell::reads_h) state.h.part[i] = V::load(s.h_previous + (row + m) * s.h_stride + unit);
      if constexpr (Cell::has_cell_state) {
        state.c.part[i] = V::load(s.c_previous + (row + m) * s.c_stride + unit);
      }
      if constexpr (Cell::has_peephole) {
        const T* weights = s.peephole + unit * 3;
        peep.i.part[i] = V::load(weights);
        peep.f.part[i] = V::load(weights + lanes);
        peep.o.part[i] = V::load(weights + 2 * lanes);
      }
    }
    Cell::forward(slot, state, peep);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const int m = (first + i) / NP, p = (first + i) % NP;
      const std::int64_t unit = (panel + p) * lanes;
      if (Cell::keeps_slots || s.keep_slots) {
        T* slots = slots_of(row + m, panel + p);
#pragma GCC unroll 4
        for (int j = 0; j < Cell::slots; ++j) slot[j].part[i].store(slots + j * lanes);
      }
      if constexpr (Cell::has_cell_state) state.c.part[i].store(s.c + (row + m) * s.c_stride + unit);
      const V h = state.h.part[i];
      h.store(s.result + (row + m) * s.result_stride + unit);
      if (!s.y) continue;
      if (unit + lanes <= s.units) {
        h.store(s.y[row + m] + unit);
      } else {
        h.store_partial(s.y[row + m] + unit, static_cast<int>(s.units - unit));
      }
    }
    if constexpr (first + count < MR * NP) finish<MR, NP, first + count>(row, panel, product);
  }
};

template <class T, class Cell>
void step(const StepArguments<T>& s) {
  for_each_tile<Cell::gates>(StepTile<T, Cell>{s}, s.rows, s.panels, s.columns, s.descending);
}

template <class T, ActivationFunction function>
void activation(const T* x, T* y, std::int64_t n) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < n; i += V::lanes) {
    const int count = static_cast<int>(n - i < V::lanes ? n - i : V::lanes);
    T whole[V::lanes] = {};
    __builtin_memcpy(whole, x + i, static_cast<unsigned>(count) * sizeof(T));
    V v = V::load(whole);
    if constexpr (function == ActivationFunction::exponential) v = exponential(v);
    if constexpr (function == ActivationFunction::sigmoid) v = sigmoid(v);
    if constexpr (function == ActivationFunction::tanh) v = hyperbolic_tangent(v);
    v.store_partial(y + i, count);
  }
}

// 12 chains hide the latency of every known core; the result is stored so that nothing is elided.
template <class T>
std::int64_t fma_chains(std::int64_t iterations, T* sink) {
  using V = Vec<T>;
  constexpr int chains = 12;
  V sum[chains];
#pragma GCC unroll 16
  for (int i = 0; i < chains; ++i) sum[i] = V(T(i));
  const V a(T(0.999)), b(*sink);
  for (std::int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) sum[i] = multiply_add(sum[i], a, b);
  }
  V total(T(0));
  for (int i = 0; i < chains; ++i) total = total + sum[i];
  *sink = total.raw[0];
  return 2 * chains * V::lanes * iterations;
}

template <class T>
T sum(const T* x, std::int64_t n) {
  using V = Vec<T>;
  constexpr int chains = 8;
  V total[chains] = {};
  for (std::int64_t i = 0; i + chains * V::lanes <= n; i += chains * V::lanes) {
#pragma GCC unroll 8
    for (int j = 0; j < chains; ++j) total[j] = total[j] + V::load(x + i + j * V::lanes);
  }
  for (int j = 1; j < chains; ++j) total[0] = total[0] + total[j];
  return total[0].raw[0];
}

template <class T>
constexpr Kernels<T> kernels() {
  return {Vec<T>::lanes,
          pack<T>,
          {nullptr, input<T, 1>, nullptr, input<T, 3>, input<T, 4>},
          {step<T, Rnn<Nonlinearity::tanh>>, step<T, Rnn<Nonlinearity::relu>>,
           step<T, Rnn<Nonlinearity::sigmoid>>, step<T, Lstm<false>>, step<T, Lstm<true>>, step<T, Gru>,
           step<T, GruResetBeforeGates>, step<T, GruResetBeforeCandidate>, step<T, Projection>},
          {activation<T, ActivationFunction::exponential>, activation<T, ActivationFunction::sigmoid>,
           activation<T, ActivationFunction::tanh>},
          fma_chains<T>,
          sum<T>};
}

}  // namespace

extern const KernelTable table;
constexpr KernelTable table{FASTRNN_ISA_NAME, kernels<float>(), kernels<double>()};

}  // namespace fastrnn::FASTRNN_TARGET
