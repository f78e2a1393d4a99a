// What the two passes of the policy `Steps` share: what a cell is made of, and where the memory of a call
// lies.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#include "persistent_backward.h"
#include "persistent_forward.h"
#include "planner.h"
#include "rnn.h"
#include "steps_elementwise.h"
#include "steps_norm.h"

namespace fastrnn::FASTRNN_TARGET {

// Gates of a weight matrix, and the adjacent slots that belong to them.
struct Segment {
  int slot = 0, gate = 0, count = 0;
};

// Slots of a unit lie H apart, all of a row side by side. Forward writes the products with x into the slots
// of the gates 0 to G - 1; what is listed is where backward leaves the gradients of the products.
struct StepPlan {
  int slots = 1;
  int inputs = 1, phases = 1;
  Segment input[2];
  Segment recurrent[2];  // one for each phase
};

inline StepPlan step_plan_of(const Config& config) {
  const int gates = config.gates();
  StepPlan plan;
  plan.slots = gates;
  plan.input[0] = plan.recurrent[0] = {0, 0, gates};
  if (config.cell == CellKind::gru_reset_before) {
    plan.phases = 2;
    plan.recurrent[0] = {0, 0, 2};
    plan.recurrent[1] = {2, 2, 1};
  }
  if (config.layer_norm) {
    plan.slots = 2 * gates;
    for (Segment& segment : plan.recurrent) segment.slot += gates;
  } else if (config.cell == CellKind::gru) {  // n, r, z, n
    plan.slots = 4;
    plan.inputs = 2;
    plan.input[0] = {1, 0, 2};
    plan.input[1] = {0, 2, 1};
    plan.recurrent[0] = {1, 0, 3};
  }
  return plan;
}

// Calls visit with the phase `index` of the cell, as a null pointer to it.
template <class Visit>
void with_phase(CellKind cell, int index, const Visit& visit) {
  switch (cell) {
    case CellKind::rnn_tanh:
      return visit(static_cast<Rnn<Nonlinearity::tanh>*>(nullptr));
    case CellKind::rnn_relu:
      return visit(static_cast<Rnn<Nonlinearity::relu>*>(nullptr));
    case CellKind::rnn_sigmoid:
      return visit(static_cast<Rnn<Nonlinearity::sigmoid>*>(nullptr));
    case CellKind::lstm:
      return visit(static_cast<Lstm<false>*>(nullptr));
    case CellKind::lstm_peephole:
      return visit(static_cast<Lstm<true>*>(nullptr));
    case CellKind::lstm_coupled:
      return visit(static_cast<Lstm<false, true>*>(nullptr));
    case CellKind::lstm_coupled_peephole:
      return visit(static_cast<Lstm<true, true>*>(nullptr));
    case CellKind::gru:
      return visit(static_cast<Gru*>(nullptr));
    default:
      if (index == 0) return visit(static_cast<GruResetBeforeGates*>(nullptr));
      return visit(static_cast<GruResetBeforeCandidate*>(nullptr));
  }
}

// What is the same in all calls of a network.
struct Settings {
  Config config;
  StepPlan plan;
  bool tf32 = false;  // see make_cuda_network
};

inline bool merges(const Config& config) { return config.bidirectional && config.merge != Merge::concat; }
inline bool has_residual(const Config& config, std::int64_t layer) {
  return config.residual && config.layer_input_size(layer) == config.output_size();
}
inline bool has_dropout(const Config& config, const Noise& noise, std::int64_t layer) {
  return noise.dropout > 0 && layer + 1 < config.num_layers;
}
// Whether a layer's output is the h of its directions, side by side.
inline bool is_plain(const Config& config, const Noise& noise, std::int64_t layer) {
  return !merges(config) && !has_residual(config, layer) && !has_dropout(config, noise, layer);
}

inline Joining joining_of(const Config& config, const Noise& noise, std::uint64_t seed, std::int64_t layer) {
  Joining joining;
  joining.merge = config.merge;
  joining.merges = merges(config);
  joining.state = config.state_size();
  joining.width = config.output_size();
  if (has_dropout(config, noise, layer)) {
    joining.dropout = draw_of(seed, MaskKind::dropout, noise.dropout, layer, 0);
  }
  return joining;
}

// A network's parameters where they lie, by layer and direction.
template <class T>
struct Parameters {
  const Config& config;
  const T* const* all;

  const T* at(int index) const { return index < 0 ? nullptr : all[index]; }
  NormParameters<T> norm(const ParameterIndices& index) const {
    NormParameters<T> norm;
    norm.ih_weight = at(index.norm_ih_weight);
    norm.ih_bias = at(index.norm_ih_bias);
    norm.hh_weight = at(index.norm_hh_weight);
    norm.hh_bias = at(index.norm_hh_bias);
    norm.c_weight = at(index.norm_c_weight);
    norm.c_bias = at(index.norm_c_bias);
    norm.bias_ih = at(index.bias_ih);
    norm.bias_hh = at(index.bias_hh);
    return norm;
  }
};

// What one layer and direction leaves of its steps, by time. h, operand and c have one entry more than steps:
// a step at time t starts from entry t, in reverse from entry t + 1, and leaves the other of the two. An
// inference call keeps `entries` of them, and some steps of the rest.
template <class T, class M>
struct KeptChain {
  T* slots = nullptr;     // (steps, B, slots * H)
  T* h = nullptr;         // (entries, B, R)
  T* operand = nullptr;   // (entries, B, R): h with its mask; null: it has none
  M* c = nullptr;         // (entries, B, H)
  T* exchange = nullptr;  // (steps, B, H): what a first phase left for the second product
  M* moments = nullptr;   // (steps, B, norm_moments)

  const T* operands() const { return operand ? operand : h; }
};

struct KeptSizes {
  std::int64_t steps, entries, slot_steps;
};

template <class T, class M>
void lay_out(Arena& arena, const Config& config, const StepPlan& plan, const Noise& noise, std::int64_t batch,
             const KeptSizes& sizes, KeptChain<T, M>& kept) {
  const std::int64_t hidden = config.hidden_size, state = config.state_size();
  kept.slots = arena.take<T>(sizes.slot_steps * batch * plan.slots * hidden);
  kept.h = arena.take<T>(sizes.entries * batch * state);
  if (noise.recurrent_dropout > 0) kept.operand = arena.take<T>(sizes.entries * batch * state);
  if (config.has_cell_state()) kept.c = arena.take<M>(sizes.entries * batch * hidden);
  if (config.proj_size || plan.phases == 2) kept.exchange = arena.take<T>(sizes.steps * batch * hidden);
  if (config.layer_norm) kept.moments = arena.take<M>(sizes.steps * batch * norm_moments);
}

// Of a layer: its output, where the caller has no array for it, and the h of its directions, where that is
// something else.
template <class T>
struct KeptLayer {
  T* output = nullptr;  // (T, B, width)
  T* hidden = nullptr;  // (T, B, D * R)
};

template <class Device, class T, class M>
struct StepsTape : Tape<T> {
  CallMemory<Device> memory;
  std::size_t used = 0;
  std::int64_t steps = 0, batch = 0;
  const T* x = nullptr;
  std::int64_t* lengths = nullptr;  // copies, or null
  char* resets = nullptr;
  Noise noise;
  std::uint64_t seed = 0;
  std::vector<KeptChain<T, M>> chains;  // [layer * D + direction]
  std::vector<KeptLayer<T>> layers;

  std::size_t bytes() const override { return used; }

  // What `begin` is to need. Leaves the sizes of the call, and nothing where they point to.
  std::size_t count(const Config& config, const StepPlan& plan, const Forward<T>& call) {
    steps = call.steps;
    batch = call.batch;
    x = reinterpret_cast<const T*>(call.x.data);
    noise = call.noise;
    seed = call.seed;
    Arena counting;
    lay_out_all(counting, config, plan, call);
    return used = counting.used();
  }

  void begin(Device& device, const Config& config, const StepPlan& plan, const Forward<T>& call) {
    Arena arena(memory.reserve("tape", device, count(config, plan, call)));
    lay_out_all(arena, config, plan, call);
    if (lengths) device.copy(lengths, call.lengths, static_cast<std::size_t>(batch) * sizeof(std::int64_t));
    if (resets) device.copy(resets, call.resets.data, static_cast<std::size_t>(steps * batch));
  }

 private:
  void lay_out_all(Arena& arena, const Config& config, const StepPlan& plan, const Forward<T>& call) {
    lengths = call.lengths ? arena.take<std::int64_t>(batch) : nullptr;
    resets = call.resets.data ? arena.take<char>(steps * batch) : nullptr;
    chains.assign(static_cast<std::size_t>(config.num_layers * config.directions()), {});
    layers.assign(static_cast<std::size_t>(config.num_layers), {});
    for (KeptChain<T, M>& kept : chains) {
      lay_out(arena, config, plan, noise, batch, {steps, steps + 1, steps}, kept);
    }
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      KeptLayer<T>& kept = layers[static_cast<std::size_t>(layer)];
      kept.output =
          layer + 1 < config.num_layers ? arena.take<T>(steps * batch * config.output_size()) : call.y;
      kept.hidden = is_plain(config, noise, layer)
                        ? kept.output
                        : arena.take<T>(steps * batch * config.directions() * config.state_size());
    }
  }
};

template <class Device>
struct StepsWorkspace : Workspace {
  Device device;
  CallMemory<Device> memory;
};

inline Frame frame_of(const Settings& settings, std::int64_t steps, std::int64_t batch, const Noise& noise) {
  Frame frame;
  frame.steps = steps;
  frame.batch = batch;
  frame.hidden = settings.config.hidden_size;
  frame.state = settings.config.state_size();
  frame.gates = settings.config.gates();
  frame.slots = settings.plan.slots;
  frame.training = noise.training;
  return frame;
}

// Arrays of a call must be contiguous in the order of their axes: throws where strides say otherwise.
inline void expect_contiguous(const char* name, std::int64_t outer, std::int64_t inner,
                              std::int64_t outer_stride, std::int64_t inner_stride, std::int64_t width) {
  const bool fits = outer == 0 || inner == 0 || width == 0 ||
                    ((inner == 1 || inner_stride == width) && (outer == 1 || outer_stride == inner * width));
  if (!fits) throw std::invalid_argument(std::string(name) + ": expected a contiguous array on the device");
}
template <class T>
void expect_contiguous(const char* name, const View& view, std::int64_t outer, std::int64_t inner,
                       std::int64_t width) {
  if (!view.data) return;
  constexpr std::int64_t size = sizeof(T);
  if (width > 1 && view.stride[2] != size) {
    throw std::invalid_argument(std::string(name) + ": expected a contiguous array on the device");
  }
  expect_contiguous(name, outer, inner, view.stride[0], view.stride[1], width * size);
}

// One product for each direction of a layer.
template <class In, class Out>
Product<In, Out> product_of(const Settings& settings, std::int64_t rows, std::int64_t columns,
                            std::int64_t depth) {
  Product<In, Out> product;
  product.rows = rows;
  product.columns = columns;
  product.depth = depth;
  product.count = static_cast<int>(settings.config.directions());
  product.tf32 = settings.tf32;
  return product;
}

// Of W_hh, or of its gradient.
template <class T, class M, class Device>
void drop_weights(Device& device, const Config& config, const Noise& noise, std::uint64_t seed,
                  std::int64_t layer, int d, const T* from, T* to) {
  const DropWeights<T, M> functor{config.state_size(),
                                  draw_of(seed, MaskKind::weight, noise.weight_drop, layer, d), from, to};
  device.launch(config.gates() * config.hidden_size, config.state_size(), functor);
}

// W_hh of direction d as the steps read it, (D, G * H, R) at `own`: dropped weights, or for Steps a copy,
// since products of two directions are one call only if all their matrices lie in the same order.
template <class T, class M, class Device>
const T* own_weights(Device& device, const Config& config, const Noise& noise, std::uint64_t seed,
                     std::int64_t layer, int d, const Plan& plan, const T* from, T* own) {
  const std::int64_t count = config.gates() * config.hidden_size * config.state_size();
  T* const to = own + d * count;
  if (noise.weight_drop > 0) {
    drop_weights<T, M>(device, config, noise, seed, layer, d, from, to);
    return to;
  }
  if (plan.policy != Policy::steps) return from;
  device.copy(to, from, static_cast<std::size_t>(count) * sizeof(T));
  return to;
}

}  // namespace fastrnn::FASTRNN_TARGET
