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
  lstm_coupled,
  lstm_coupled_peephole,
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
  const T* weight;     // packed, at the first of the panels
  const T* bias;       // [panel][gate][lane]
  T* const* slots;     // `rows` pointers to the first of the panels
  int slots_per_unit;  // S >= G: slot (panel, s) is at (panel * S + s) * lanes
  bool far;            // training: no near cache holds the slots
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
  T clip;                      // of |c_t|; infinite: none
  T* c;                        // (rows, own units): cell state, c_{t-1} on entry, c_t on return
  std::int64_t c_stride;       //
  T* c_kept;                   // training: c_t once more, for the tape; else null
  std::int64_t c_kept_stride;  //
  const T* h_previous;         // (rows, own units)
  std::int64_t h_stride;       // of h_previous
  T* result;                   // (rows, own units): next operand; never overlaps `operand`
  std::int64_t result_stride;  //
  T* const* y;                 // `rows` pointers to the output row's first own unit, or null
  bool descending;             // visit panels from the last: finds the tail still in the cache
};

// ---- backward. The gradient of a product's result lies in slots; three products read it there.

// A (G*N, K) row-major matrix as the right side of a product with its rows: packed into
// [panel of columns][k][lane], where k counts the rows (panel of units, gate, lane). Rows of units beyond N
// and columns beyond K become zeros.
template <class T>
struct PackTransposedArguments {
  const T* weight;
  std::int64_t units;    // N
  std::int64_t columns;  // K
  const int* gate;       // the gates in their order
  int gates;
  std::int64_t first_panel, panels;  // which panels of columns to write
  T* packed;                         // start of panel 0
};

// out[row][column] (+)= sum_k a[row][k] * weight[k][column]: the gradient of what a product read.
template <class T>
struct ProductArguments {
  std::int64_t rows, panels;
  std::int64_t columns;  // that exist; the last panel may be partial
  const T* a;            // row r's k-th value: k counts `runs` runs of adjacent values
  std::int64_t a_stride;
  std::int64_t runs, run, run_stride;
  const T* weight;  // packed transposed, at the first of the panels
  T* const* out;    // `rows` pointers to the first of the columns
  bool accumulate;  // adds to what `out` holds
  bool descending;  // visit panels from the last
};

// One phase of one time step backward, lane by lane, for `rows` rows and the units of one thread.
template <class T>
struct BackwardArguments {
  std::int64_t rows, panels;
  std::int64_t units;  // own units that exist
  T* slots;            // see cells.h
  std::int64_t slots_stride;
  int slots_per_unit;
  const T* grad;               // (rows, own units): gradient of the phase's result, from later products
  std::int64_t grad_stride;    //
  const T* const* grad_y;      // `rows` pointers to more of it, or null
  T* dh;                       // (rows, own units): of cells that pass a part of dL/dh_{t-1}
  std::int64_t dh_stride;      //
  T* dc;                       // (rows, own units): dL/dc_t on entry, dL/dc_{t-1} on return
  std::int64_t dc_stride;      //
  const T* const* c_previous;  // `rows` pointers to the first own unit of whole panels
  const T* const* h_previous;  // `rows` pointers to the first own unit
  const T* peephole;
  T clip;
};

// Copies `count` whole vectors of each row (consecutive slots), as the left side of an OuterArguments, and
// adds the rows up: sums[i] += sum over rows, in their order.
template <class T>
struct PackSlotsArguments {
  std::int64_t rows, count;
  const T* slots;
  std::int64_t slots_stride;
  T* packed;  // rows * count * lanes
  T* sums;    // count * lanes
};

// Copies columns of rows into [vector of columns][row][lane], as the right side of an OuterArguments.
template <class T>
struct PackColumnsArguments {
  const T* const* x;      // `rows` pointers
  const T* const* scale;  // `rows` pointers to what they are multiplied by, or null
  std::int64_t rows, columns;
  std::int64_t first, count;  // which vectors of columns to write
  T* packed;                  // start of vector 0
};

// out[v][unit][column] (+)= sum over rows of left[row][v][unit] * right[row][column]: the gradient of the
// weight. Rows are added in their order.
template <class T>
struct OuterArguments {
  std::int64_t rows, count, columns;
  const T* left;     // of pack_slots, `count` vectors of units
  const T* right;    // of pack_columns, all columns
  T* const* out;     // of every vector of units where its (units, columns) block begins, or null: none
  const int* units;  // how many of its lanes exist
  bool accumulate;
};

// sums[i, f, o][unit] += sum over rows of slots i, f with c_previous and of slot o with c. Of three slots,
// f is missing.
template <class T>
struct PeepholeArguments {
  std::int64_t rows, panels;
  int slots_per_unit;
  const T* slots;
  std::int64_t slots_stride;
  const T* c;
  std::int64_t c_stride;
  const T* const* c_previous;
  T* sums;  // [panel][3][lane]
};

// Random values of units [first, first + count): `hit` with the probability, else `miss` (random.h).
template <class T>
struct MaskArguments {
  T* out;  // of unit `first`
  std::int64_t first, count;
  std::uint64_t seed;
  std::uint32_t row, step, stream;
  double probability;
  T hit, miss;
};

// Zoneout of units [mask.first, mask.first + mask.count) of a row, all pointers at the first of them. In
// training the mask is drawn, and a unit keeps its old state where it is a hit; else z is the probability.
template <class T>
struct ZoneArguments {
  MaskArguments<T> mask;  // all but out, hit and miss
  bool training;
  const T* before;  // forward: state = z before + (1 - z) state, and a copy of it, if wanted
  T *state, *copy;
  const T* grad_more;  // backward: is added to grad first, if given; then
  T *grad, *carry;     // carry = z grad, and grad = (1 - z) grad
};

// ---- layer normalisation (norm.h)

// Of a row of `gates` values for each of `units` units: its mean, and 1 / sqrt(variance + 1e-5).
template <class T>
struct MomentsArguments {
  const T* const* x;  // `rows` pointers to [panel][slot][lane]
  std::int64_t rows, units;
  int slots_per_unit, gates;
  T *mean, *scale;  // (rows,)
};

// Gains and shifts, at the first own panel: [panel][gate][lane], and [panel][lane] of c. A shift is the bias
// of the norm and that of the product.
template <class T>
struct NormWeights {
  T *gain_x, *shift_x, *gain_h, *shift_h, *gain_c, *shift_c;
};

// One phase of a step after its product.
template <class T>
struct NormStepArguments {
  std::int64_t rows, panels;
  std::int64_t units;  // own units that exist
  T* slots;            // (rows, panels, 2G, lanes)
  std::int64_t slots_stride;
  const T* raw;  // (rows, panels, G, lanes): the product with h
  std::int64_t raw_stride;
  const T *mean_x, *scale_x, *mean_h, *scale_h, *mean_c, *scale_c;  // (rows,)
  NormWeights<const T> weights;
  const T* peephole;
  T clip;
  T* c;  // as StepArguments
  std::int64_t c_stride;
  T* c_kept;
  std::int64_t c_kept_stride;
  T *candidate, *o;     // (rows, own units), c_stride: c_t and the output gate, for `norm_output`
  const T* h_previous;  // as StepArguments
  std::int64_t h_stride;
  T* result;
  std::int64_t result_stride;
  T* const* y;
};

template <class T>
struct NormBackwardArguments {
  std::int64_t rows, panels;
  std::int64_t units;
  T* slots;
  std::int64_t slots_stride;
  T* gates;  // (rows, panels, gates_per_unit, lanes): the activated gates, then gradients
  std::int64_t gates_stride;
  int gates_per_unit;
  T* normed;  // (rows, panels, 2G, lanes): gradients of the normalised products
  std::int64_t normed_stride;
  const T* grad;  // these as BackwardArguments
  std::int64_t grad_stride;
  const T* const* grad_y;
  T* dh;
  std::int64_t dh_stride;
  T* dc;
  std::int64_t dc_stride;
  const T* const* c_previous;
  const T* const* h_previous;
  const T* peephole;
  T clip;
  NormWeights<const T> weights;
  T *c_normed, *dc_normed;  // (rows, own units), dc_stride: the normalised c_t and its gradient
  enum Moment { scale_x, scale_h, scale_h2, mean_c, scale_c, moment_count };
  const T* moments;  // (rows, moments_stride) of Moment
  std::int64_t moments_stride;
  // (rows, panels, 4G + 5, lanes): of each row over the steps, gradients of gain_x, shift_x, gain_h, shift_h,
  // gain_c, shift_c, and peepholes i, f, o.
  T* sums;
  std::int64_t sums_stride;
  // (rows, all panels, 6, lanes): of each row sums that make `means`, of the gradients of a normalised value
  // and of their products with it, of c, of h's product and of x's.
  T *partial, *all_partial;  // at the first own panel, and at the first of all
  std::int64_t partial_stride;
  static constexpr int mean_count = 6;
  T* means;  // (rows, 6)
};

// A parameter and the gradient that is applied to it: factor·g, brought into [-clip, clip], plus
// l1·sign(p) + l2·p. Arrays are of n elements and overlap nothing.
template <class T>
struct Update {
  std::int64_t n;
  T* parameter;
  const T* gradient;
  double factor, clip, l1, l2;  // clip: infinite for none
  double rate;
};

// Elements that an optimizer takes at once at most.
constexpr std::int64_t update_block = 1024;

template <class T>
struct Kernels {
  int lanes;
  void (*pack)(const PackArguments<T>&);
  void (*pack_transposed)(const PackTransposedArguments<T>&);
  void (*product)(const ProductArguments<T>&);
  void (*backward[static_cast<int>(StepPhase::count)])(const BackwardArguments<T>&);
  void (*pack_slots)(const PackSlotsArguments<T>&);
  void (*pack_columns)(const PackColumnsArguments<T>&);
  void (*outer)(const OuterArguments<T>&);
  void (*peephole)(const PeepholeArguments<T>&);
  void (*mask)(const MaskArguments<T>&);
  void (*zone)(const ZoneArguments<T>&);
  void (*zone_backward)(const ZoneArguments<T>&);
  void (*moments)(const MomentsArguments<T>&);
  void (*norm_step[static_cast<int>(StepPhase::count)])(const NormStepArguments<T>&);
  void (*norm_output)(const NormStepArguments<T>&);
  void (*norm_recompute[static_cast<int>(StepPhase::count)])(const NormBackwardArguments<T>&);
  void (*norm_gates[static_cast<int>(StepPhase::count)])(const NormBackwardArguments<T>&);
  void (*norm_means)(const NormBackwardArguments<T>&, int first, int count, std::int64_t all_panels,
                     T values);
  void (*norm_products[static_cast<int>(StepPhase::count)])(const NormBackwardArguments<T>&);
  // Of the bits of n values.
  std::uint64_t (*checksum)(const T* x, std::int64_t n);
  void (*input[5])(const InputArguments<T>&);  // indexed by G
  void (*step[static_cast<int>(StepPhase::count)])(const StepArguments<T>&);
  void (*activation[static_cast<int>(ActivationFunction::count)])(const T* x, T* y, std::int64_t n);
  // As the functions of update.h: of at most update_block elements, and of any number.
  void (*sgd)(const Update<T>&, T* velocity, double momentum, bool nesterov);
  void (*rmsprop)(const Update<T>&, T* square, T* mean, T* velocity, double alpha, double eps,
                  double momentum);
  void (*adam)(const Update<T>&, T* mean, T* square, T* largest, double keep, double beta1, double beta2,
               double eps, double bias1, double bias2);
  double (*sum_of_squares)(const T* x, std::int64_t n);
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
