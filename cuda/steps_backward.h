// Backward. Per layer, from the last: by the policy `Steps` in every step back one kernel, which turns gates
// into gradients of the products in place, and one product for dL/dh, or by another one persistent launch for
// all steps; then dX and the gradients of the
// weights are products over all rows, and those of the biases sums in a fixed order.
#pragma once

#include <algorithm>

#include "steps_forward.h"

namespace fastrnn::FASTRNN_TARGET {

template <class Device, class T, class M>
class StepsBackward {
 public:
  StepsBackward(const Settings& settings, Plans<Device, T>& plans, const StepsTape<Device, T, M>& tape,
                const Backward<T>& call)
      : settings_(settings),
        plans_(plans),
        config_(settings.config),
        plan_(settings.plan),
        parameters_{settings.config, call.parameters},
        tape_(tape),
        call_(call),
        x_(call.x.data ? reinterpret_cast<const T*>(call.x.data) : tape.x),
        directions_(static_cast<int>(settings.config.directions())),
        rows_(tape.steps * tape.batch),
        frame_(frame_of(settings, tape.steps, tape.batch, tape.noise)) {
    frame_.lengths = tape.lengths;
    frame_.resets = tape.resets;
    sums_per_unit_ = config_.layer_norm       ? NormSums{config_.gates()}.count()
                     : config_.has_peephole() ? peephole_sums
                                              : 0;
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
    policy_ = plans_.plan(device, tape_.steps, batch(), tape_.noise, true);
    Arena arena(workspace.memory.reserve("workspace", device, bytes()));
    lay_out_call(arena);
    device.use_room(room_);
    const T* grad_output = call_.grad_y;
    for (layer_ = config_.num_layers - 1; layer_ >= 0; --layer_) {
      index_weights();
      split_output_gradient(grad_output);
      recur();
      T* const grad_input = layer_ == 0 ? call_.grad_x : between_[layer_ % 2];
      if (grad_input) multiply_input_gradient(grad_input);
      grad_weights();
      grad_output = grad_input;
    }
  }

 private:
  std::int64_t batch() const { return tape_.batch; }
  std::int64_t width() const { return config_.layer_input_size(layer_); }
  std::int64_t slots_size() const { return rows_ * plan_.slots * config_.hidden_size; }
  const KeptChain<T, M>& kept(int d) const {
    return tape_.chains[static_cast<std::size_t>(layer_ * directions_ + d)];
  }
  T* slots(int d) const { return slots_ ? slots_ + d * slots_size() : kept(d).slots; }
  T* gradient(int index) const { return index < 0 ? nullptr : call_.gradients[index]; }

  static std::int64_t chunk_rows(std::int64_t rows) {
    return std::max<std::int64_t>(1,
                                  static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(rows)))));
  }
  static std::int64_t chunks(std::int64_t rows) { return (rows + chunk_rows(rows) - 1) / chunk_rows(rows); }

  // Pieces of the workspace; with a null arena only their size.
  void lay_out_call(Arena& arena) {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size(),
                       each = directions_ * batch();
    const Noise& noise = tape_.noise;
    room_ = arena.take<char>(static_cast<std::int64_t>(Device::room_bytes()));
    exchange_ = arena.take<char>(
        static_cast<std::int64_t>(plans_.exchange_bytes(frame_.steps, batch(), noise, true)));
    if (call_.retain) slots_ = arena.take<T>(directions_ * slots_size());
    carry_ = arena.take<M>(each * state);
    product_ = arena.take<M>(each * state);
    if (config_.has_cell_state()) dc_ = arena.take<M>(each * hidden);
    if (config_.proj_size || plan_.phases == 2) dexchange_ = arena.take<M>(each * hidden);
    if (config_.proj_size) dprojected_ = arena.take<T>(directions_ * rows_ * state);
    bool plain = true, residual = false;
    for (std::int64_t i = 0; i < config_.num_layers; ++i) {
      plain = plain && is_plain(config_, noise, i);
      residual = residual || has_residual(config_, i);
    }
    if (!plain) grad_hidden_ = arena.take<T>(rows_ * directions_ * state);
    if (residual && merges(config_)) passed_ = arena.take<T>(rows_ * config_.output_size());
    for (std::int64_t i = 0; i < std::min<std::int64_t>(2, config_.num_layers - 1); ++i) {
      between_[(i + 1) % 2] = arena.take<T>(rows_ * config_.output_size());
    }
    if (noise.input_dropout > 0 || frame_.lengths) {
      const std::int64_t widest =
          std::max(config_.input_size, config_.num_layers > 1 ? config_.output_size() : 0);
      masked_ = arena.take<T>(rows_ * widest);
    }
    if (noise.weight_drop > 0 || directions_ > 1) {
      own_weights_ = arena.take<T>(directions_ * config_.gates() * hidden * state);
    }
    sums_ = arena.take<M>(each * sums_per_unit_ * hidden);
    partial_ = arena.take<M>(std::max(chunks(rows_), chunks(batch())) * plan_.slots * hidden);
    if (!config_.layer_norm) return;
    for (M** piece : {&first_, &second_, &third_}) *piece = arena.take<M>(each * hidden);
    gradients_ = arena.take<M>(each * plan_.slots * hidden);
  }

  void index_weights() {
    for (int d = 0; d < directions_; ++d) {
      index_[d] = parameter_indices(config_, layer_, d);
      weight_hh_[d] = parameters_.at(index_[d].weight_hh);
      if (slots_) {
        device_->copy(slots(d), kept(d).slots, static_cast<std::size_t>(slots_size()) * sizeof(T));
      }
      if (own_weights_) {
        weight_hh_[d] = own_weights<T, M>(*device_, config_, tape_.noise, tape_.seed, layer_, d, *policy_,
                                          weight_hh_[d], own_weights_);
      }
    }
  }

  // ---- output -------------------------------------------------------------------------------------

  // Leaves that of the directions' h, side by side, and what a residual passes to the input.
  void split_output_gradient(const T* grad_output) {
    grad_h_ = grad_output;
    residual_ = nullptr;
    if (!grad_output || is_plain(config_, tape_.noise, layer_)) return;
    SplitGradient<T, M> functor{frame_,       joining_of(config_, tape_.noise, tape_.seed, layer_),
                                grad_output,  tape_.layers[static_cast<std::size_t>(layer_)].hidden,
                                grad_hidden_, nullptr};
    if (has_residual(config_, layer_)) {
      residual_ = merges(config_) ? passed_ : grad_hidden_;
      if (merges(config_)) functor.passed = passed_;
    }
    device_->launch(rows_, config_.output_size(), functor);
    grad_h_ = grad_hidden_;
  }

  // ---- time ---------------------------------------------------------------------------------------

  void recur() {
    if (policy_->policy != Policy::steps) return persist();
    start();
    BackwardChain<T, M> chains[most_directions];
    for (std::int64_t s = frame_.steps - 1; s >= 0; --s) {
      for (int d = 0; d < directions_; ++d) chains[d] = chain_at(d, s);
      step(chains);
    }
    for (int d = 0; d < directions_; ++d) chains[d] = chain_at(d, -1);
    finish(chains);
  }

  // All steps in one launch.
  void persist() {
    if constexpr (std::is_same_v<M, float>) {
      PersistentBackwardCall<T> call;
      call.frame = frame_;
      call.clip = static_cast<float>(config_.clip);
      for (int d = 0; d < directions_; ++d) call.chain[d] = persistent_chain(d);
      device_->run_persistent(*policy_, config_.cell, plans_.kind(), call, directions_, exchange_);
    }
  }

  PersistentBackwardChain<T> persistent_chain(int d) const {
    const std::int64_t state = config_.state_size(), row = (layer_ * directions_ + d) * batch();
    const auto of_chain = [&](auto* all, std::int64_t steps) {
      return all ? all + row * steps * state : all;
    };
    PersistentBackwardChain<T> c;
    c.weight_hh = weight_hh_[d];
    c.slots = slots(d);
    c.h = kept(d).h;
    c.c = kept(d).c;
    if (grad_h_) c.grad_y = grad_h_ + d * state;
    c.grad_y_stride = directions_ * state;
    c.grad_h_all = of_chain(call_.grad_h_all, frame_.steps);
    c.grad_hn = of_chain(call_.grad_hn, 1);
    c.grad_h0 = of_chain(call_.grad_h0, 1);
    if (!config_.has_cell_state()) return c;
    c.grad_c_all = of_chain(call_.grad_c_all, frame_.steps);
    c.grad_cn = of_chain(call_.grad_cn, 1);
    c.grad_c0 = of_chain(call_.grad_c0, 1);
    return c;
  }

  void start() {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size();
    StartBackward<T, M> of_h{frame_, state, {}, {}}, of_c{frame_, hidden, {}, {}};
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t row = (layer_ * directions_ + d) * batch();
      of_h.to[d] = carry_ + d * batch() * state;
      of_h.from[d] = call_.grad_hn ? call_.grad_hn + row * state : nullptr;
      if (!dc_) continue;
      of_c.to[d] = dc_ + d * batch() * hidden;
      of_c.from[d] = call_.grad_cn ? call_.grad_cn + row * hidden : nullptr;
    }
    device_->launch(directions_ * batch(), state, of_h);
    if (dc_) device_->launch(directions_ * batch(), hidden, of_c);
    device_->zero(sums_,
                  static_cast<std::size_t>(directions_ * batch() * sums_per_unit_ * hidden) * sizeof(M));
  }

  // Step -1: none, after all have been taken back.
  BackwardChain<T, M> chain_at(int d, std::int64_t s) const {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size(), of_d = d * batch();
    const KeptChain<T, M>& all = kept(d);
    BackwardChain<T, M> c;
    c.has_after = s + 1 < frame_.steps;
    if (c.has_after) c.after = time_of(frame_.steps, d, s + 1);
    c.carry = carry_ + of_d * state;
    c.product = product_ + of_d * state;
    if (dc_) c.dc = dc_ + of_d * hidden;
    c.mask = draw_of(tape_.seed, MaskKind::recurrent, tape_.noise.recurrent_dropout, layer_, d);
    if (s < 0) return c;
    const std::int64_t t = time_of(frame_.steps, d, s), before = d ? t + 1 : t;
    c.t = t;
    c.slots = slots(d) + t * batch() * plan_.slots * hidden;
    c.peephole = parameters_.at(index_[d].weight_peep);
    c.h_before = all.h + before * batch() * state;
    c.operand = all.operands() + before * batch() * state;
    if (all.c) c.c_before = all.c + before * batch() * hidden;
    c.grad_y_stride = directions_ * state;
    if (grad_h_) c.grad_y = grad_h_ + t * batch() * c.grad_y_stride + d * state;
    const std::int64_t row = ((layer_ * directions_ + d) * frame_.steps + t) * batch();
    if (call_.grad_h_all) c.grad_h_all = call_.grad_h_all + row * state;
    if (call_.grad_c_all && dc_) c.grad_c_all = call_.grad_c_all + row * hidden;
    if (dexchange_) c.dexchange = dexchange_ + of_d * hidden;
    if (dprojected_) c.dprojected = dprojected_ + (d * rows_ + t * batch()) * state;
    c.sums = sums_ + of_d * sums_per_unit_ * hidden;
    c.zone_h = draw_of(tape_.seed, MaskKind::zoneout_h, tape_.noise.zoneout_h, layer_, d);
    c.zone_c = draw_of(tape_.seed, MaskKind::zoneout_c, tape_.noise.zoneout_c, layer_, d);
    return c;
  }

  void step(const BackwardChain<T, M>* chains) {
    if (config_.proj_size) {
      const ProjectionBackward<T, M> functor{frame_, {chains[0], chains[1]}};
      device_->launch(directions_ * batch(), config_.state_size(), functor);
      multiply_projected(chains);
    }
    for (int phase = plan_.phases - 1; phase >= 0; --phase) {
      with_phase(config_.cell, phase, [&](auto* cell) { run_phase(cell, chains); });
      multiply_gates(phase, chains);
    }
  }

  template <class Cell>
  void run_phase(Cell*, const BackwardChain<T, M>* chains) {
    const CellBackward<Cell, T, M> cell{
        frame_, static_cast<M>(config_.clip), config_.proj_size > 0, {chains[0], chains[1]}};
    if (!config_.layer_norm) {
      device_->launch(directions_ * batch(), config_.hidden_size, cell);
      return;
    }
    NormBackward<Cell, T, M> functor{cell, {}};
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t of_d = d * batch() * config_.hidden_size;
      NormChain<T, M>& norm = functor.norm[d];
      norm.parameters = parameters_.norm(index_[d]);
      norm.moments = kept(d).moments + chains[d].t * batch() * norm_moments;
      norm.first = first_ + of_d;
      norm.second = second_ + of_d;
      norm.third = third_ + of_d;
      norm.gradients = gradients_ + of_d * plan_.slots;
    }
    device_->launch_rows(directions_ * batch(), config_.hidden_size, functor);
  }

  // What the products of a phase read: h of the step before, or what the first phase left.
  void multiply_gates(int phase, const BackwardChain<T, M>* chains) {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size();
    const Segment& segment = plan_.recurrent[phase];
    auto product = product_of<T, M>(settings_, batch(), state, segment.count * hidden);
    product.left_stride = plan_.slots * hidden;
    product.right_stride = product.out_stride = state;
    for (int d = 0; d < directions_; ++d) {
      product.left[d] = chains[d].slots + segment.slot * hidden;
      product.right[d] = weight_hh_[d] + segment.gate * hidden * state;
      product.out[d] = phase ? chains[d].dexchange : product_ + d * batch() * state;
    }
    device_->multiply(product);
  }

  void multiply_projected(const BackwardChain<T, M>* chains) {
    auto product = product_of<T, M>(settings_, batch(), config_.hidden_size, config_.state_size());
    product.left_stride = config_.state_size();
    product.right_stride = product.out_stride = config_.hidden_size;
    for (int d = 0; d < directions_; ++d) {
      product.left[d] = chains[d].dprojected;
      product.right[d] = parameters_.at(index_[d].weight_hr);
      product.out[d] = chains[d].dexchange;
    }
    device_->multiply(product);
  }

  void finish(const BackwardChain<T, M>* chains) {
    FinishBackward<T, M> functor{frame_, {chains[0], chains[1]}, {}, {}};
    for (int d = 0; d < directions_; ++d) {
      const std::int64_t row = (layer_ * directions_ + d) * batch();
      if (call_.grad_h0) functor.grad_h0[d] = call_.grad_h0 + row * config_.state_size();
      if (call_.grad_c0 && dc_) functor.grad_c0[d] = call_.grad_c0 + row * config_.hidden_size;
    }
    device_->launch(directions_ * batch(), std::max(config_.state_size(), config_.hidden_size), functor);
  }

  // ---- products over all rows ---------------------------------------------------------------------

  void multiply_input_gradient(T* grad_input) {
    const std::int64_t hidden = config_.hidden_size;
    bool add = false;
    for (int d = 0; d < directions_; ++d) {
      for (int i = 0; i < plan_.inputs; ++i, add = true) {
        const Segment& segment = plan_.input[i];
        auto product = product_of<T, T>(settings_, rows_, width(), segment.count * hidden);
        product.count = 1;  // both directions add to the same
        product.left_stride = plan_.slots * hidden;
        product.right_stride = product.out_stride = width();
        product.left[0] = slots(d) + segment.slot * hidden;
        product.right[0] = parameters_.at(index_[d].weight_ih) + segment.gate * hidden * width();
        product.out[0] = grad_input;
        product.beta = add ? M(1) : M(0);
        device_->multiply(product);
      }
    }
    if (!residual_ && !(tape_.noise.input_dropout > 0)) return;
    const JoinInputGradient<T, M> functor{frame_, width(), input_mask(), residual_, grad_input};
    device_->launch(rows_, width(), functor);
  }

  Draw input_mask() const {
    return draw_of(tape_.seed, MaskKind::input, tape_.noise.input_dropout, layer_, 0);
  }

  // What the products with W_ih read.
  const T* layer_input() {
    const T* const input = layer_ == 0 ? x_ : tape_.layers[static_cast<std::size_t>(layer_ - 1)].output;
    if (!masked_) return input;
    const MaskInput<T, M> functor{frame_, width(), input, masked_, input_mask()};
    device_->launch(rows_, width(), functor);
    return masked_;
  }

  void grad_weights() {
    const std::int64_t hidden = config_.hidden_size, state = config_.state_size();
    const T *read[most_directions] = {}, *before[most_directions] = {}, *exchange[most_directions] = {};
    const T *of_slots[most_directions] = {}, *of_projection[most_directions] = {};
    T *to_ih[most_directions] = {}, *to_hh[most_directions] = {}, *to_hr[most_directions] = {};
    const T* const input = layer_input();
    for (int d = 0; d < directions_; ++d) {
      read[d] = input;
      before[d] = kept(d).operands() + (d ? batch() * state : 0);
      exchange[d] = kept(d).exchange;
      of_slots[d] = slots(d);
      if (dprojected_) of_projection[d] = dprojected_ + d * rows_ * state;
      to_ih[d] = gradient(index_[d].weight_ih);
      to_hh[d] = gradient(index_[d].weight_hh);
      to_hr[d] = gradient(index_[d].weight_hr);
    }
    for (int i = 0; i < plan_.inputs; ++i) {
      multiply_weight_gradient(plan_.input[i], hidden, of_slots, plan_.slots * hidden, read, width(), to_ih);
    }
    for (int i = 0; i < plan_.phases; ++i) {
      multiply_weight_gradient(plan_.recurrent[i], hidden, of_slots, plan_.slots * hidden,
                               i ? exchange : before, state, to_hh);
    }
    if (config_.proj_size) {
      multiply_weight_gradient({0, 0, 1}, state, of_projection, state, exchange, hidden, to_hr);
    }
    for (int d = 0; d < directions_; ++d) {
      if (tape_.noise.weight_drop > 0) {
        drop_weights<T, M>(*device_, config_, tape_.noise, tape_.seed, layer_, d, to_hh[d], to_hh[d]);
      }
      if (config_.layer_norm) {
        sum_norm_gradients(d);
      } else {
        sum_bias_gradients(d);
      }
      sum_peephole_gradients(d);
    }
  }

  // Of rows of gates, `units` each: sums over all rows of gradient times what was read.
  void multiply_weight_gradient(const Segment& segment, std::int64_t units, const T* const* grad,
                                std::int64_t stride, const T* const* read, std::int64_t columns,
                                T* const* to) {
    auto product = product_of<T, T>(settings_, segment.count * units, columns, rows_);
    product.transpose_left = true;
    product.left_stride = stride;
    product.right_stride = product.out_stride = columns;
    for (int d = 0; d < directions_; ++d) {
      product.left[d] = grad[d] + segment.slot * units;
      product.right[d] = read[d];
      product.out[d] = to[d] + segment.gate * units * columns;
    }
    device_->multiply(product);
  }

  // ---- sums over rows -------------------------------------------------------------------------------

  template <class In>
  void sum_rows(const In* from, std::int64_t rows, std::int64_t stride, std::int64_t columns, T* to,
                T* also = nullptr) {
    const SumChunks<In, M> first{from, rows, chunk_rows(rows), stride, columns, partial_};
    device_->launch(chunks(rows), columns, first);
    const AddChunks<T, M> second{partial_, chunks(rows), columns, to, also};
    device_->launch(1, columns, second);
  }

  void sum_bias_gradients(int d) {
    if (!config_.bias) return;
    const std::int64_t hidden = config_.hidden_size, stride = plan_.slots * hidden;
    T* const of_x = gradient(index_[d].bias_ih);
    T* const of_h = gradient(index_[d].bias_hh);
    if (plan_.inputs == 1) {  // both products have the same gradient
      sum_rows(slots(d), rows_, stride, config_.gates() * hidden, of_x, of_h);
      return;
    }
    const auto sum = [&](const Segment& segment, T* to) {
      sum_rows(slots(d) + segment.slot * hidden, rows_, stride, segment.count * hidden,
               to + segment.gate * hidden);
    };
    for (const Segment& segment : plan_.input) sum(segment, of_x);
    sum(plan_.recurrent[0], of_h);
  }

  // Of a kind of sums, over the batch rows.
  void sum_kind(int d, int which, std::int64_t count, T* to, T* also = nullptr) {
    const std::int64_t hidden = config_.hidden_size, stride = sums_per_unit_ * hidden;
    sum_rows(sums_ + d * batch() * stride + which * hidden, batch(), stride, count * hidden, to, also);
  }

  void sum_norm_gradients(int d) {
    const NormSums at{config_.gates()};
    const ParameterIndices& index = index_[d];
    sum_kind(d, at.gain_x(), config_.gates(), gradient(index.norm_ih_weight));
    sum_kind(d, at.shift_x(), config_.gates(), gradient(index.norm_ih_bias), gradient(index.bias_ih));
    sum_kind(d, at.gain_h(), config_.gates(), gradient(index.norm_hh_weight));
    sum_kind(d, at.shift_h(), config_.gates(), gradient(index.norm_hh_bias), gradient(index.bias_hh));
    if (!config_.has_cell_state()) return;
    sum_kind(d, at.gain_c(), 1, gradient(index.norm_c_weight));
    sum_kind(d, at.shift_c(), 1, gradient(index.norm_c_bias));
  }

  void sum_peephole_gradients(int d) {
    T* const to = gradient(index_[d].weight_peep);
    if (!to) return;
    const std::int64_t hidden = config_.hidden_size;
    const int first = config_.layer_norm ? NormSums{config_.gates()}.peephole() : 0;
    sum_kind(d, first, 1, to);
    if (!config_.coupled()) sum_kind(d, first + 1, 1, to + hidden);
    sum_kind(d, first + 2, 1, to + (config_.coupled() ? 1 : 2) * hidden);
  }

  const Settings& settings_;
  Plans<Device, T>& plans_;
  const Config& config_;
  const StepPlan& plan_;
  const Parameters<T> parameters_;
  const StepsTape<Device, T, M>& tape_;
  const Backward<T>& call_;
  const T* const x_;
  const int directions_;
  const std::int64_t rows_;  // T * B
  Frame frame_;
  int sums_per_unit_ = 0;
  typename Device::Turn* device_ = nullptr;
  std::shared_ptr<const Plan> policy_;
  char* room_ = nullptr;                     // of the device's products
  char* exchange_ = nullptr;                 // of a persistent grid
  T* slots_ = nullptr;                       // (D, T, B, slots * H): a copy, where the tape is retained
  M *carry_ = nullptr, *product_ = nullptr;  // (D, B, R)
  M *dc_ = nullptr, *dexchange_ = nullptr;   // (D, B, H)
  T* dprojected_ = nullptr;                  // (D, T, B, R)
  T* grad_hidden_ = nullptr;                 // (T, B, D * R)
  T *passed_ = nullptr, *between_[2] = {};   // (T, B, output width)
  T* masked_ = nullptr;                      // (T, B, width): inputs without what lies past the lengths
  T* own_weights_ = nullptr;                 // (D, G * H, R), see own_weights()
  M *sums_ = nullptr, *partial_ = nullptr;   // (D, B, sums, H); (chunks, columns)
  M *first_ = nullptr, *second_ = nullptr, *third_ = nullptr, *gradients_ = nullptr;  // see NormChain
  // Of the layer at work.
  std::int64_t layer_ = 0;
  ParameterIndices index_[most_directions]{};
  const T* weight_hh_[most_directions]{};
  const T *grad_h_ = nullptr, *residual_ = nullptr;
};

}  // namespace fastrnn::FASTRNN_TARGET
