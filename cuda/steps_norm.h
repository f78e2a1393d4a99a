// Layer normalisation (Ba, Kiros & Hinton 2016) inside a step, one team of threads for each row; equations as
// in csrc/norm.h. Both products of a cell with G gates are normalised over the values of a row before they
// are added, and c_t before the tanh of the output.
//
// Slots of a unit are G of the product with x, then G of the product with h: normalised after forward, and
// after backward the gradients of the products.
#pragma once

#include "steps_cells.h"

namespace fastrnn::FASTRNN_TARGET {

// Of one direction: (G*H,) each, of c (H,). A null bias is none.
template <class T>
struct NormParameters {
  const T *ih_weight = nullptr, *ih_bias = nullptr, *hh_weight = nullptr, *hh_bias = nullptr;
  const T *c_weight = nullptr, *c_bias = nullptr, *bias_ih = nullptr, *bias_hh = nullptr;
};

// What is kept of each row of a step, in this order.
enum NormMoment { scale_x, scale_h, scale_h2, mean_c, scale_c, norm_moments };

// Of the sums of a row over the steps, where each kind begins: gains and shifts of both products (G each), of
// c, and peepholes i, f, o.
struct NormSums {
  int gates;
  FASTRNN_HD int gain_x() const { return 0; }
  FASTRNN_HD int shift_x() const { return gates; }
  FASTRNN_HD int gain_h() const { return 2 * gates; }
  FASTRNN_HD int shift_h() const { return 3 * gates; }
  FASTRNN_HD int gain_c() const { return 4 * gates; }
  FASTRNN_HD int shift_c() const { return 4 * gates + 1; }
  FASTRNN_HD int peephole() const { return 4 * gates + 2; }
  FASTRNN_HD int count() const { return 4 * gates + 2 + peephole_sums; }
};

template <class M>
struct Moments {
  M mean, scale;  // 1 / sqrt(variance + 1e-5)
};

// Of the values that `value(gate, unit)` gives for `gates` gates of all units.
template <class M, class Team, class Value>
FASTRNN_HD inline Moments<M> moments_of(const Team& team, std::int64_t units, int gates, const Value& value) {
  const M count = static_cast<M>(units * gates);
  M sum(0);
  for (std::int64_t u = team.thread; u < units; u += team.threads) {
    for (int g = 0; g < gates; ++g) sum += value(g, u);
  }
  const M mean = team.sum(sum) / count;
  M squares(0);
  for (std::int64_t u = team.thread; u < units; u += team.threads) {
    for (int g = 0; g < gates; ++g) {
      const M distance = value(g, u) - mean;
      squares += distance * distance;
    }
  }
  return {mean, M(1) / std::sqrt(team.sum(squares) / count + M(1e-5))};
}

// The parts of a gate's pre-activation, of products that are normalised.
template <class M, class T>
FASTRNN_HD inline M part_of_x(const NormParameters<T>& p, std::int64_t at, M x) {
  const M shift = static_cast<M>(p.ih_bias[at]) + (p.bias_ih ? static_cast<M>(p.bias_ih[at]) : M(0));
  return static_cast<M>(p.ih_weight[at]) * x + shift;
}
template <class M, class T>
FASTRNN_HD inline M part_of_h(const NormParameters<T>& p, std::int64_t at, M h) {
  const M shift = static_cast<M>(p.hh_bias[at]) + (p.bias_hh ? static_cast<M>(p.bias_hh[at]) : M(0));
  return static_cast<M>(p.hh_weight[at]) * h + shift;
}

// The pre-activations of a phase's own gates from what `slots` of a unit hold, and before them z of the two
// phases. slots: at slot 0 of the unit, H apart.
template <class Cell, class M, class T>
FASTRNN_HD inline void read_gates(const NormParameters<T>& p, const T* slots, std::int64_t hidden, int gates,
                                  std::int64_t u, M (&slot)[Cell::slots]) {
  if constexpr (Cell::first_slot > 0) {
    constexpr int z = Cell::slot_offset;
    slot[0] = sigmoid(part_of_x(p, z * hidden + u, static_cast<M>(slots[z * hidden])) +
                      part_of_h(p, z * hidden + u, static_cast<M>(slots[(gates + z) * hidden])));
  }
  for (int g = 0; g < Cell::gates; ++g) {
    const int gate = Cell::slot_offset + Cell::first_slot + g;
    const M x = part_of_x(p, gate * hidden + u, static_cast<M>(slots[gate * hidden]));
    const M h = part_of_h(p, gate * hidden + u, static_cast<M>(slots[(gates + gate) * hidden]));
    if (g == Cell::separate) {
      slot[Cell::first_slot + g] = x;
      slot[Cell::slots - 1] = h;
    } else {
      slot[Cell::first_slot + g] = x + h;
    }
  }
}

template <class T, class M>
struct NormChain {
  NormParameters<T> parameters;
  M* moments = nullptr;                      // (B, norm_moments) of this step
  M *first = nullptr, *second = nullptr;     // (B, H) each: between two passes over the units
  M *third = nullptr, *gradients = nullptr;  // (B, H) and (B, 2G*H), in backward
};

// One phase of a step after its product.
template <class Cell, class T, class M>
struct NormForward {
  CellForward<Cell, T, M> cell;
  NormChain<T, M> norm[most_directions];

  template <class Team>
  FASTRNN_HD void operator()(std::int64_t row, const Team& team) const {
    const Frame& frame = cell.frame;
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch, hidden = frame.hidden;
    const StepChain<T, M>& c = cell.chain[d];
    const NormChain<T, M>& n = norm[d];
    if (!frame.active(c.t, b)) {
      for (std::int64_t u = team.thread; u < hidden; u += team.threads) cell.skip(c, d, b, u);
      return;
    }
    constexpr int first_gate = Cell::slot_offset + Cell::first_slot;
    T* const slots = c.slots + b * frame.slots * hidden;
    const M* const product = c.product + (b * frame.gates + first_gate) * hidden;
    M* const kept = n.moments + b * norm_moments;
    normalise_x(slots, team, kept);
    const Moments<M> of_h = moments_of<M>(team, hidden, Cell::gates,
                                          [&](int g, std::int64_t u) { return product[g * hidden + u]; });
    if (team.thread == 0) kept[Cell::slot_offset ? scale_h2 : scale_h] = of_h.scale;
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      for (int g = 0; g < Cell::gates; ++g) {
        const M h = (product[g * hidden + u] - of_h.mean) * of_h.scale;
        slots[(frame.gates + first_gate + g) * hidden + u] = static_cast<T>(h);
      }
      M slot[Cell::slots];
      read_gates<Cell>(n.parameters, slots + u, hidden, frame.gates, u, slot);
      State<M> state{M(0), M(0)};
      if constexpr (Cell::reads_h) {
        state.h = static_cast<M>((Cell::keeps_slots ? c.operand : c.h.before)[b * frame.state + u]);
      }
      const LaneWeights<M> weights = lane_weights<M, Cell>(c.peephole, hidden, u, cell.clip);
      if constexpr (Cell::has_cell_state) {
        state.c = c.c.before[b * hidden + u];
        Cell::gate(slot, state, weights);
        n.first[b * hidden + u] = state.c;
        n.second[b * hidden + u] = slot[Cell::o];
        put_state(frame, c.c, d, c.t, b, u, state.c);
      } else {
        Cell::forward(slot, state, weights);
        put(c, d, b, u, state.h);
      }
    }
    if constexpr (Cell::has_cell_state) emit(c, n, team, d, b, kept);
  }

  // All gates of x, before the first phase.
  template <class Team>
  FASTRNN_HD void normalise_x(T* slots, const Team& team, M* kept) const {
    if constexpr (Cell::slot_offset == 0) {
      const std::int64_t hidden = cell.frame.hidden;
      const int gates = cell.frame.gates;
      const Moments<M> of_x = moments_of<M>(
          team, hidden, gates, [&](int g, std::int64_t u) { return static_cast<M>(slots[g * hidden + u]); });
      if (team.thread == 0) kept[scale_x] = of_x.scale;
      for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
        for (int g = 0; g < gates; ++g) {
          T& x = slots[g * hidden + u];
          x = static_cast<T>((static_cast<M>(x) - of_x.mean) * of_x.scale);
        }
      }
    }
  }

  // h_t = o tanh(LN(c_t))
  template <class Team>
  FASTRNN_HD void emit(const StepChain<T, M>& c, const NormChain<T, M>& n, const Team& team, int d,
                       std::int64_t b, M* kept) const {
    const std::int64_t hidden = cell.frame.hidden;
    const M *const candidate = n.first + b * hidden, *const o = n.second + b * hidden;
    const Moments<M> of_c = moments_of<M>(team, hidden, 1, [&](int, std::int64_t u) { return candidate[u]; });
    if (team.thread == 0) {
      kept[mean_c] = of_c.mean;
      kept[scale_c] = of_c.scale;
    }
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      const M normed = (candidate[u] - of_c.mean) * of_c.scale;
      const M scaled =
          static_cast<M>(n.parameters.c_weight[u]) * normed + static_cast<M>(n.parameters.c_bias[u]);
      put(c, d, b, u, o[u] * hyperbolic_tangent(scaled));
    }
  }

  FASTRNN_HD void put(const StepChain<T, M>& c, int d, std::int64_t b, std::int64_t u, M h) const {
    if (Cell::keeps_slots || cell.projects) {
      c.exchange[b * cell.frame.hidden + u] = static_cast<T>(h);
    } else {
      put_h(cell.frame, c, d, b, u, h);
    }
  }
};

// Where `backward` of a cell leaves the gradient of a gate's two parts.
template <class Cell>
FASTRNN_HD constexpr int slot_of_x(int gate) {
  return Cell::separate >= 0 ? (gate + 1) % 3 : Cell::first_slot + gate;
}
template <class Cell>
FASTRNN_HD constexpr int slot_of_h(int gate) {
  return Cell::separate >= 0 ? gate + 1 : Cell::first_slot + gate;
}

// One phase of a step, before its product.
template <class Cell, class T, class M>
struct NormBackward {
  CellBackward<Cell, T, M> cell;
  NormChain<T, M> norm[most_directions];

  static constexpr int first_gate = Cell::slot_offset + Cell::first_slot;

  template <class Team>
  FASTRNN_HD void operator()(std::int64_t row, const Team& team) const {
    const Frame& frame = cell.frame;
    const int d = row >= frame.batch;
    const std::int64_t b = row - d * frame.batch, hidden = frame.hidden;
    const BackwardChain<T, M>& c = cell.chain[d];
    const NormChain<T, M>& n = norm[d];
    T* const slots = c.slots + b * frame.slots * hidden;
    if (!frame.active(c.t, b)) {
      for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
        if (!(Cell::keeps_slots || cell.projects)) gradient_of_h(frame, c, d, b, u);
        for (int j = 0; j < frame.slots; ++j) slots[j * hidden + u] = T(0);
      }
      return;
    }
    Moments<M> means{M(0), M(0)};
    if constexpr (Cell::has_cell_state) means = through_output(c, n, team, d, b);
    M* const gradients = n.gradients + b * frame.slots * hidden;
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      gate_gradients(c, n, d, b, u, means, gradients + u);
    }
    const M* const kept = n.moments + b * norm_moments;
    through_products(slots, gradients, team, frame.gates + first_gate, Cell::gates,
                     kept[Cell::slot_offset ? scale_h2 : scale_h]);
    // Those of x when all gates are known.
    if constexpr (Cell::slot_offset == 0)
      through_products(slots, gradients, team, 0, frame.gates, kept[scale_x]);
  }

  FASTRNN_HD M gradient_of_result(const BackwardChain<T, M>& c, int d, std::int64_t b, std::int64_t u) const {
    if (Cell::keeps_slots || cell.projects) return c.dexchange[b * cell.frame.hidden + u];
    return gradient_of_h(cell.frame, c, d, b, u);
  }

  FASTRNN_HD M* sums_of(const BackwardChain<T, M>& c, std::int64_t b, std::int64_t u, int which) const {
    const Frame& frame = cell.frame;
    return c.sums + (b * NormSums{frame.gates}.count() + which) * frame.hidden + u;
  }

  // From h_t to LN(c_t) and o. Leaves the gradient of the normalised c_t, it, and the gradient of o's
  // pre-activation; returns the means of the first, and of its product with the second.
  template <class Team>
  FASTRNN_HD Moments<M> through_output(const BackwardChain<T, M>& c, const NormChain<T, M>& n,
                                       const Team& team, int d, std::int64_t b) const {
    const Frame& frame = cell.frame;
    const NormSums at{frame.gates};
    const std::int64_t hidden = frame.hidden;
    const M* const kept = n.moments + b * norm_moments;
    const T* const slots = c.slots + b * frame.slots * hidden;
    M sum(0), sum_products(0);
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      const M dh = gradient_of_result(c, d, b, u);
      M slot[Cell::slots];
      State<M> state{M(0), c.c_before[b * hidden + u]};
      read_gates<Cell>(n.parameters, slots + u, hidden, frame.gates, u, slot);
      Cell::gate(slot, state, lane_weights<M, Cell>(c.peephole, hidden, u, cell.clip));
      const M normed = (state.c - kept[mean_c]) * kept[scale_c];
      const M gain = static_cast<M>(n.parameters.c_weight[u]);
      const M tanh_c = hyperbolic_tangent(gain * normed + static_cast<M>(n.parameters.c_bias[u]));
      const M o = slot[Cell::o], d_scaled = dh * o * tanh_slope(tanh_c);
      const M d_o = dh * tanh_c * sigmoid_slope(o), d_normed = d_scaled * gain;
      *sums_of(c, b, u, at.gain_c()) += d_scaled * normed;
      *sums_of(c, b, u, at.shift_c()) += d_scaled;
      if constexpr (Cell::has_peephole) *sums_of(c, b, u, at.peephole() + 2) += d_o * state.c;
      n.first[b * hidden + u] = d_normed;
      n.second[b * hidden + u] = normed;
      n.third[b * hidden + u] = d_o;
      sum += d_normed;
      sum_products += d_normed * normed;
    }
    const M mean = team.sum(sum) / static_cast<M>(hidden);
    return {mean, team.sum(sum_products) / static_cast<M>(hidden)};
  }

  // To the pre-activations of unit u, and to the normalised products, whose gradients it leaves.
  FASTRNN_HD void gate_gradients(const BackwardChain<T, M>& c, const NormChain<T, M>& n, int d,
                                 std::int64_t b, std::int64_t u, const Moments<M>& means,
                                 M* gradients) const {
    const Frame& frame = cell.frame;
    const NormSums at{frame.gates};
    const std::int64_t hidden = frame.hidden, unit = b * hidden + u;
    const T* const slots = c.slots + b * frame.slots * hidden + u;
    M slot[Cell::slots];
    read_gates<Cell>(n.parameters, slots, hidden, frame.gates, u, slot);
    State<M> before{M(0), M(0)}, grad{M(0), M(0)};
    if constexpr (Cell::reads_h) {
      before.h = static_cast<M>((Cell::keeps_slots ? c.operand : c.h_before)[b * frame.state + u]);
    }
    const LaneWeights<M> weights = lane_weights<M, Cell>(c.peephole, hidden, u, cell.clip);
    State<M> state = before;
    if constexpr (Cell::has_cell_state) {
      state.c = before.c = c.c_before[unit];
      Cell::gate(slot, state, weights);
      M passed;
      const M from_output = n.first[unit] - means.mean - n.second[unit] * means.scale;
      grad.c = gradient_of_c(frame, c, b, u, passed) + from_output * n.moments[b * norm_moments + scale_c];
      slot[Cell::o] = n.third[unit];
      Cell::gate_backward(slot, before, grad, weights);
      c.dc[unit] = frame.is_cut(d, c.t, b) ? M(0) : grad.c + passed;
      if constexpr (Cell::has_peephole) {
        *sums_of(c, b, u, at.peephole()) += slot[Cell::i] * before.c;
        if constexpr (Cell::slots == 4) *sums_of(c, b, u, at.peephole() + 1) += slot[Cell::f] * before.c;
      }
    } else {
      grad.h = gradient_of_result(c, d, b, u);
      if constexpr (Cell::keeps_slots) {
        slot[0] = sigmoid(slot[0]);
        slot[1] = n.first[unit];  // the gradient of z, of the phase that came before
      } else {
        Cell::forward(slot, state, weights);
      }
      Cell::backward(slot, before, grad, weights);
      if constexpr (Cell::first_slot > 0) n.first[unit] = slot[0];
      if constexpr (Cell::passes_h) {
        if (Cell::adds_h && c.mask.probability > 0) grad.h *= c.mask.template factor<M>(0, b, u);
        c.carry[b * frame.state + u] += grad.h;
      }
    }
    for (int g = 0; g < Cell::gates; ++g) {
      const int gate = first_gate + g;
      const M dx = slot[slot_of_x<Cell>(g)], dh = slot[slot_of_h<Cell>(g)];
      *sums_of(c, b, u, at.gain_x() + gate) += dx * static_cast<M>(slots[gate * hidden]);
      *sums_of(c, b, u, at.shift_x() + gate) += dx;
      *sums_of(c, b, u, at.gain_h() + gate) += dh * static_cast<M>(slots[(frame.gates + gate) * hidden]);
      *sums_of(c, b, u, at.shift_h() + gate) += dh;
      gradients[gate * hidden] = dx * static_cast<M>(n.parameters.ih_weight[gate * hidden + u]);
      gradients[(frame.gates + gate) * hidden] =
          dh * static_cast<M>(n.parameters.hh_weight[gate * hidden + u]);
    }
  }

  // To `count` slots' products, which were normalised together.
  template <class Team>
  FASTRNN_HD void through_products(T* slots, const M* gradients, const Team& team, int first, int count,
                                   M scale) const {
    const std::int64_t hidden = cell.frame.hidden;
    M sum(0), sum_products(0);
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      for (int j = first; j < first + count; ++j) {
        const M grad = gradients[j * hidden + u];
        sum += grad;
        sum_products += grad * static_cast<M>(slots[j * hidden + u]);
      }
    }
    const M values = static_cast<M>(hidden * count);
    const M mean = team.sum(sum) / values, mean_product = team.sum(sum_products) / values;
    for (std::int64_t u = team.thread; u < hidden; u += team.threads) {
      for (int j = first; j < first + count; ++j) {
        T& slot = slots[j * hidden + u];
        slot =
            static_cast<T>(scale * (gradients[j * hidden + u] - mean - static_cast<M>(slot) * mean_product));
      }
    }
  }
};

}  // namespace fastrnn::FASTRNN_TARGET
