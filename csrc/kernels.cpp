// Compiled once per instruction set (FASTRNN_TARGET names it): fills that target's kernel table.
// Nothing here may have weak linkage outside the target's namespace; tests/test_symbols.py checks.
#include "kernels.h"

#include "cells.h"
#include "elements.h"
#include "gemm.h"
#include "mask.h"
#include "norm.h"
#include "outer.h"
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
      T* const slots = in.far ? in.slots[row + m] + panel * in.slots_per_unit * lanes : nullptr;
#pragma GCC unroll 16
      for (int j = 0; j < NP * G; ++j) {
        sum[m][j] = V::load(in.bias + (panel * G + j) * lanes);
        if (slots) __builtin_prefetch(slots + (j / G * in.slots_per_unit + j % G) * lanes, 1);
      }
    }
    const std::int64_t panel_stride = in.columns * G * lanes;
    multiply<MR, NP, G>(sum, x, in.weight + panel * panel_stride, in.columns, panel_stride);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        T* slots = in.slots[row + m] + (panel + p) * in.slots_per_unit * lanes;
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[m][p * G + g].store(slots + g * lanes);
      }
    }
  }
};

template <class T, int G>
void input(const InputArguments<T>& in) {
  for_each_tile<CellTiling<G>>(InputTile<T, G>{in}, in.rows, in.panels, in.columns, false);
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
      T* const y = s.y ? s.y[row + m] + panel * lanes : nullptr;
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        const T* slots = slots_of(row + m, panel + p);
        if (y) __builtin_prefetch(y + p * lanes, 1);  // its stores would wait for the lines
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
    const std::int64_t panel_stride = s.columns * G * lanes;
    multiply<MR, NP, G>(sum, operand, s.weight + panel * panel_stride, s.columns, panel_stride);
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
    LaneWeights<W> weights{};
    if constexpr (Cell::has_cell_state) weights.clip = W(s.clip);
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
        state.c.part[i] = V::load(s.c + (row + m) * s.c_stride + unit);
      }
      if constexpr (Cell::has_peephole) {
        const T* peephole = s.peephole + unit * 3;
        weights.i.part[i] = V::load(peephole);
        weights.f.part[i] = V::load(peephole + lanes);
        weights.o.part[i] = V::load(peephole + 2 * lanes);
      }
    }
    Cell::forward(slot, state, weights);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const int m = (first + i) / NP, p = (first + i) % NP;
      const std::int64_t unit = (panel + p) * lanes;
      if (Cell::keeps_slots || s.keep_slots) {
        T* slots = slots_of(row + m, panel + p);
#pragma GCC unroll 4
        for (int j = 0; j < Cell::slots; ++j) slot[j].part[i].store(slots + j * lanes);
      }
      if constexpr (Cell::has_cell_state) {
        state.c.part[i].store(s.c + (row + m) * s.c_stride + unit);
        if (s.c_kept) state.c.part[i].store(s.c_kept + (row + m) * s.c_kept_stride + unit);
      }
      const V h = state.h.part[i];
      h.store(s.result + (row + m) * s.result_stride + unit);
      if (!s.y) continue;
      h.store_up_to(s.y[row + m] + unit, s.units - unit);
    }
    if constexpr (first + count < MR * NP) finish<MR, NP, first + count>(row, panel, product);
  }
};

template <class T, class Cell>
void step(const StepArguments<T>& s) {
  for_each_tile<CellTiling<Cell::gates>>(StepTile<T, Cell>{s}, s.rows, s.panels, s.columns, s.descending);
}

// ---- backward -----------------------------------------------------------------------------------------

// Part of the sum of a product: `run_count` of its runs, or a piece of one. The sums pass through `out`
// between parts, so that a part's weights stay in L2 while all rows pass.
template <class T>
struct ProductTile {
  const ProductArguments<T>& in;
  std::int64_t run_count, length;   // this part's
  std::int64_t a_offset, k_offset;  // where it begins in a row of `a`, and in the packed k
  bool accumulate;

  template <int MR, int NP>
  FASTRNN_INLINE void run(std::int64_t row, std::int64_t panel) const {
    using V = Vec<T>;
    constexpr int lanes = V::lanes;
    const std::int64_t column = panel * lanes;
    const std::int64_t exist = in.columns - column;
    const T* a[MR];
    V sum[MR][NP];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      a[m] = in.a + (row + m) * in.a_stride + a_offset;
      const T* start = in.out[row + m] + column;
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        sum[m][p] = accumulate ? V::load_up_to(start + p * lanes, exist - p * lanes) : V(T(0));
        if (!accumulate) __builtin_prefetch(start + p * lanes, 1);
      }
    }
    const std::int64_t panel_stride = in.runs * in.run * lanes;
    const T* weight = in.weight + panel * panel_stride + k_offset * lanes;
    for (std::int64_t r = 0; r < run_count; ++r) {
      multiply<MR, NP, 1>(sum, a, weight, length, panel_stride);
      weight += length * lanes;
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) a[m] += in.run_stride;
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      T* end = in.out[row + m] + column;
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) {
        sum[m][p].store_up_to(end + p * lanes, exist - p * lanes);
      }
    }
  }
};

template <class T>
void product(const ProductArguments<T>& in) {
  constexpr std::int64_t part = 1024;  // k: three panels of float are 192 KB
  const std::int64_t length = in.run < part ? in.run : part;
  const std::int64_t runs = part / length;
  bool accumulate = in.accumulate;
  for (std::int64_t r = 0; r < in.runs; r += runs) {
    const std::int64_t run_count = in.runs - r < runs ? in.runs - r : runs;
    for (std::int64_t k = 0; k < in.run; k += length) {
      const std::int64_t now = in.run - k < length ? in.run - k : length;
      const ProductTile<T> tile{in, run_count, now, r * in.run_stride + k, r * in.run + k, accumulate};
      for_each_tile<ProductTiling>(tile, in.rows, in.panels, run_count * now, in.descending);
      accumulate = true;
    }
  }
}

// Stores a whole vector, of which `exist` lanes are of units. The others are zero: products read them, and an
// infinite input makes NaN of them, because their weights are zero.
template <class T>
FASTRNN_INLINE void store_existing(Vec<T> v, T* to, std::int64_t exist) {
  v.store(to);
  if (exist < Vec<T>::lanes) Vec<T>::load_partial(to, static_cast<int>(exist)).store(to);
}

// The lane-wise math backward of `count` vectors at once, the first of them panel `panel` of row `row`, which
// moves on to the one after them.
template <int count, class T, class Cell>
FASTRNN_INLINE void backward_vectors(const BackwardArguments<T>& b, std::int64_t& row, std::int64_t& panel) {
  using W = Wide<T, count>;
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  W slot[Cell::slots];
  State<W> before{}, grad{};
  LaneWeights<W> weights{};
  if constexpr (Cell::has_cell_state) weights.clip = W(b.clip);
  std::int64_t rows[count], units[count];
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    const std::int64_t unit = panel * lanes, r = row;
    rows[i] = r;
    units[i] = unit;
    if (++panel == b.panels) {
      panel = 0;
      ++row;
    }
    const T* slots = b.slots + r * b.slots_stride + unit * b.slots_per_unit + Cell::slot_offset * lanes;
    if constexpr (Cell::reads_slots) {
#pragma GCC unroll 4
      for (int j = 0; j < Cell::slots; ++j) slot[j].part[i] = V::load(slots + j * lanes);
    }
    V h = V::load(b.grad + r * b.grad_stride + unit);
    if (b.grad_y) h = h + V::load_up_to(b.grad_y[r] + unit, b.units - unit);
    grad.h.part[i] = h;
    if constexpr (Cell::reads_h) before.h.part[i] = V::load_up_to(b.h_previous[r] + unit, b.units - unit);
    if constexpr (Cell::has_cell_state) {
      before.c.part[i] = V::load(b.c_previous[r] + unit);
      grad.c.part[i] = V::load(b.dc + r * b.dc_stride + unit);
    }
    if constexpr (Cell::has_peephole) {
      const T* peephole = b.peephole + unit * 3;
      weights.i.part[i] = V::load(peephole);
      weights.f.part[i] = V::load(peephole + lanes);
      weights.o.part[i] = V::load(peephole + 2 * lanes);
    }
  }
  Cell::backward(slot, before, grad, weights);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    const std::int64_t unit = units[i], r = rows[i];
    T* slots = b.slots + r * b.slots_stride + unit * b.slots_per_unit + Cell::slot_offset * lanes;
    const std::int64_t exist = b.units - unit;
#pragma GCC unroll 4
    for (int j = 0; j < Cell::slots; ++j) store_existing(slot[j].part[i], slots + j * lanes, exist);
    if constexpr (Cell::has_cell_state) store_existing(grad.c.part[i], b.dc + r * b.dc_stride + unit, exist);
    if constexpr (Cell::passes_h) {
      T* dh = b.dh + r * b.dh_stride + unit;
      const V h = grad.h.part[i];
      store_existing(Cell::adds_h ? h + V::load(dh) : h, dh, exist);
    }
  }
}

template <class T, class Cell>
void backward(const BackwardArguments<T>& b) {
  const std::int64_t all = b.rows * b.panels;
  std::int64_t row = 0, panel = 0, done = 0;
  for (; done + abreast <= all; done += abreast) backward_vectors<abreast, T, Cell>(b, row, panel);
  if constexpr (abreast > 2) {
    for (; done + 2 <= all; done += 2) backward_vectors<2, T, Cell>(b, row, panel);
  }
  for (; done < all; ++done) backward_vectors<1, T, Cell>(b, row, panel);
}

// Each lane adds up its values, mixed with their place. The mixing can be undone, so that any single change
// shows, and it is not linear, so that changes of sign or scale do not cancel out.
template <class T>
std::uint64_t checksum(const T* x, std::int64_t n) {
  using V = Vec<T>;
  using Unsigned = typename Register<T>::RawUnsigned;
  constexpr int chains = 4;
  constexpr int shift = sizeof(T) == 4 ? 15 : 31;
  Unsigned sum[chains] = {}, place[chains];
#pragma GCC unroll 4
  for (int i = 0; i < chains; ++i) place[i] = Unsigned{} + (2u * static_cast<unsigned>(i) + 1u);
  for (std::int64_t i = 0; i < n; i += chains * V::lanes) {
#pragma GCC unroll 4
    for (int j = 0; j < chains; ++j) {
      const std::int64_t left = n - i - j * V::lanes;
      if (left <= 0) break;
      auto bits = reinterpret_cast<Unsigned>(V::load_up_to(x + i + j * V::lanes, left).raw);
      bits = (bits ^ place[j]) * 0x9E3779B1u;
      bits ^= bits >> shift;
      sum[j] += bits * place[j];
      place[j] += 2u * chains;
    }
  }
  std::uint64_t total = 0;
  for (int j = 0; j < chains; ++j) {
    for (int lane = 0; lane < V::lanes; ++lane) {
      total = total * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(sum[j][lane]);
    }
  }
  return total;
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
          pack_transposed<T>,
          product<T>,
          {backward<T, Rnn<Nonlinearity::tanh>>, backward<T, Rnn<Nonlinearity::relu>>,
           backward<T, Rnn<Nonlinearity::sigmoid>>, backward<T, Lstm<false>>, backward<T, Lstm<true>>,
           backward<T, Lstm<false, true>>, backward<T, Lstm<true, true>>, backward<T, Gru>,
           backward<T, GruResetBeforeGates>, backward<T, GruResetBeforeCandidate>, backward<T, Projection>},
          pack_slots<T>,
          pack_columns<T>,
          outer<T>,
          peephole<T>,
          mask<T>,
          zone<T>,
          zone_backward<T>,
          moments<T>,
          {norm_step<T, Rnn<Nonlinearity::tanh>>, norm_step<T, Rnn<Nonlinearity::relu>>,
           norm_step<T, Rnn<Nonlinearity::sigmoid>>, norm_step<T, Lstm<false>>, norm_step<T, Lstm<true>>,
           norm_step<T, Lstm<false, true>>, norm_step<T, Lstm<true, true>>, norm_step<T, Gru>,
           norm_step<T, GruResetBeforeGates>, norm_step<T, GruResetBeforeCandidate>},
          norm_output<T>,
          {norm_recompute<T, Rnn<Nonlinearity::tanh>>, norm_recompute<T, Rnn<Nonlinearity::relu>>,
           norm_recompute<T, Rnn<Nonlinearity::sigmoid>>, norm_recompute<T, Lstm<false>>,
           norm_recompute<T, Lstm<true>>, norm_recompute<T, Lstm<false, true>>,
           norm_recompute<T, Lstm<true, true>>, norm_recompute<T, Gru>,
           norm_recompute<T, GruResetBeforeGates>, norm_recompute<T, GruResetBeforeCandidate>},
          {norm_gates<T, Rnn<Nonlinearity::tanh>>, norm_gates<T, Rnn<Nonlinearity::relu>>,
           norm_gates<T, Rnn<Nonlinearity::sigmoid>>, norm_gates<T, Lstm<false>>, norm_gates<T, Lstm<true>>,
           norm_gates<T, Lstm<false, true>>, norm_gates<T, Lstm<true, true>>, norm_gates<T, Gru>,
           norm_gates<T, GruResetBeforeGates>, norm_gates<T, GruResetBeforeCandidate>},
          norm_means<T>,
          {norm_products<T, Rnn<Nonlinearity::tanh>>, norm_products<T, Rnn<Nonlinearity::relu>>,
           norm_products<T, Rnn<Nonlinearity::sigmoid>>, norm_products<T, Lstm<false>>,
           norm_products<T, Lstm<true>>, norm_products<T, Lstm<false, true>>,
           norm_products<T, Lstm<true, true>>, norm_products<T, Gru>, norm_products<T, GruResetBeforeGates>,
           norm_products<T, GruResetBeforeCandidate>},
          checksum<T>,
          {nullptr, input<T, 1>, input<T, 2>, input<T, 3>, input<T, 4>},
          {step<T, Rnn<Nonlinearity::tanh>>, step<T, Rnn<Nonlinearity::relu>>,
           step<T, Rnn<Nonlinearity::sigmoid>>, step<T, Lstm<false>>, step<T, Lstm<true>>,
           step<T, Lstm<false, true>>, step<T, Lstm<true, true>>, step<T, Gru>, step<T, GruResetBeforeGates>,
           step<T, GruResetBeforeCandidate>, step<T, Projection>},
          {activation<T, ActivationFunction::exponential>, activation<T, ActivationFunction::sigmoid>,
           activation<T, ActivationFunction::tanh>},
          sgd<T>,
          rmsprop<T>,
          adam<T>,
          sum_of_squares<T>,
          fma_chains<T>,
          sum<T>};
}

}  // namespace

extern const KernelTable table;
constexpr KernelTable table{FASTRNN_ISA_NAME, kernels<float>(), kernels<double>()};

}  // namespace fastrnn::FASTRNN_TARGET
