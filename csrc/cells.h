// The equations: one struct per cell, templated on the lane type V (a SIMD Vec, a scalar, a CUDA
// thread's value). The only home of gate math and gate order.
//
// A cell sees the `slots` of its units for one step and the state of those units:
//
//   slot[0 .. gates)   on entry the pre-activation  W_ih x + b  (+ W_hh h where `recurrent_slot` says
//                      so), on return the activated gate. In training the driver keeps every slot:
//                      they are the tape, and backward overwrites each with the gradient of its
//                      pre-activation, so that dW_ih, dW_hh and dX read them in place.
//   state.h, state.c   on entry h_{t-1} and c_{t-1}, on return h_t and c_t.
//
// The tape is complete with the slots, c_t (cells with `has_cell_state`) and h_t: tanh(c_t) and, for
// a projected LSTM, o * tanh(c_t) are cheaper to form again than to store and load.
//
// `Phase` is one product with recurrent weights followed by lane-wise math; between two phases all
// units of a row must be known, so a cell with two phases needs two barriers per step.
#pragma once

#include "activations.h"

namespace fastrnn::FASTRNN_TARGET {

template <class V>
struct State {
  V h, c;
};

// Weights that act lane by lane; rows i, f, o of weight_peep. Unused by cells without them.
template <class V>
struct Peephole {
  V i, f, o;
};

enum class Nonlinearity { tanh, relu, sigmoid };

template <Nonlinearity nonlinearity, class V>
FASTRNN_HD inline V activate(V x) {
  if constexpr (nonlinearity == Nonlinearity::tanh) return hyperbolic_tangent(x);
  if constexpr (nonlinearity == Nonlinearity::relu) return maximum(V(0), x);
  if constexpr (nonlinearity == Nonlinearity::sigmoid) return sigmoid(x);
}

// Defaults of a phase: every recurrent product adds to the slot of its own gate.
struct Phase {
  static constexpr bool has_cell_state = false;
  static constexpr bool has_peephole = false;
  static constexpr bool reads_h = false;      // lane-wise use of h_{t-1}
  static constexpr bool reads_slots = true;   // starts from the input projection
  static constexpr bool keeps_slots = false;  // a later phase of the same step reads them
  static constexpr int slot_offset = 0;       // where the phase's slots begin among the cell's
  static constexpr int first_slot = 0;        // slot of the phase's first recurrent product
  static constexpr int separate = -1;         // gate whose recurrent product has a slot of its own
};

// h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)                                    (Elman 1990)
template <Nonlinearity nonlinearity>
struct Rnn : Phase {
  static constexpr int gates = 1, slots = 1;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>&) {
    slot[0] = activate<nonlinearity>(slot[0]);
    state.h = slot[0];
  }
};

// i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh(c_t)      (Hochreiter & Schmidhuber 1997, with the
// forget gate of Gers et al. 2000). With peepholes (Gers & Schmidhuber 2000) i and f also see
// c_{t-1}, and o sees c_t.
template <bool peephole>
struct Lstm : Phase {
  static constexpr int gates = 4, slots = 4;
  static constexpr bool has_cell_state = true;
  static constexpr bool has_peephole = peephole;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>& peep) {
    if constexpr (peephole) {
      slot[0] = multiply_add(peep.i, state.c, slot[0]);
      slot[1] = multiply_add(peep.f, state.c, slot[1]);
    }
    slot[0] = sigmoid(slot[0]);
    slot[1] = sigmoid(slot[1]);
    slot[2] = hyperbolic_tangent(slot[2]);
    state.c = multiply_add(slot[1], state.c, slot[0] * slot[2]);
    if constexpr (peephole) slot[3] = multiply_add(peep.o, state.c, slot[3]);
    slot[3] = sigmoid(slot[3]);
    state.h = slot[3] * hyperbolic_tangent(state.c);
  }
};

// h_t = (1 - z) n + z h_{t-1}, written as n + z (h_{t-1} - n).
template <class V>
FASTRNN_HD inline V interpolate(V z, V n, V h) {
  return multiply_add(z, h - n, n);
}

// r, z; n = tanh(W_in x + b_in + r (W_hn h_{t-1} + b_hn))       (the form of cuDNN and PyTorch)
struct Gru : Phase {
  static constexpr int gates = 3, slots = 4;
  static constexpr bool reads_h = true;
  static constexpr int separate = 2;  // slot[3] holds W_hn h_{t-1} + b_hn

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>&) {
    slot[0] = sigmoid(slot[0]);
    slot[1] = sigmoid(slot[1]);
    slot[2] = hyperbolic_tangent(multiply_add(slot[0], slot[3], slot[2]));
    state.h = interpolate(slot[1], slot[2], state.h);
  }
};

// r, z; n = tanh(W_in x + b_in + W_hn (r h_{t-1}) + b_hn)                     (Cho et al. 2014)
// First phase: r and z, and r h_{t-1} as what the second phase multiplies.
struct GruResetBeforeGates : Phase {
  static constexpr int gates = 2, slots = 2;
  static constexpr bool reads_h = true;
  static constexpr bool keeps_slots = true;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>&) {
    slot[0] = sigmoid(slot[0]);
    slot[1] = sigmoid(slot[1]);
    state.h = slot[0] * state.h;
  }
};

// Second phase: slot[0] is the z that the first phase left, slot[1] the candidate n.
struct GruResetBeforeCandidate : Phase {
  static constexpr int gates = 1, slots = 2;
  static constexpr bool reads_h = true;
  static constexpr int slot_offset = 1;
  static constexpr int first_slot = 1;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>&) {
    slot[1] = hyperbolic_tangent(slot[1]);
    state.h = interpolate(slot[0], slot[1], state.h);
  }
};

// h_t = W_hr m_t, the recurrent projection of Sak et al. 2014: a product without lane-wise math.
struct Projection : Phase {
  static constexpr int gates = 1, slots = 1;
  static constexpr bool reads_slots = false;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const Peephole<V>&) {
    state.h = slot[0];
  }
};

}  // namespace fastrnn::FASTRNN_TARGET
