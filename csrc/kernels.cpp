// Compiled once per instruction set (FASTRNN_TARGET names it): fills that target's kernel table.
// Nothing here may have weak linkage outside the target's namespace; tests/test_symbols.py checks.
#include "kernels.h"

#include "cells.h"
#include "gemm.h"
#include "simd.h"

namespace fastrnn::FASTRNN_TARGET {
namespace {

// The recurrent product of a `separate` gate starts from its bias.
template <class T>
void start_separate(const ProductArguments<T>& p, std::int64_t row, std::int64_t rows, std::int64_t panel,
                    std::int64_t panels) {
  constexpr int lanes = Vec<T>::lanes;
  for (std::int64_t r = row; r < row + rows; ++r) {
    for (std::int64_t unit = panel; unit < panel + panels; ++unit) {
      T* slots = p.slots + r * p.slots_stride + unit * p.slots_per_unit * lanes;
      Vec<T>::load(p.separate_bias + unit * lanes).store(slots + (p.slots_per_unit - 1) * lanes);
    }
  }
}

template <class T, int G>
void input(const ProductArguments<T>& p) {
  constexpr int slot_of[4] = {0, 1, 2, 3};
  product<T, G>(p, Start::bias, slot_of, p.separate_bias ? start_separate<T> : nullptr);
}

// The cell's math for N vectors of units: of N rows from `row` on, or of N panels from `panel` on.
template <class T, class Cell, int N>
FASTRNN_INLINE void run_cell(const StepArguments<T>& s, std::int64_t row, std::int64_t panel, bool rows) {
  using V = Vec<T>;
  using W = Wide<T, N>;
  constexpr int lanes = V::lanes;
  const std::int64_t unit = panel * lanes;
  T* const slots = s.slots + row * s.slots_stride + (panel * s.slots_per_unit + Cell::slot_offset) * lanes;
  const std::int64_t slots_stride = rows ? s.slots_stride : s.slots_per_unit * lanes;
  const std::int64_t h_stride = rows ? s.h_stride : lanes, c_stride = rows ? s.c_stride : lanes;
  const std::int64_t result_stride = rows ? s.result_stride : lanes;
  W slot[Cell::slots];
  State<W> state{};
  Peephole<W> peep{};
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Cell::slots; ++j) slot[j].part[i] = V::load(slots + i * slots_stride + j * lanes);
    if constexpr (Cell::reads_h) {
      state.h.part[i] = V::load(s.h_previous + row * s.h_stride + unit + i * h_stride);
    }
    if constexpr (Cell::has_cell_state) {
      state.c.part[i] = V::load(s.c_previous + row * s.c_stride + unit + i * c_stride);
    }
    if constexpr (Cell::has_peephole) {
      const T* weights = s.peephole + (unit + (rows ? 0 : i * lanes)) * 3;
      peep.i.part[i] = V::load(weights);
      peep.f.part[i] = V::load(weights + lanes);
      peep.o.part[i] = V::load(weights + 2 * lanes);
    }
  }
  Cell::forward(slot, state, peep);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    if (Cell::keeps_slots || s.keep_slots) {
#pragma GCC unroll 4
      for (int j = 0; j < Cell::slots; ++j) slot[j].part[i].store(slots + i * slots_stride + j * lanes);
    }
    if constexpr (Cell::has_cell_state) {
      state.c.part[i].store(s.c + row * s.c_stride + unit + i * c_stride);
    }
    const V h = state.h.part[i];
    h.store(s.result + row * s.result_stride + unit + i * result_stride);
    if (!s.y) continue;
    const std::int64_t own = rows ? unit : unit + i * lanes;
    T* const y = s.y[rows ? row + i : row] + own;
    if (own + lanes <= s.units) {
      h.store(y);
    } else {
      h.store_partial(y, static_cast<int>(s.units - own));
    }
  }
}

template <class T, class Cell, int N>
FASTRNN_INLINE void run_cell_of(int count, const StepArguments<T>& s, std::int64_t row, std::int64_t panel,
                                bool rows) {
  if (count == N) {
    run_cell<T, Cell, N>(s, row, panel, rows);
  } else if constexpr (N > 1) {
    run_cell_of<T, Cell, N - 1>(count, s, row, panel, rows);
  }
}

// The cell's math on finished products, in groups of nearly equal size, each as many vectors as it pays
// to have in flight.
template <class T, class Cell>
void finish(const ProductArguments<T>& p, std::int64_t row, std::int64_t rows, std::int64_t panel,
            std::int64_t panels) {
  constexpr std::int64_t abreast = 6;
  const auto& s = static_cast<const StepArguments<T>&>(p);
  const bool along_rows = rows >= panels;
  const std::int64_t length = along_rows ? rows : panels, times = along_rows ? panels : rows;
  const std::int64_t groups = (length + abreast - 1) / abreast;
  const std::int64_t each = length / groups, larger = length % groups;
  for (std::int64_t line = 0; line < times; ++line) {
    for (std::int64_t group = 0, done = 0; group < groups; ++group) {
      const int count = static_cast<int>(each + (group < larger));
      run_cell_of<T, Cell, abreast>(count, s, row + (along_rows ? done : line),
                                    panel + (along_rows ? line : done), along_rows);
      done += count;
    }
  }
}

template <class T, class Cell>
void step(const StepArguments<T>& s) {
  constexpr int first = Cell::slot_offset + Cell::first_slot;
  constexpr int slot_of[4] = {first, first + 1, Cell::separate == 2 ? Cell::slots - 1 : first + 2, first + 3};
  static_assert(Cell::separate == -1 || Cell::separate == 2);
  product<T, Cell::gates>(s, Cell::reads_slots ? Start::slots : Start::zero, slot_of, finish<T, Cell>);
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
