// Forward: per layer one product for all inputs, then the steps. By the policy `Steps` every step is one
// product with W_hh and one kernel, to which a projection, a second phase or layer norm's rows add; by the
// others all steps are one persistent launch. All directions go together.
#pragma once

#include <algorithm>

#include "steps_plans.h"

namespace fastrnn::FASTRNN_TARGET {

template <class Device, class T, class M>
class StepsForward {
 public:
  StepsForward(const Settings& settings, Plans<Device, T>& plans, const Forward<T>& call, bool keep)
      : settings_(settings),
        plans_(plans),
        config_(settings.config),
        plan_(settings.plan),
        parameters_{settings.config, call.parameters},
        call_(call),
        directions_(static_cast<int>(settings.config.directions())),
        frame_(frame_of(settings, call.steps, call.batch, call.noise)),
        keeps_all_(keep) {
    frame_.lengths = call.lengths;
    frame_.resets = call.resets.data;
    const std::int64_t step_bytes = std::max<std::int64_t>(
        1, directions_ * call.batch * plan_.slots * config_.hidden_size * std::int64_t{sizeof(T)});
    block_steps_ =
        std::max<std::int64_t>(1, keep ? call.steps : std::min(call.steps, Device::block_bytes / step_bytes));
  }

  // Of the workspace.
  std::size_t bytes() {
    Arena counting;
    lay_out_call(counting);
    return counting.used();
  }

  void run(StepsWorkspace<Device>& workspace) {
    typename Device::Turn device(workspace.device);
    device_ = &device;
    policy_ = plans_.plan(device, call_.steps, batch(), call_.noise, false);
    if (keeps_all_) {
      auto& tape = static_cast<StepsTape<Device, T, M>&>(*call_.tape);
      tape.begin(device, config_, plan_, call_);
      chains_ = tape.chains;
      layers_ = tape.layers;
    }
    Arena arena(workspace.memory.reserve("workspace", device, bytes()));
    lay_out_call(arena);
    device.use_room(room_);
    for (layer_ = 0; layer_ < config_.num_layers; ++layer_) {
      index_weights();
      input_ = layer_ == 0 ? reinterpret_cast<const T*>(call_.x.data) : layer(layer_ - 1).output;
      const T* const read = masked_input();
      if (policy_->policy == Policy::steps) start();
      for (std::int64_t s0 = 0; s0 < call_.steps; s0 += block_steps_) {
        first_step_ = s0;
        end_step_ = std::min(s0 + block_steps_, call_.steps);
        project_inputs(read);
        if (policy_->policy == Policy::steps) {
          for (std::int64_t s = s0; s < end_step_; ++s) step(s);
        } else {
          persist();
        }
      }
      join_outputs();
    }
  }

 private:
  std::int64_t batch() const { return call_.batch; }
  std::int64_t width() const { return config_.layer_input_size(layer_); }
  const KeptLayer<T>& layer(std::int64_t index) const { return layers_[static_cast<std::size_t>(index)]; }
  const KeptChain<T, M>& chain(int d) const {
    return chains_[static_cast<std::size_t>(layer_ * directions_ + d)];
  }

  // Pieces of the workspace; with a null arena only their size.
  void lay_out_call(Arena& arena) {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size(),
                       rows = directions_ * batch();
    const Noise& noise = call_.noise;
    room_ = arena.take<char>(static_cast<std::int64_t>(Device::room_bytes()));
    // Aligned as the whole is: a room is a multiple of that.
    exchange_ = arena.take<char>(
        static_cast<std::int64_t>(plans_.exchange_bytes(call_.steps, batch(), noise, false)));
    product_ = arena.take<M>(rows * config_.gates() * hidden);
    if (config_.proj_size) projected_ = arena.take<M>(rows * state);
    if (config_.layer_norm && config_.has_cell_state()) {
      first_ = arena.take<M>(rows * hidden);
      second_ = arena.take<M>(rows * hidden);
    }
    if (noise.input_dropout > 0) {
      const std::int64_t widest =
          std::max(config_.input_size, config_.num_layers > 1 ? config_.output_size() : 0);
      masked_ = arena.take<T>(call_.steps * batch() * widest);
    }
    if (noise.weight_drop > 0 || directions_ > 1) {
      own_weights_ = arena.take<T>(directions_ * config_.gates() * hidden * state);
    }
    if (!keeps_all_) lay_out_inference(arena);
  }

  // The layers share what they need in turn.
  void lay_out_inference(Arena& arena) {
    const std::int64_t sequence = call_.steps * batch();
    KeptChain<T, M> kept[most_directions];
    for (int d = 0; d < directions_; ++d) {
      lay_out(arena, config_, plan_, call_.noise, batch(), {1, 2, block_steps_}, kept[d]);
    }
    T* between[2] = {};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(2, config_.num_layers - 1); ++i) {
      between[i] = arena.take<T>(sequence * config_.output_size());
    }
    bool plain = true;
    for (std::int64_t i = 0; i < config_.num_layers; ++i) plain = plain && is_plain(config_, call_.noise, i);
    T* const hidden = plain ? nullptr : arena.take<T>(sequence * directions_ * config_.state_size());
    chains_.clear();
    layers_.clear();
    for (std::int64_t i = 0; i < config_.num_layers; ++i) {
      for (int d = 0; d < directions_; ++d) chains_.push_back(kept[d]);
      T* const output = i + 1 < config_.num_layers ? between[i % 2] : call_.y;
      layers_.push_back({output, is_plain(config_, call_.noise, i) ? output : hidden});
    }
  }

  void index_weights() {
    for (int d = 0; d < directions_; ++d) {
      index_[d] = parameter_indices(config_, layer_, d);
      weight_hh_[d] = parameters_.at(index_[d].weight_hh);
      if (own_weights_) {
        weight_hh_[d] = own_weights<T, M>(*device_, config_, call_.noise, call_.seed, layer_, d, *policy_,
                                          weight_hh_[d], own_weights_);
      }
    }
  }

  const T* masked_input() {
    if (!masked_) return input_;
    const MaskInput<T, M> functor{frame_, width(), input_, masked_,
                                  draw_of(call_.seed, MaskKind::input, call_.noise.input_dropout, layer_, 0)};
    device_->launch(call_.steps * batch(), width(), functor);
    return masked_;
  }

  // ---- state ------------------------------------------------------------------------------------

  template <class X>
  X* entry(X* states, std::int64_t k, std::int64_t columns) const {
    return states ? states + (keeps_all_ ? k : k % 2) * batch() * columns : nullptr;
  }
  // Where in a kept array the state before the step at time t is, and the state after it.
  static std::int64_t entry_before(int d, std::int64_t t) { return d ? t + 1 : t; }
  static std::int64_t entry_after(int d, std::int64_t t) { return d ? t : t + 1; }

  // What is the same in all steps.
  StatePart<T, T> part_of_h(int d) const {
    const std::int64_t state = config_.state_size(), of_chain = (layer_ * directions_ + d) * batch() * state;
    StatePart<T, T> part;
    part.width = state;
    if (call_.h0.data) part.initial = reinterpret_cast<const T*>(call_.h0.data) + of_chain;
    part.final = call_.hn + of_chain;
    part.zone = draw_of(call_.seed, MaskKind::zoneout_h, call_.noise.zoneout_h, layer_, d);
    part.mask = draw_of(call_.seed, MaskKind::recurrent, call_.noise.recurrent_dropout, layer_, d);
    return part;
  }
  StatePart<T, M> part_of_c(int d) const {
    const std::int64_t hidden = config_.hidden_size, of_chain = (layer_ * directions_ + d) * batch() * hidden;
    StatePart<T, M> part;
    part.width = hidden;
    if (!config_.has_cell_state()) return part;
    if (call_.c0.data) part.initial = reinterpret_cast<const T*>(call_.c0.data) + of_chain;
    part.final = call_.cn + of_chain;
    part.zone = draw_of(call_.seed, MaskKind::zoneout_c, call_.noise.zoneout_c, layer_, d);
    return part;
  }

  void start() {
    Start<T, T, M> of_h{frame_, {}};
    Start<T, M, M> of_c{frame_, {}};
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t k = entry_before(d, time_of(call_.steps, d, 0));
      of_h.part[d] = part_of_h(d);
      of_h.part[d].after = entry(chain(d).h, k, config_.state_size());
      of_h.part[d].operand = entry(chain(d).operand, k, config_.state_size());
      of_c.part[d] = part_of_c(d);
      of_c.part[d].after = entry(chain(d).c, k, config_.hidden_size);
    }
    device_->launch(directions_ * batch(), config_.state_size(), of_h);
    if (config_.has_cell_state()) device_->launch(directions_ * batch(), config_.hidden_size, of_c);
  }

  // ---- steps ------------------------------------------------------------------------------------

  // Of a time in the block.
  T* slots_at(int d, std::int64_t t) const {
    const std::int64_t first = d ? call_.steps - end_step_ : first_step_;
    return chain(d).slots + (t - first) * batch() * plan_.slots * config_.hidden_size;
  }

  void project_inputs(const T* read) {
    const std::int64_t gates = config_.gates() * config_.hidden_size;
    auto product = product_of<T, T>(settings_, (end_step_ - first_step_) * batch(), gates, width());
    product.transpose_right = true;
    product.left_stride = product.right_stride = width();
    product.out_stride = plan_.slots * config_.hidden_size;
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t t = d ? call_.steps - end_step_ : first_step_;
      product.left[d] = read + t * batch() * width();
      product.right[d] = parameters_.at(index_[d].weight_ih);
      product.out[d] = slots_at(d, t);
    }
    device_->multiply(product);
  }

  // The steps of the block in one launch.
  void persist() {
    if constexpr (std::is_same_v<M, float>) {
      PersistentForwardCall<T> call;
      call.frame = frame_;
      call.first_step = static_cast<int>(first_step_);
      call.end_step = static_cast<int>(end_step_);
      call.clip = static_cast<float>(config_.clip);
      call.keep_slots = keeps_all_;
      for (int d = 0; d < directions_; ++d) call.chain[d] = persistent_chain(d);
      device_->run_persistent(*policy_, config_.cell, plans_.kind(), call, directions_, exchange_);
    }
  }

  PersistentForwardChain<T> persistent_chain(int d) const {
    const std::int64_t state = config_.state_size(), row = (layer_ * directions_ + d) * batch();
    const KeptChain<T, M>& kept = chain(d);
    PersistentForwardChain<T> c;
    c.weight_hh = weight_hh_[d];
    c.bias_ih = parameters_.at(index_[d].bias_ih);
    c.bias_hh = parameters_.at(index_[d].bias_hh);
    c.h0 = part_of_h(d).initial;
    c.c0 = part_of_c(d).initial;
    c.slots = slots_at(d, 0);  // of time 0, be it in the block or not
    c.y = layer(layer_).hidden + d * state;
    c.y_stride = directions_ * state;
    c.hn = call_.hn + row * state;
    if (call_.h_all) c.h_all = call_.h_all + row * call_.steps * state;
    if (config_.has_cell_state()) {
      c.cn = call_.cn + row * state;
      if (call_.c_all) c.c_all = call_.c_all + row * call_.steps * state;
    }
    if (keeps_all_) {
      c.h = kept.h;
      c.c = kept.c;
      return c;
    }
    // The two entries take turns.
    const std::int64_t block = first_step_ / block_steps_;
    if (first_step_ > 0) {
      c.carried_h = entry(kept.h, block, state);
      c.carried_c = entry(kept.c, block, state);
    }
    if (end_step_ < call_.steps) {
      c.left_h = entry(kept.h, block + 1, state);
      c.left_c = entry(kept.c, block + 1, state);
    }
    return c;
  }

  void step(std::int64_t s) {
    StepChain<T, M> chains[most_directions];
    for (int d = 0; d < directions_; ++d) chains[d] = chain_at(d, time_of(call_.steps, d, s));
    for (int phase = 0; phase < plan_.phases; ++phase) {
      multiply_state(phase, chains);
      with_phase(config_.cell, phase, [&](auto* cell) { run_phase(cell, chains); });
    }
    if (!config_.proj_size) return;
    project(chains);
    const ProjectionForward<T, M> functor{frame_, {chains[0], chains[1]}};
    device_->launch(directions_ * batch(), config_.state_size(), functor);
  }

  StepChain<T, M> chain_at(int d, std::int64_t t) const {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size();
    const std::int64_t before = entry_before(d, t), after = entry_after(d, t);
    const KeptChain<T, M>& kept = chain(d);
    StepChain<T, M> c;
    c.t = t;
    c.slots = slots_at(d, t);
    c.product = product_ + d * batch() * config_.gates() * hidden;
    c.bias_ih = parameters_.at(index_[d].bias_ih);
    c.bias_hh = parameters_.at(index_[d].bias_hh);
    c.peephole = parameters_.at(index_[d].weight_peep);
    if (projected_) c.projected = projected_ + d * batch() * state;
    if (kept.exchange) c.exchange = kept.exchange + (keeps_all_ ? t : 0) * batch() * hidden;
    c.h = part_of_h(d);
    c.h.before = entry(kept.h, before, state);
    c.h.after = entry(kept.h, after, state);
    c.h.operand = entry(kept.operand, after, state);
    c.c = part_of_c(d);
    c.c.before = entry(kept.c, before, hidden);
    c.c.after = entry(kept.c, after, hidden);
    c.operand = kept.operand ? entry(kept.operand, before, state) : c.h.before;
    const std::int64_t row = ((layer_ * directions_ + d) * call_.steps + t) * batch();
    if (call_.h_all) c.h.all = call_.h_all + row * state;
    if (call_.c_all && config_.has_cell_state()) c.c.all = call_.c_all + row * hidden;
    c.y_stride = directions_ * state;
    c.y = layer(layer_).hidden + t * batch() * c.y_stride + d * state;
    return c;
  }

  void multiply_state(int phase, const StepChain<T, M>* chains) {
    const std::int64_t hidden = config_.hidden_size;
    const Segment& segment = plan_.recurrent[phase];
    auto product = product_of<T, M>(settings_, batch(), segment.count * hidden, config_.state_size());
    product.transpose_right = true;
    product.left_stride = product.right_stride = config_.state_size();
    product.out_stride = config_.gates() * hidden;
    for (int d = 0; d < directions_; ++d) {
      product.left[d] = phase ? chains[d].exchange : chains[d].operand;
      product.right[d] = weight_hh_[d] + segment.gate * hidden * config_.state_size();
      product.out[d] = product_ + d * batch() * config_.gates() * hidden + segment.gate * hidden;
    }
    device_->multiply(product);
  }

  void project(const StepChain<T, M>* chains) {
    auto product = product_of<T, M>(settings_, batch(), config_.state_size(), config_.hidden_size);
    product.transpose_right = true;
    product.left_stride = product.right_stride = config_.hidden_size;
    product.out_stride = config_.state_size();
    for (int d = 0; d < directions_; ++d) {
      product.left[d] = chains[d].exchange;
      product.right[d] = parameters_.at(index_[d].weight_hr);
      product.out[d] = projected_ + d * batch() * config_.state_size();
    }
    device_->multiply(product);
  }

  template <class Cell>
  void run_phase(Cell*, const StepChain<T, M>* chains) {
    const CellForward<Cell, T, M> cell{
        frame_, static_cast<M>(config_.clip), config_.proj_size > 0, keeps_all_, {chains[0], chains[1]}};
    if (!config_.layer_norm) {
      device_->launch(directions_ * batch(), config_.hidden_size, cell);
      return;
    }
    NormForward<Cell, T, M> functor{cell, {}};
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t t = keeps_all_ ? chains[d].t : 0;
      NormChain<T, M>& norm = functor.norm[d];
      norm.parameters = parameters_.norm(index_[d]);
      norm.moments = chain(d).moments + t * batch() * norm_moments;
      if (!first_) continue;
      norm.first = first_ + d * batch() * config_.hidden_size;
      norm.second = second_ + d * batch() * config_.hidden_size;
    }
    device_->launch_rows(directions_ * batch(), config_.hidden_size, functor);
  }

  void join_outputs() {
    if (is_plain(config_, call_.noise, layer_)) return;
    const JoinOutputs<T, M> functor{frame_, joining_of(config_, call_.noise, call_.seed, layer_),
                                    layer(layer_).hidden, has_residual(config_, layer_) ? input_ : nullptr,
                                    layer(layer_).output};
    device_->launch(call_.steps * batch(), config_.output_size(), functor);
  }

  const Settings& settings_;
  Plans<Device, T>& plans_;
  const Config& config_;
  const StepPlan& plan_;
  const Parameters<T> parameters_;
  const Forward<T>& call_;
  const int directions_;
  Frame frame_;
  const bool keeps_all_;
  std::int64_t block_steps_ = 1;
  typename Device::Turn* device_ = nullptr;
  std::vector<KeptChain<T, M>> chains_;  // [layer * D + direction]
  std::vector<KeptLayer<T>> layers_;
  char* room_ = nullptr;  // of the device's products
  std::shared_ptr<const Plan> policy_;
  M* product_ = nullptr;                    // (D, B, G * H)
  char* exchange_ = nullptr;                // of a persistent grid
  M* projected_ = nullptr;                  // (D, B, R)
  M *first_ = nullptr, *second_ = nullptr;  // (D, B, H): layer norm of c
  T* masked_ = nullptr;                     // (T, B, width): of input dropout
  T* own_weights_ = nullptr;                // (D, G * H, R), see own_weights()
  // Of the layer at work, and of the block of steps.
  std::int64_t layer_ = 0, first_step_ = 0, end_step_ = 0;
  ParameterIndices index_[most_directions]{};
  const T* weight_hh_[most_directions]{};
  const T* input_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_TARGET
