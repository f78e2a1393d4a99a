// The equations: one struct per cell, templated on the lane type V (a SIMD Vec, a scalar, a CUDA
// thread's value). The only home of gate math and gate order.
//
// A cell sees the `slots` of its units for one step and the state of those units:
//
//   slot[0 .. slots)   on entry the pre-activation  W_ih x + W_hh h + b, on return the activated gate.
//   state.h, state.c   on entry h_{t-1} and c_{t-1}, on return h_t and c_t.
//
// In training the driver keeps every slot, c_t (cells with `has_cell_state`), h_t and what a first phase
// leaves for the second: the tape. c_t and its tanh are cheaper to form again than to load. `backward` sees
// the same:
//
//   slot[0 .. slots)   on entry the activated gate, on return the gradient of its pre-activation, so that
//                      dW_ih, dW_hh and dX read them in place.
//   before             h_{t-1} and c_{t-1}.
//   grad.h, grad.c     on entry the gradients of h_t and c_t; on return that of c_{t-1} and, of cells that
//                      `pass_h`, the part of h_{t-1} that does not come through the products.
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

// What else acts lane by lane: rows i, f, o of weight_peep, unused by cells without peepholes, and the bound
// of |c_t|, infinite where there is none.
template <class V>
struct LaneWeights {
  V i, f, o, clip;
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
  static constexpr bool passes_h = false;     // backward leaves a part of the gradient of h_{t-1} ...
  static constexpr bool adds_h = false;       // ... to be added to that of the other phase
};

// Slopes of the activations in terms of their value, f'(x) = slope(f(x)).
template <class V>
FASTRNN_HD inline V sigmoid_slope(V y) {
  return multiply_add(-y, y, y);
}
template <class V>
FASTRNN_HD inline V tanh_slope(V y) {
  return multiply_add(-y, y, V(1));
}

// h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)                                    (Elman 1990)
template <Nonlinearity nonlinearity>
struct Rnn : Phase {
  static constexpr int gates = 1, slots = 1;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>&) {
    slot[0] = activate<nonlinearity>(slot[0]);
    state.h = slot[0];
  }

  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>&, State<V>& grad, const LaneWeights<V>&) {
    const V h = slot[0];
    if constexpr (nonlinearity == Nonlinearity::tanh) slot[0] = grad.h * tanh_slope(h);
    if constexpr (nonlinearity == Nonlinearity::relu) slot[0] = where_positive(h, grad.h);
    if constexpr (nonlinearity == Nonlinearity::sigmoid) slot[0] = grad.h * sigmoid_slope(h);
  }
};

// i, f, g, o; c_t = f c_{t-1} + i g; h_t = o tanh(c_t)      (Hochreiter & Schmidhuber 1997, with the
// forget gate of Gers et al. 2000). With peepholes (Gers & Schmidhuber 2000) i and f also see
// c_{t-1}, and o sees c_t. Coupled (Greff et al. 2017), f is 1 - i: i, g, o. c_t may be clipped
// (Sak et al. 2014).
template <bool peephole, bool coupled = false>
struct Lstm : Phase {
  static constexpr int gates = coupled ? 3 : 4, slots = gates;
  static constexpr bool has_cell_state = true;
  static constexpr bool has_peephole = peephole;
  static constexpr int i = 0, f = 1, g = coupled ? 1 : 2, o = coupled ? 2 : 3;

  // c_t before it is clipped.
  template <class V>
  FASTRNN_HD static V candidate(const V (&slot)[slots], const V& c) {
    if constexpr (coupled) return multiply_add(slot[i], slot[g] - c, c);
    return multiply_add(slot[f], c, slot[i] * slot[g]);
  }
  template <class V>
  FASTRNN_HD static V clipped(const V& c, const V& bound) {
    return minimum(bound, maximum(-bound, c));
  }

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>& weights) {
    gate(slot, state, weights);
    state.h = slot[o] * hyperbolic_tangent(state.c);
  }

  // All but h_t.
  template <class V>
  FASTRNN_HD static void gate(V (&slot)[slots], State<V>& state, const LaneWeights<V>& weights) {
    if constexpr (peephole) {
      slot[i] = multiply_add(weights.i, state.c, slot[i]);
      if constexpr (!coupled) slot[f] = multiply_add(weights.f, state.c, slot[f]);
    }
    slot[i] = sigmoid(slot[i]);
    if constexpr (!coupled) slot[f] = sigmoid(slot[f]);
    slot[g] = hyperbolic_tangent(slot[g]);
    state.c = clipped(candidate(slot, state.c), weights.clip);
    if constexpr (peephole) slot[o] = multiply_add(weights.o, state.c, slot[o]);
    slot[o] = sigmoid(slot[o]);
  }

  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>& before, State<V>& grad,
                                  const LaneWeights<V>& weights) {
    const V tanh_c = hyperbolic_tangent(clipped(candidate(slot, before.c), weights.clip));
    const V gate_o = slot[o];
    slot[o] = grad.h * tanh_c * sigmoid_slope(gate_o);
    grad.c = multiply_add(grad.h * gate_o, tanh_slope(tanh_c), grad.c);
    gate_backward(slot, before, grad, weights);
  }

  // From the gradients of c_t, which still lacks what o's peephole passes, and of the pre-activation of o.
  template <class V>
  FASTRNN_HD static void gate_backward(V (&slot)[slots], const State<V>& before, State<V>& grad,
                                       const LaneWeights<V>& weights) {
    V dc = grad.c;
    if constexpr (peephole) dc = multiply_add(weights.o, slot[o], dc);
    dc = dc - where_positive(magnitude(candidate(slot, before.c)) - weights.clip, dc);
    const V gate_i = slot[i], gate_g = slot[g];
    if constexpr (coupled) {
      slot[i] = dc * (gate_g - before.c) * sigmoid_slope(gate_i);
      grad.c = dc - dc * gate_i;
    } else {
      const V gate_f = slot[f];
      slot[i] = dc * gate_g * sigmoid_slope(gate_i);
      slot[f] = dc * before.c * sigmoid_slope(gate_f);
      grad.c = dc * gate_f;
    }
    slot[g] = dc * gate_i * tanh_slope(gate_g);
    if constexpr (peephole) {
      grad.c = multiply_add(weights.i, slot[i], grad.c);
      if constexpr (!coupled) grad.c = multiply_add(weights.f, slot[f], grad.c);
    }
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
  static constexpr bool passes_h = true;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>&) {
    slot[0] = sigmoid(slot[0]);
    slot[1] = sigmoid(slot[1]);
    slot[2] = hyperbolic_tangent(multiply_add(slot[0], slot[3], slot[2]));
    state.h = interpolate(slot[1], slot[2], state.h);
  }

  // Leaves the gradients in the order n, r, z, n: the first three are those of the products with x, the
  // last three those of the products with h.
  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>& before, State<V>& grad,
                                  const LaneWeights<V>&) {
    const V r = slot[0], z = slot[1], n = slot[2];
    const V dn = (grad.h - grad.h * z) * tanh_slope(n);
    slot[1] = dn * slot[3] * sigmoid_slope(r);
    slot[2] = grad.h * (before.h - n) * sigmoid_slope(z);
    slot[0] = dn;
    slot[3] = dn * r;
    grad.h = grad.h * z;
  }
};

// r, z; n = tanh(W_in x + b_in + W_hn (r h_{t-1}) + b_hn)                     (Cho et al. 2014)
// First phase: r and z, and r h_{t-1} as what the second phase multiplies.
struct GruResetBeforeGates : Phase {
  static constexpr int gates = 2, slots = 2;
  static constexpr bool reads_h = true;
  static constexpr bool keeps_slots = true;
  static constexpr bool passes_h = true;
  static constexpr bool adds_h = true;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>&) {
    slot[0] = sigmoid(slot[0]);
    slot[1] = sigmoid(slot[1]);
    state.h = slot[0] * state.h;
  }

  // The second phase, which comes first in backward, has left the gradient of z.
  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>& before, State<V>& grad,
                                  const LaneWeights<V>&) {
    const V r = slot[0];
    slot[0] = grad.h * before.h * sigmoid_slope(r);
    grad.h = grad.h * r;
  }
};

// Second phase: slot[0] is the z that the first phase left, slot[1] the candidate n.
struct GruResetBeforeCandidate : Phase {
  static constexpr int gates = 1, slots = 2;
  static constexpr bool reads_h = true;
  static constexpr int slot_offset = 1;
  static constexpr int first_slot = 1;
  static constexpr bool passes_h = true;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>&) {
    slot[1] = hyperbolic_tangent(slot[1]);
    state.h = interpolate(slot[0], slot[1], state.h);
  }

  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>& before, State<V>& grad,
                                  const LaneWeights<V>&) {
    const V z = slot[0], n = slot[1];
    slot[1] = (grad.h - grad.h * z) * tanh_slope(n);
    slot[0] = grad.h * (before.h - n) * sigmoid_slope(z);
    grad.h = grad.h * z;
  }
};

// h_t = W_hr m_t, the recurrent projection of Sak et al. 2014: a product without lane-wise math.
struct Projection : Phase {
  static constexpr int gates = 1, slots = 1;
  static constexpr bool reads_slots = false;

  template <class V>
  FASTRNN_HD static void forward(V (&slot)[slots], State<V>& state, const LaneWeights<V>&) {
    state.h = slot[0];
  }

  template <class V>
  FASTRNN_HD static void backward(V (&slot)[slots], const State<V>&, State<V>& grad, const LaneWeights<V>&) {
    slot[0] = grad.h;
  }
};

}  // namespace fastrnn::FASTRNN_TARGET
