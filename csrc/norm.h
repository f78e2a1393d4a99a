// Layer normalisation (Ba, Kiros & Hinton 2016) inside a step. Both products of a cell with G gates are
// normalised over the G*H values of a row before they are added; so their kernels are a plain product
// (gemm.h), then what is here: moments of rows, the cell's math on the normalised products, and the way back.
//
// Slots of a unit are G of the product with x, then G of the product with h: the products on entry,
// normalised on return, and after backward the gradients of the products.
#pragma once

#include "cells.h"
#include "kernels.h"
#include "simd.h"

namespace fastrnn::FASTRNN_TARGET {

template <class T>
FASTRNN_INLINE T sum_of_lanes(Vec<T> v) {
  T total = v.raw[0];
#pragma GCC unroll 16
  for (int lane = 1; lane < Vec<T>::lanes; ++lane) total += v.raw[lane];
  return total;
}

// Ones in the lanes that exist.
template <class T>
FASTRNN_INLINE Vec<T> existing_lanes(std::int64_t count) {
  using V = Vec<T>;
  const V ones(T(1));
  return count >= V::lanes ? ones : V::load_up_to(reinterpret_cast<const T*>(&ones), count);
}

// Sums run over the panels in order, then over the lanes.
template <class T>
void moments(const MomentsArguments<T>& a) {
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  const std::int64_t panels = (a.units + lanes - 1) / lanes;
  const T count = static_cast<T>(a.units * a.gates);
  for (std::int64_t row = 0; row < a.rows; ++row) {
    const T* const x = a.x[row];
    V sum(T(0));
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      for (int gate = 0; gate < a.gates; ++gate) {
        sum = sum + V::load_up_to(x + (panel * a.slots_per_unit + gate) * lanes, a.units - panel * lanes);
      }
    }
    const T mean = sum_of_lanes(sum) / count;
    V squares(T(0));
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const V exist = existing_lanes<T>(a.units - panel * lanes);
      for (int gate = 0; gate < a.gates; ++gate) {
        const T* const at = x + (panel * a.slots_per_unit + gate) * lanes;
        const V x_mean = (V::load_up_to(at, a.units - panel * lanes) - V(mean)) * exist;
        squares = multiply_add(x_mean, x_mean, squares);
      }
    }
    constexpr T epsilon = T(1e-5);
    a.mean[row] = mean;
    a.scale[row] = T(1) / __builtin_sqrt(sum_of_lanes(squares) / count + epsilon);
  }
}

// Where a cell's phase finds its gates among all of the cell.
template <class Cell>
struct NormedPhase {
  static constexpr int first_gate = Cell::slot_offset + Cell::first_slot;
  // The two phases of a cell are parts of the same three gates.
  static constexpr int gates = Cell::keeps_slots || Cell::slot_offset ? 3 : Cell::gates;
};

// The pre-activation of a gate in two parts, from products that are normalised.
template <class T>
struct Parts {
  Vec<T> x, h;
};

template <class T>
FASTRNN_INLINE Parts<T> scaled(const NormWeights<const T>& weights, std::int64_t vector, Vec<T> x, Vec<T> h) {
  using V = Vec<T>;
  const std::int64_t at = vector * V::lanes;
  return {multiply_add(V::load(weights.gain_x + at), x, V::load(weights.shift_x + at)),
          multiply_add(V::load(weights.gain_h + at), h, V::load(weights.shift_h + at))};
}

template <class T, class Cell>
FASTRNN_INLINE void put(Vec<T> (&slot)[Cell::slots], int gate, const Parts<T>& part) {
  if (gate == Cell::separate) {
    slot[Cell::first_slot + gate] = part.x;
    slot[Cell::slots - 1] = part.h;
  } else {
    slot[Cell::first_slot + gate] = part.x + part.h;
  }
}

template <class T, class Cell>
FASTRNN_INLINE LaneWeights<Vec<T>> lane_weights(const T* peephole, T clip, std::int64_t panel) {
  using V = Vec<T>;
  LaneWeights<V> weights{V(T(0)), V(T(0)), V(T(0)), V(clip)};
  if constexpr (Cell::has_peephole) {
    const T* const row = peephole + panel * 3 * V::lanes;
    weights.i = V::load(row);
    weights.f = V::load(row + V::lanes);
    weights.o = V::load(row + 2 * V::lanes);
  }
  return weights;
}

template <class T, class Cell>
void norm_step(const NormStepArguments<T>& n) {
  using V = Vec<T>;
  using Phase = NormedPhase<Cell>;
  constexpr int lanes = V::lanes, G = Phase::gates;
  for (std::int64_t row = 0; row < n.rows; ++row) {
    const V mean_x(n.mean_x[row]), scale_x(n.scale_x[row]), mean_h(n.mean_h[row]), scale_h(n.scale_h[row]);
    for (std::int64_t panel = 0; panel < n.panels; ++panel) {
      T* const slots = n.slots + row * n.slots_stride + panel * 2 * G * lanes;
      const T* const raw = n.raw + row * n.raw_stride + panel * G * lanes;
      const std::int64_t unit = panel * lanes;
      V slot[Cell::slots];
      if constexpr (Cell::first_slot > 0) {  // z, which the phase before has normalised
        const Parts<T> z =
            scaled(n.weights, panel * G + 1, V::load(slots + lanes), V::load(slots + (G + 1) * lanes));
        slot[0] = sigmoid(z.x + z.h);
      }
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) {
        const int gate = Phase::first_gate + g;
        const V x = (V::load(slots + gate * lanes) - mean_x) * scale_x;
        const V h = (V::load(raw + gate * lanes) - mean_h) * scale_h;
        x.store(slots + gate * lanes);
        h.store(slots + (G + gate) * lanes);
        put<T, Cell>(slot, g, scaled(n.weights, panel * G + gate, x, h));
      }
      State<V> state{V(T(0)), V(T(0))};
      if constexpr (Cell::reads_h) state.h = V::load(n.h_previous + row * n.h_stride + unit);
      if constexpr (Cell::has_cell_state) state.c = V::load(n.c + row * n.c_stride + unit);
      const LaneWeights<V> weights = lane_weights<T, Cell>(n.peephole, n.clip, panel);
      if constexpr (Cell::has_cell_state) {
        Cell::gate(slot, state, weights);
        state.c.store(n.c + row * n.c_stride + unit);
        if (n.c_kept) state.c.store(n.c_kept + row * n.c_kept_stride + unit);
        state.c.store(n.candidate + row * n.c_stride + unit);
        slot[Cell::o].store(n.o + row * n.c_stride + unit);
      } else {
        Cell::forward(slot, state, weights);
        state.h.store(n.result + row * n.result_stride + unit);
        if (n.y) state.h.store_up_to(n.y[row] + unit, n.units - unit);
      }
    }
  }
}

// h_t = o tanh(LN(c_t))
template <class T>
void norm_output(const NormStepArguments<T>& n) {
  using V = Vec<T>;
  for (std::int64_t row = 0; row < n.rows; ++row) {
    const V mean(n.mean_c[row]), scale(n.scale_c[row]);
    for (std::int64_t panel = 0; panel < n.panels; ++panel) {
      const std::int64_t unit = panel * V::lanes;
      const V c = (V::load(n.candidate + row * n.c_stride + unit) - mean) * scale;
      const V scaled_c = multiply_add(V::load(n.weights.gain_c + unit), c, V::load(n.weights.shift_c + unit));
      const V h = V::load(n.o + row * n.c_stride + unit) * hyperbolic_tangent(scaled_c);
      h.store(n.result + row * n.result_stride + unit);
      if (n.y) h.store_up_to(n.y[row] + unit, n.units - unit);
    }
  }
}

// ---- backward: three kernels per phase, between which all units of a row must be known
// ------------------------

// sums[at] += value, of one row.
template <class T>
FASTRNN_INLINE void add_at(T* sums, int vector, Vec<T> value) {
  T* const at = sums + vector * Vec<T>::lanes;
  (Vec<T>::load(at) + value).store(at);
}

// The activated gates once more; and of cells with a cell state the gradients of o's pre-activation and of
// the normalised c_t.
template <class T, class Cell>
void norm_recompute(const NormBackwardArguments<T>& b) {
  using V = Vec<T>;
  using Phase = NormedPhase<Cell>;
  constexpr int lanes = V::lanes, G = Phase::gates;
  for (std::int64_t row = 0; row < b.rows; ++row) {
    for (std::int64_t panel = 0; panel < b.panels; ++panel) {
      const T* const slots = b.slots + row * b.slots_stride + panel * 2 * G * lanes;
      T* const gates =
          b.gates + row * b.gates_stride + (panel * b.gates_per_unit + Cell::slot_offset) * lanes;
      const std::int64_t unit = panel * lanes;
      V slot[Cell::slots];
      const auto pre_activation = [&](int gate) {
        return scaled(b.weights, panel * G + gate, V::load(slots + gate * lanes),
                      V::load(slots + (G + gate) * lanes));
      };
      State<V> state{V(T(0)), V(T(0))};
      if constexpr (Cell::has_cell_state) state.c = V::load(b.c_previous[row] + unit);
      if constexpr (Cell::reads_h) state.h = V::load_up_to(b.h_previous[row] + unit, b.units - unit);
      const LaneWeights<V> weights = lane_weights<T, Cell>(b.peephole, b.clip, panel);
      if constexpr (Cell::keeps_slots) {  // r; the second phase has left the gradient of z
        const Parts<T> r = pre_activation(0);
        sigmoid(r.x + r.h).store(gates);
        continue;
      }
      if constexpr (Cell::first_slot > 0) {
        const Parts<T> z = pre_activation(1);
        slot[0] = sigmoid(z.x + z.h);
      }
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) put<T, Cell>(slot, g, pre_activation(Phase::first_gate + g));
      if constexpr (Cell::has_cell_state) {
        Cell::gate(slot, state, weights);
        V dh = V::load(b.grad + row * b.grad_stride + unit);
        if (b.grad_y) dh = dh + V::load_up_to(b.grad_y[row] + unit, b.units - unit);
        const T* const moment = b.moments + row * b.moments_stride;
        const V c = (state.c - V(moment[NormBackwardArguments<T>::mean_c])) *
                    V(moment[NormBackwardArguments<T>::scale_c]);
        const V gain = V::load(b.weights.gain_c + unit);
        const V tanh_c = hyperbolic_tangent(multiply_add(gain, c, V::load(b.weights.shift_c + unit)));
        const V o = slot[Cell::o];
        const V d_scaled = dh * o * tanh_slope(tanh_c);
        slot[Cell::o] = dh * tanh_c * sigmoid_slope(o);
        T* const sums = b.sums + row * b.sums_stride + panel * (4 * G + 5) * lanes;
        add_at(sums, 4 * G, d_scaled * c);
        add_at(sums, 4 * G + 1, d_scaled);
        if constexpr (Cell::has_peephole) add_at(sums, 4 * G + 4, slot[Cell::o] * state.c);
        const V dc = d_scaled * gain;
        dc.store(b.dc_normed + row * b.dc_stride + unit);
        c.store(b.c_normed + row * b.dc_stride + unit);
        T* const partial = b.partial + row * b.partial_stride + panel * 6 * lanes;
        dc.store(partial);
        (dc * c).store(partial + lanes);
      } else {
        Cell::forward(slot, state, weights);
      }
#pragma GCC unroll 4
      for (int j = 0; j < Cell::slots; ++j) slot[j].store(gates + j * lanes);
    }
  }
}

// Where `backward` of a cell leaves the gradient of a gate's two parts.
template <class Cell>
struct PartSlots {
  static constexpr int x(int gate) { return Cell::first_slot + gate; }
  static constexpr int h(int gate) { return Cell::first_slot + gate; }
};
template <>
struct PartSlots<Gru> {
  static constexpr int x(int gate) { return (gate + 1) % 3; }
  static constexpr int h(int gate) { return gate + 1; }
};

// Gradients of the normalised products.
template <class T, class Cell>
void norm_gates(const NormBackwardArguments<T>& b) {
  using V = Vec<T>;
  using Phase = NormedPhase<Cell>;
  using Arguments = NormBackwardArguments<T>;
  constexpr int lanes = V::lanes, G = Phase::gates;
  constexpr bool first_of_two = Cell::keeps_slots;  // which comes last here
  for (std::int64_t row = 0; row < b.rows; ++row) {
    const T* const means = b.means + row * Arguments::mean_count;
    const T* const moment = b.moments + row * b.moments_stride;
    for (std::int64_t panel = 0; panel < b.panels; ++panel) {
      const T* const slots = b.slots + row * b.slots_stride + panel * 2 * G * lanes;
      T* const gates =
          b.gates + row * b.gates_stride + (panel * b.gates_per_unit + Cell::slot_offset) * lanes;
      T* const normed = b.normed + row * b.normed_stride + panel * 2 * G * lanes;
      T* const sums = b.sums + row * b.sums_stride + panel * (4 * G + 5) * lanes;
      const std::int64_t unit = panel * lanes;
      V slot[Cell::slots];
#pragma GCC unroll 4
      for (int j = 0; j < Cell::slots; ++j) slot[j] = V::load(gates + j * lanes);
      State<V> before{V(T(0)), V(T(0))}, grad{V(T(0)), V(T(0))};
      if constexpr (Cell::reads_h) before.h = V::load_up_to(b.h_previous[row] + unit, b.units - unit);
      const LaneWeights<V> weights = lane_weights<T, Cell>(b.peephole, b.clip, panel);
      if constexpr (Cell::has_cell_state) {
        before.c = V::load(b.c_previous[row] + unit);
        const V from_output = V::load(b.dc_normed + row * b.dc_stride + unit) - V(means[0]) -
                              V::load(b.c_normed + row * b.dc_stride + unit) * V(means[1]);
        grad.c = multiply_add(from_output, V(moment[Arguments::scale_c]),
                              V::load(b.dc + row * b.dc_stride + unit));
        Cell::gate_backward(slot, before, grad, weights);
        grad.c.store(b.dc + row * b.dc_stride + unit);
        if constexpr (Cell::has_peephole) {
          add_at(sums, 4 * G + 2, slot[Cell::i] * before.c);
          if constexpr (Cell::slots == 4) add_at(sums, 4 * G + 3, slot[Cell::f] * before.c);
        }
      } else {
        grad.h = V::load(b.grad + row * b.grad_stride + unit);
        if (b.grad_y) grad.h = grad.h + V::load_up_to(b.grad_y[row] + unit, b.units - unit);
        Cell::backward(slot, before, grad, weights);
        if constexpr (Cell::passes_h) {
          T* const dh = b.dh + row * b.dh_stride + unit;
          (Cell::adds_h ? grad.h + V::load(dh) : grad.h).store(dh);
        }
        // Of the second phase, the gradient of z.
        if constexpr (Cell::first_slot > 0) slot[0].store(gates);
      }
      V sum_h(T(0)), sum_hh(T(0)), sum_x(T(0)), sum_xx(T(0));
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) {
        const int gate = Phase::first_gate + g;
        const std::int64_t at = (panel * G + gate) * lanes;
        const V x = V::load(slots + gate * lanes), h = V::load(slots + (G + gate) * lanes);
        const V dx = slot[PartSlots<Cell>::x(g)], dh = slot[PartSlots<Cell>::h(g)];
        add_at(sums, gate, dx * x);
        add_at(sums, G + gate, dx);
        add_at(sums, 2 * G + gate, dh * h);
        add_at(sums, 3 * G + gate, dh);
        const V normed_x = dx * V::load(b.weights.gain_x + at),
                normed_h = dh * V::load(b.weights.gain_h + at);
        normed_x.store(normed + gate * lanes);
        normed_h.store(normed + (G + gate) * lanes);
        sum_x = sum_x + normed_x;
        sum_xx = multiply_add(normed_x, x, sum_xx);
        sum_h = sum_h + normed_h;
        sum_hh = multiply_add(normed_h, h, sum_hh);
      }
      T* const partial = b.partial + row * b.partial_stride + panel * 6 * lanes;
      sum_h.store(partial + 2 * lanes);
      sum_hh.store(partial + 3 * lanes);
      if constexpr (first_of_two) {
        sum_x = sum_x + V::load(partial + 4 * lanes);
        sum_xx = sum_xx + V::load(partial + 5 * lanes);
      }
      sum_x.store(partial + 4 * lanes);
      sum_xx.store(partial + 5 * lanes);
    }
  }
}

// Means over a row of what the panels have left: entries [first, first + count) of six.
template <class T>
void norm_means(const NormBackwardArguments<T>& b, int first, int count, std::int64_t all_panels, T values) {
  using V = Vec<T>;
  for (std::int64_t row = 0; row < b.rows; ++row) {
    for (int i = first; i < first + count; ++i) {
      const T* partial = b.all_partial + row * b.partial_stride + i * V::lanes;
      V sum(T(0));
      for (std::int64_t panel = 0; panel < all_panels; ++panel, partial += 6 * V::lanes) {
        sum = sum + V::load(partial);
      }
      b.means[row * NormBackwardArguments<T>::mean_count + i] = sum_of_lanes(sum) / values;
    }
  }
}

// Gradients of the products, in place: of x's when all gates are known.
template <class T, class Cell>
void norm_products(const NormBackwardArguments<T>& b) {
  using V = Vec<T>;
  using Phase = NormedPhase<Cell>;
  using Arguments = NormBackwardArguments<T>;
  constexpr int lanes = V::lanes, G = Phase::gates;
  constexpr bool of_x = Cell::slot_offset == 0;
  for (std::int64_t row = 0; row < b.rows; ++row) {
    const T* const means = b.means + row * Arguments::mean_count;
    const T* const moment = b.moments + row * b.moments_stride;
    const V scale_x(moment[Arguments::scale_x]);
    const V scale_h(moment[Cell::slot_offset ? Arguments::scale_h2 : Arguments::scale_h]);
    for (std::int64_t panel = 0; panel < b.panels; ++panel) {
      T* const slots = b.slots + row * b.slots_stride + panel * 2 * G * lanes;
      const T* const normed = b.normed + row * b.normed_stride + panel * 2 * G * lanes;
      const auto write = [&](int slot, V scale, T mean, T mean_product) {
        T* const at = slots + slot * lanes;
        const V rest = V::load(normed + slot * lanes) - V(mean) - V::load(at) * V(mean_product);
        (scale * rest).store(at);
      };
      for (int g = 0; g < Cell::gates; ++g) {
        write(G + Phase::first_gate + g, scale_h, means[2], means[3]);
      }
      for (int gate = 0; of_x && gate < G; ++gate) write(gate, scale_x, means[4], means[5]);
    }
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
