// The table of kernels that one instruction set provides, and the arguments they take. Generic code
// sees only this; what fills the table is compiled once per instruction set (kernels.cpp).
//
// Units are handled in panels of `lanes` (one vector). Every matrix and buffer below is padded to
// whole panels, and gate-interleaved: the G gates of a panel lie next to each other.
#pragma once

#include <cstdint>

namespace fastrnn {

// One product with recurrent weights and the math after it; the row of the table that runs it.
enum class StepPhase : int {
  rnn_tanh,
  rnn_relu,
  rnn_sigmoid,
  lstm,
  lstm_peephole,
  gru,
  gru_reset_before_gates,
  gru_reset_before_candidate,
  projection,
  count
};

enum class ActivationFunction : int { exponential, sigmoid, tanh, count };

// A (G*N, K) row-major matrix, of which gates [first_gate, first_gate + gates) are packed into
// [panel][k][gate][lane]. Units beyond N become zeros.
template <class T>
struct PackArguments {
  const T* weight;
  std::int64_t units;    // N
  std::int64_t columns;  // K
  int first_gate;
  int gates;
  std::int64_t first_panel, panels;  // which panels to write
  T* packed;                         // start of panel 0
};

// slots[row][panel][gate][lane] = bias + sum_k weight * x[row][k], for the panels of one thread.
template <class T>
struct InputArguments {
  const T* const* x;  // `rows` pointers to K contiguous values
  std::int64_t rows, panels, columns;
  const T* weight;  // packed, at the first of the panels
  const T* bias;    // [panel][gate][lane]
  T* slots;
  std::int64_t slots_stride;  // between rows, in elements
  int slots_per_unit;         // S >= G: slot (panel, s) is at (panel * S + s) * lanes
};

// One phase of one time step for `rows` rows and the units of one thread ("own" units).
template <class T>
struct StepArguments {
  std::int64_t rows, panels, columns;  // columns: width of `operand`
  std::int64_t units;                  // own units that exist; the last panel may be partial
  const T* operand;                    // (rows, columns): h_{t-1}, or what the phase before left
  std::int64_t operand_stride;
  const T* weight;  // packed recurrent weights, at the first own panel
  T* slots;         // (rows, panels, S, lanes): input projection; see cells.h
  std::int64_t slots_stride;
  int slots_per_unit;
  bool keep_slots;             // training: write the activated gates back
  const T* recurrent_bias;     // [panel][lane], start of the `separate` product; else unused
  const T* peephole;           // [panel][3][lane] or unused
  const T* c_previous;         // (rows, own units): cell state; may be the same as `c`
  T* c;                        //
  std::int64_t c_stride;       //
  const T* h_previous;         // (rows, own units)
  std::int64_t h_stride;       // of h_previous
  T* result;                   // (rows, own units): next operand; never overlaps `operand`
  std::int64_t result_stride;  //
  T* const* y;                 // `rows` pointers to the output row's first own unit, or null
  bool descending;             // visit panels from the last: finds the tail still in the cache
};

template <class T>
struct Kernels {
  int lanes;
  void (*pack)(const PackArguments<T>&);
  void (*input[5])(const InputArguments<T>&);  // indexed by G
  void (*step[static_cast<int>(StepPhase::count)])(const StepArguments<T>&);
  void (*activation[static_cast<int>(ActivationFunction::count)])(const T* x, T* y, std::int64_t n);
  // Roof of the machine: FLOPs done by `iterations` of independent FMA chains; sum of n values.
  std::int64_t (*fma_chains)(std::int64_t iterations, T* sink);
  T (*sum)(const T* x, std::int64_t n);
};

struct KernelTable {
  const char* isa;
  Kernels<float> float32;
  Kernels<double> float64;

  template <class T>
  const Kernels<T>& of() const;
};

template <>
inline const Kernels<float>& KernelTable::of<float>() const {
  return float32;
}
template <>
inline const Kernels<double>& KernelTable::of<double>() const {
  return float64;
}

}  // namespace fastrnn
