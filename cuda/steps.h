// The network of csrc/rnn.h on a device. The policy `Steps` runs any cell, option and size, at one product
// and one kernel a step; where the planner knows better, one persistent launch takes all steps of a layer,
// and the rest stays as it is. Nothing waits for the host, and memory comes from the caller, so that a call
// can be captured in a CUDA graph.
//
// Arrays. All pointers of Forward and Backward, and what parameters point to, are of the device. Arrays are
// contiguous in the order of their axes, y and grad_y in time-major order, too; lengths are 64-bit, resets
// bytes. What needs the host to look at values is left out: `guard` is without effect, lengths are not
// checked, and gradient_rooms() are the sizes of the parameters. `scratch` is unused, and calls have
// parameters instead of packed weights. Where nothing was lent (`prepare`), a call takes memory of its own,
// which its workspace and its tape keep.
// Equal calls give equal bits; but cuBLAS sums in an order that depends on the shape, so that a row's bits
// may depend on the batch that it is in, which they do not on the CPU. All calls with a workspace of its own
// memory go to one stream, and so do the forward and the backward call of such a tape.
#pragma once

#include "steps_backward.h"

namespace fastrnn::FASTRNN_TARGET {

// M: of the math.
template <class Device, class T, class M = MathOf<T>>
class StepsNetwork : public CudaNetwork<T> {
 public:
  // `device`: what workspaces are given until they are prepared.
  StepsNetwork(const Config& config, bool tf32, const Device& device, PolicyChoice choice)
      : settings_{config, step_plan_of(config), tf32}, plans_(settings_, choice), device_(device) {
    for (const Parameter& parameter : parameters_of(config)) {
      std::int64_t size = 1;
      for (const std::int64_t axis : parameter.shape) size *= axis;
      sizes_.push_back(size);
    }
  }

  std::unique_ptr<Weights<T>> pack(const T* const*) const override { throw_without_parameters(); }

  std::unique_ptr<Workspace> make_workspace() const override {
    auto workspace = std::make_unique<StepsWorkspace<Device>>();
    workspace->device = device_;
    return workspace;
  }

  std::unique_ptr<Tape<T>> make_tape() const override { return std::make_unique<Kept>(); }

  void prepare(Workspace& workspace, const CudaStream& stream, const DeviceBlock& memory) const override {
    own(workspace).device = device_.on(stream);
    own(workspace).memory.lend(memory);
  }
  void prepare(Tape<T>& tape, const DeviceBlock& memory) const override {
    static_cast<Kept&>(tape).memory.lend(memory);
  }

  std::size_t tape_bytes(const Forward<T>& call) const override {
    return Kept().count(settings_.config, settings_.plan, call);
  }
  std::size_t workspace_bytes(const Forward<T>& call, bool keep) const override {
    return StepsForward<Device, T, M>(settings_, plans_, call, keep).bytes();
  }
  std::size_t workspace_bytes(const Tape<T>& tape, const Backward<T>& call) const override {
    return StepsBackward<Device, T, M>(settings_, plans_, static_cast<const Kept&>(tape), call).bytes();
  }

  std::vector<std::string> plans(int device, const Forward<T>& call, bool keep) const override {
    typename Device::Turn turn(device_.on({device, nullptr}));
    std::string text = plans_.plan(turn, call.steps, call.batch, call.noise, false)->why;
    if (keep) text += "; backward " + plans_.plan(turn, call.steps, call.batch, call.noise, true)->why;
    return std::vector<std::string>(static_cast<std::size_t>(settings_.config.num_layers), text);
  }

  void forward(const Weights<T>*, Workspace& workspace, const Forward<T>& call) const override {
    const Config& config = settings_.config;
    const std::int64_t steps = call.steps, batch = call.batch, width = config.output_size();
    const std::int64_t chains = config.num_layers * config.directions();
    expect_contiguous<T>("x", call.x, steps, batch, config.input_size);
    expect_contiguous<T>("h0", call.h0, chains, batch, config.state_size());
    expect_contiguous<T>("c0", call.c0, chains, batch, config.hidden_size);
    if (call.resets.data) {
      expect_contiguous("resets", steps, batch, call.resets.stride[0], call.resets.stride[1], 1);
    }
    expect_contiguous("y", steps, batch, call.y_step, call.y_row, width);
    if (!call.parameters) throw_without_parameters();
    StepsForward<Device, T, M>(settings_, plans_, call, call.tape != nullptr).run(own(workspace));
  }

  std::size_t scratch_bytes() const override { return 0; }

  void backward(Tape<T>& tape, Workspace& workspace, const Backward<T>& call) const override {
    if (call.steps) throw_step_gradients();
    if (!call.parameters) throw_without_parameters();
    const Config& config = settings_.config;
    const auto& kept = static_cast<const Kept&>(tape);
    expect_contiguous<T>("x", call.x, kept.steps, kept.batch, config.input_size);
    if (call.grad_y) {
      expect_contiguous("grad_y", kept.steps, kept.batch, call.grad_y_step, call.grad_y_row,
                        config.output_size());
    }
    if (call.grad_x) {
      expect_contiguous("grad_x", kept.steps, kept.batch, call.grad_x_step, call.grad_x_row,
                        config.input_size);
    }
    StepsBackward<Device, T, M>(settings_, plans_, kept, call).run(own(workspace));
  }

  std::vector<std::int64_t> gradient_rooms() const override { return sizes_; }

  std::unique_ptr<StepGradients<T>> make_step_gradients() const override { throw_step_gradients(); }

  void add_up(StepGradients<T>&, Workspace&, T* const*) const override { throw_step_gradients(); }

  double multiply_adds(std::int64_t steps, std::int64_t batch) const override {
    const Config& config = settings_.config;
    double total = 0;
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      total += static_cast<double>(config.layer_input_size(layer) + config.state_size()) *
               static_cast<double>(config.gates() * config.hidden_size * config.directions());
    }
    return total * static_cast<double>(steps) * static_cast<double>(batch);
  }

 private:
  using Kept = StepsTape<Device, T, M>;

  [[noreturn]] static void throw_step_gradients() {
    throw std::invalid_argument(
        "step by step: expected device='cpu'; on a GPU, run backward over a sequence");
  }
  [[noreturn]] static void throw_without_parameters() {
    throw std::invalid_argument("parameters: expected those of the network in every call on a GPU, got none");
  }

  static StepsWorkspace<Device>& own(Workspace& workspace) {
    return static_cast<StepsWorkspace<Device>&>(workspace);
  }

  const Settings settings_;
  mutable Plans<Device, T> plans_;
  const Device device_;
  std::vector<std::int64_t> sizes_;
};

}  // namespace fastrnn::FASTRNN_TARGET
