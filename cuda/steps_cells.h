// One step of a layer on a device, unit by unit: the math of cells.h between two products, and what the
// options add to it. Forward and backward.
//
// All directions of a layer take a step together: row d * B + b of a launch is batch row b of direction d,
// which has a `chain` of pointers of its own. Step s is time s, or in reverse T - 1 - s, for all rows alike:
// a row takes no step at a time past its length, so its reverse direction starts at its own last step.
//
// The state is kept as what the next step starts from: zeroed where a reset cuts, h0 where a row starts, and
// zero where the row takes no step, so that a NaN beyond a row's length reaches no product.
//
// T: type of what is stored; M: of the math, the cell state and of gradients between steps.
#pragma once

#include "lane.h"
#include "philox.h"
#include "rnn.h"

namespace fastrnn::FASTRNN_TARGET {

constexpr int most_directions = 2;

// What all kernels of a call know.
struct Frame {
  std::int64_t steps = 0, batch = 0, hidden = 0, state = 0;  // T, B, H, R
  int gates = 1, slots = 1;                                  // of a unit
  const std::int64_t* lengths = nullptr;                     // (B,); null: all T
  const char* resets = nullptr;                              // (T, B); null: none
  bool training = false;                                     // zoneout draws, else it mixes

  FASTRNN_HD std::int64_t length(std::int64_t b) const { return lengths ? lengths[b] : steps; }
  FASTRNN_HD bool active(std::int64_t t, std::int64_t b) const { return t >= 0 && t < length(b); }
  // The step of a row that takes the initial state, and the one that leaves the final state.
  FASTRNN_HD bool is_first(int d, std::int64_t t, std::int64_t b) const {
    return t == (d ? length(b) - 1 : 0);
  }
  FASTRNN_HD bool is_last(int d, std::int64_t t, std::int64_t b) const {
    return t == (d ? 0 : length(b) - 1);
  }
  // Whether a reset lies between time t and the step before it. The cut is before the later of two times,
  // whichever a direction takes first.
  FASTRNN_HD bool is_cut(int d, std::int64_t t, std::int64_t b) const {
    if (!resets || !active(t, b)) return false;
    return d ? active(t + 1, b) && resets[(t + 1) * batch + b] : resets[t * batch + b];
  }
};

inline std::int64_t time_of(std::int64_t steps, int d, std::int64_t s) { return d ? steps - 1 - s : s; }

// h or c of one direction around one step. X: the type that it is kept in.
template <class T, class X>
struct StatePart {
  std::int64_t width = 0;      // R or H
  const T* initial = nullptr;  // (B, width); null: zeros
  T* final = nullptr;          // (B, width)
  const X* before = nullptr;   // (B, width): what the step starts from
  X* after = nullptr;          // (B, width): what the next one starts from
  X* operand = nullptr;        // (B, width): `after` with its mask, where there is one
  T* all = nullptr;            // (B, width) of this time; null: not wanted
  Draw zone, mask;             // mask: of recurrent dropout
};

// What the step after time t starts from, `value` being what this one gave.
template <class M, class T, class X>
FASTRNN_HD inline void hand_on(const Frame& frame, const StatePart<T, X>& part, int d, std::int64_t t,
                               std::int64_t b, std::int64_t u, M value) {
  const std::int64_t next = d ? t - 1 : t + 1, at = b * part.width + u;
  M state(0);
  if (frame.active(next, b) && !frame.is_cut(d, next, b)) {
    state = value;
    if (frame.is_first(d, next, b)) state = part.initial ? static_cast<M>(part.initial[at]) : M(0);
  }
  part.after[at] = static_cast<X>(state);
  if (part.operand) part.operand[at] = static_cast<X>(state * part.mask.template factor<M>(0, b, u));
}

// Zoneout (Krueger et al. 2017), all copies, and the way on. Returns the state after the step.
template <class M, class T, class X>
FASTRNN_HD inline M put_state(const Frame& frame, const StatePart<T, X>& part, int d, std::int64_t t,
                              std::int64_t b, std::int64_t u, M value) {
  const std::int64_t at = b * part.width + u;
  if (part.zone.probability > 0) {
    const M before = static_cast<M>(part.before[at]);
    if (frame.training) {
      if (part.zone.hit(t, b, u)) value = before;
    } else {
      const M z = static_cast<M>(part.zone.probability);
      value = z * before + (M(1) - z) * value;
    }
  }
  if (part.all) part.all[at] = static_cast<T>(value);
  if (frame.is_last(d, t, b)) part.final[at] = static_cast<T>(value);
  hand_on(frame, part, d, t, b, u, value);
  return value;
}

// Of one direction at one step.
template <class T, class M>
struct StepChain {
  std::int64_t t = 0;
  T* slots = nullptr;          // (B, slots * H): on entry products with x, without bias
  const M* product = nullptr;  // (B, G * H): with what was before
  const T *bias_ih = nullptr, *bias_hh = nullptr, *peephole = nullptr;  // null: none
  const M* projected = nullptr;                                         // (B, R): of cells with a projection
  T* exchange = nullptr;  // (B, H): what a first phase leaves for the second product
  StatePart<T, T> h;
  StatePart<T, M> c;
  const T* operand = nullptr;  // (B, R): h as the products saw it
  T* y = nullptr;              // row b at y + b * y_stride
  std::int64_t y_stride = 0;
};

template <class M, class Cell, class T>
FASTRNN_HD inline LaneWeights<M> lane_weights(const T* peephole, std::int64_t hidden, std::int64_t u,
                                              M clip) {
  LaneWeights<M> weights{M(0), M(0), M(0), clip};
  if constexpr (Cell::has_peephole) {  // rows i, f, o, or without f
    constexpr bool has_f = Cell::slots == 4;
    weights.i = static_cast<M>(peephole[u]);
    if constexpr (has_f) weights.f = static_cast<M>(peephole[hidden + u]);
    weights.o = static_cast<M>(peephole[(has_f ? 2 : 1) * hidden + u]);
  }
  return weights;
}

// A part of the state before anything: (D * B, width).
template <class T, class X, class M>
struct Start {
  Frame frame;
  StatePart<T, X> part[most_directions];  // `after` and `operand`: of the first step

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch, at = b * part[d].width + u;
    const T initial = part[d].initial ? part[d].initial[at] : T(0);
    if (frame.length(b) == 0) part[d].final[at] = initial;
    // The time before the first that any row takes.
    const std::int64_t t = d ? frame.steps : -1;
    hand_on(frame, part[d], d, t, b, u, static_cast<M>(initial));
  }
};

// What becomes of h_t.
template <class M, class T>
FASTRNN_HD inline void put_h(const Frame& frame, const StepChain<T, M>& chain, int d, std::int64_t b,
                             std::int64_t u, M h) {
  h = put_state(frame, chain.h, d, chain.t, b, u, h);
  chain.y[b * chain.y_stride + u] = static_cast<T>(h);
}

// Where a row takes no step.
template <class M, class T>
FASTRNN_HD inline void skip_h(const Frame& frame, const StepChain<T, M>& chain, int d, std::int64_t b,
                              std::int64_t u) {
  hand_on(frame, chain.h, d, chain.t, b, u, M(0));
  chain.y[b * chain.y_stride + u] = T(0);
}

// One phase of a step after its product: (D * B, H).
template <class Cell, class T, class M>
struct CellForward {
  Frame frame;
  M clip;
  bool projects, keep_slots;
  StepChain<T, M> chain[most_directions];

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch, hidden = frame.hidden;
    const StepChain<T, M>& c = chain[d];
    if (!frame.active(c.t, b)) {
      skip(c, d, b, u);
      return;
    }
    M slot[Cell::slots];
    T* const slots = c.slots + b * frame.slots * hidden + Cell::slot_offset * hidden + u;
    for (int j = 0; j < Cell::first_slot; ++j) slot[j] = static_cast<M>(slots[j * hidden]);
    for (int g = 0; g < Cell::gates; ++g) {
      const int j = Cell::first_slot + g;
      const std::int64_t gate = (Cell::slot_offset + j) * hidden + u;
      M from_x = static_cast<M>(slots[j * hidden]), from_h = c.product[b * frame.gates * hidden + gate];
      if (c.bias_ih) from_x += static_cast<M>(c.bias_ih[gate]);
      if (c.bias_hh) from_h += static_cast<M>(c.bias_hh[gate]);
      if (g == Cell::separate) {
        slot[j] = from_x;
        slot[Cell::slots - 1] = from_h;
      } else {
        slot[j] = from_x + from_h;
      }
    }
    State<M> state{M(0), M(0)};
    // Of two phases, the first makes of the masked h what a product reads.
    if constexpr (Cell::reads_h) {
      state.h = static_cast<M>((Cell::keeps_slots ? c.operand : c.h.before)[b * frame.state + u]);
    }
    if constexpr (Cell::has_cell_state) state.c = c.c.before[b * hidden + u];
    Cell::forward(slot, state, lane_weights<M, Cell>(c.peephole, hidden, u, clip));
    if (keep_slots || Cell::keeps_slots) {
      for (int j = 0; j < Cell::slots; ++j) slots[j * hidden] = static_cast<T>(slot[j]);
    }
    if constexpr (Cell::has_cell_state) put_state(frame, c.c, d, c.t, b, u, state.c);
    if (Cell::keeps_slots || projects) {
      c.exchange[b * hidden + u] = static_cast<T>(state.h);
    } else {
      put_h(frame, c, d, b, u, state.h);
    }
  }

  FASTRNN_HD void skip(const StepChain<T, M>& c, int d, std::int64_t b, std::int64_t u) const {
    if constexpr (Cell::has_cell_state) hand_on(frame, c.c, d, c.t, b, u, M(0));
    if (Cell::keeps_slots || projects) {
      c.exchange[b * frame.hidden + u] = T(0);
    } else {
      skip_h(frame, c, d, b, u);
    }
  }
};

// After a projection: (D * B, R).
template <class T, class M>
struct ProjectionForward {
  Frame frame;
  StepChain<T, M> chain[most_directions];

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch;
    if (frame.active(chain[d].t, b)) {
      put_h(frame, chain[d], d, b, u, chain[d].projected[b * frame.state + u]);
    } else {
      skip_h(frame, chain[d], d, b, u);
    }
  }
};

// ---- backward -----------------------------------------------------------------------------------------

// Of one direction at one step. What a step hands to the state before it is  carry + mask * product.
template <class T, class M>
struct BackwardChain {
  std::int64_t t = 0, after = 0;  // time of this step, and of the step that was taken back before it
  bool has_after = false;         // else `carry` is the gradient of the final state
  T* slots = nullptr;             // (B, slots * H): activated gates, which become gradients
  const T* peephole = nullptr;
  const T *h_before = nullptr, *operand = nullptr;  // (B, R)
  const M* c_before = nullptr;                      // (B, H)
  const T* grad_y = nullptr;                        // row b at grad_y + b * grad_y_stride; null: zeros
  std::int64_t grad_y_stride = 0;
  const T *grad_h_all = nullptr, *grad_c_all = nullptr;  // (B, R) and (B, H) of this time; null: zeros
  M* carry = nullptr;                                    // (B, R)
  const M* product = nullptr;                            // (B, R)
  M* dc = nullptr;                                       // (B, H): of the c that the step before hands on
  M* dexchange = nullptr;                                // (B, H): gradient of what a first phase left
  T* dprojected = nullptr;                               // (B, R): gradient of h, of cells with a projection
  M* sums = nullptr;  // (B, sums, H) over the steps; of cells with peepholes i, f, o
  Draw zone_h, zone_c, mask;
};

// What arrives at the state after the step, from later steps.
template <class T, class M>
FASTRNN_HD inline M arriving(const Frame& frame, const BackwardChain<T, M>& c, int d, std::int64_t b,
                             std::int64_t u) {
  const std::int64_t at = b * frame.state + u;
  M grad = c.carry[at];
  if (!c.has_after) return grad;
  M product = c.product[at];
  if (c.mask.probability > 0) product *= c.mask.template factor<M>(0, b, u);
  return frame.is_cut(d, c.after, b) ? M(0) : grad + product;
}

// How much of the old state a step keeps.
template <class M>
FASTRNN_HD inline M kept_share(const Frame& frame, const Draw& zone, std::int64_t t, std::int64_t b,
                               std::int64_t u) {
  if (!(zone.probability > 0)) return M(0);
  return frame.training ? (zone.hit(t, b, u) ? M(1) : M(0)) : static_cast<M>(zone.probability);
}

// The gradient of the h that the cell computed; what zoneout passes by goes into `carry`.
template <class T, class M>
FASTRNN_HD inline M gradient_of_h(const Frame& frame, const BackwardChain<T, M>& c, int d, std::int64_t b,
                                  std::int64_t u) {
  const std::int64_t at = b * frame.state + u;
  M grad = arriving(frame, c, d, b, u);
  if (!frame.active(c.t, b)) {
    c.carry[at] = grad;
    return M(0);
  }
  if (c.grad_y) grad += static_cast<M>(c.grad_y[b * c.grad_y_stride + u]);
  if (c.grad_h_all) grad += static_cast<M>(c.grad_h_all[at]);
  if (!(c.zone_h.probability > 0)) {
    c.carry[at] = M(0);
    return grad;
  }
  const M z = kept_share<M>(frame, c.zone_h, c.t, b, u);
  c.carry[at] = z * grad;
  return (M(1) - z) * grad;
}

// The same of c: what passes by is left in `passed`.
template <class T, class M>
FASTRNN_HD inline M gradient_of_c(const Frame& frame, const BackwardChain<T, M>& c, std::int64_t b,
                                  std::int64_t u, M& passed) {
  const std::int64_t at = b * frame.hidden + u;
  M grad = c.dc[at];
  if (c.grad_c_all) grad += static_cast<M>(c.grad_c_all[at]);
  passed = M(0);
  if (!(c.zone_c.probability > 0)) return grad;
  const M z = kept_share<M>(frame, c.zone_c, c.t, b, u);
  passed = z * grad;
  return (M(1) - z) * grad;
}

// The gradients of the final state: (D * B, R), and of c (D * B, H).
template <class T, class M>
struct StartBackward {
  Frame frame;
  std::int64_t width;
  M* to[most_directions];
  const T* from[most_directions];  // null: zeros

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t at = (row - d * frame.batch) * width + u;
    to[d][at] = from[d] ? static_cast<M>(from[d][at]) : M(0);
  }
};

// The gradients of the initial state: (D * B, max(R, H)).
template <class T, class M>
struct FinishBackward {
  Frame frame;
  BackwardChain<T, M> chain[most_directions];
  T *grad_h0[most_directions], *grad_c0[most_directions];  // null: not wanted

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch;
    if (grad_h0[d] && u < frame.state) {
      grad_h0[d][b * frame.state + u] = static_cast<T>(arriving(frame, chain[d], d, b, u));
    }
    if (grad_c0[d] && u < frame.hidden) {
      grad_c0[d][b * frame.hidden + u] = static_cast<T>(chain[d].dc[b * frame.hidden + u]);
    }
  }
};

// Before a projection: (D * B, R).
template <class T, class M>
struct ProjectionBackward {
  Frame frame;
  BackwardChain<T, M> chain[most_directions];

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch;
    chain[d].dprojected[b * frame.state + u] = static_cast<T>(gradient_of_h(frame, chain[d], d, b, u));
  }
};

// The sums of a row over the steps: rows of (sums, H), of which peepholes are the last three.
constexpr int peephole_sums = 3;

// One phase of a step, before its product: (D * B, H).
template <class Cell, class T, class M>
struct CellBackward {
  Frame frame;
  M clip;
  bool projects;
  BackwardChain<T, M> chain[most_directions];

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch, hidden = frame.hidden, at = b * hidden + u;
    const BackwardChain<T, M>& c = chain[d];
    State<M> grad{M(0), M(0)};
    // The first of two phases comes last, and its gradient from the other's product.
    const bool from_product = Cell::keeps_slots || projects;
    grad.h = from_product ? c.dexchange[at] : gradient_of_h(frame, c, d, b, u);
    T* const slots = c.slots + b * frame.slots * hidden + Cell::slot_offset * hidden + u;
    if (!frame.active(c.t, b)) {
      for (int j = 0; j < Cell::slots; ++j) slots[j * hidden] = T(0);
      return;
    }
    M slot[Cell::slots];
    for (int j = 0; j < Cell::slots; ++j) slot[j] = static_cast<M>(slots[j * hidden]);
    State<M> before{M(0), M(0)};
    if constexpr (Cell::reads_h) {
      before.h = static_cast<M>((Cell::keeps_slots ? c.operand : c.h_before)[b * frame.state + u]);
    }
    if constexpr (Cell::has_cell_state) {
      M passed;
      before.c = c.c_before[at];
      grad.c = gradient_of_c(frame, c, b, u, passed);
      const LaneWeights<M> weights = lane_weights<M, Cell>(c.peephole, hidden, u, clip);
      M seen_by_o(0);
      if constexpr (Cell::has_peephole) seen_by_o = Cell::clipped(Cell::candidate(slot, before.c), clip);
      Cell::backward(slot, before, grad, weights);
      c.dc[at] = frame.is_cut(d, c.t, b) ? M(0) : grad.c + passed;
      if constexpr (Cell::has_peephole) {
        M* const sums = c.sums + b * peephole_sums * hidden + u;
        sums[0] += slot[Cell::i] * before.c;
        if constexpr (Cell::slots == 4) sums[hidden] += slot[Cell::f] * before.c;
        sums[2 * hidden] += slot[Cell::o] * seen_by_o;
      }
    } else {
      Cell::backward(slot, before, grad, LaneWeights<M>{});
      if constexpr (Cell::passes_h) {
        if (Cell::adds_h && c.mask.probability > 0) grad.h *= c.mask.template factor<M>(0, b, u);
        c.carry[b * frame.state + u] += grad.h;
      }
    }
    for (int j = 0; j < Cell::slots; ++j) slots[j * hidden] = static_cast<T>(slot[j]);
  }
};

}  // namespace fastrnn::FASTRNN_TARGET
