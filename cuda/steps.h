// The network of csrc/rnn.h on a device, by the policy `Steps`: any cell, option and size, at one product and
// one kernel a step. Nothing waits for the host, so that a call can be captured in a CUDA graph once its
// workspace and tape have grown to their size.
//
// Arrays. All pointers of Forward and Backward, and what parameters point to, are of the device. Arrays are
// contiguous in the order of their axes, y and grad_y in time-major order, too; lengths are 64-bit, resets
// bytes. What needs the host to look at values is left out: `guard` is without effect, lengths are not
// checked, and gradient_rooms() are the sizes of the parameters. `scratch` is unused.
// Equal calls give equal bits; but cuBLAS sums in an order that depends on the shape, so that a row's bits
// may depend on the batch that it is in, which they do not on the CPU. All calls with a workspace, and of a
// tape those of its forward and backward, go to the stream of the workspace.
#pragma once

#include "steps_backward.h"

namespace fastrnn::FASTRNN_TARGET {

template <class Device, class T, class M = T>
class StepsNetwork : public Network<T> {
 public:
  // `device`: where `pack` works, and what workspaces are given.
  StepsNetwork(const Config& config, const Device& device)
      : config_(config), plan_(step_plan_of(config)), device_(device) {
    for (const Parameter& parameter : parameters_of(config)) {
      std::int64_t size = 1;
      for (const std::int64_t axis : parameter.shape) size *= axis;
      sizes_.push_back(size);
    }
  }

  std::unique_ptr<Weights<T>> pack(const T* const* parameters) const override {
    auto weights = std::make_unique<Copy>();
    Device device = device_;
    Arena counting;
    for (const std::int64_t size : sizes_) counting.take<T>(size);
    Arena arena(weights->memory.reserve(device, counting.used()));
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      T* const to = arena.take<T>(sizes_[i]);
      device.copy(to, parameters[i], static_cast<std::size_t>(sizes_[i]) * sizeof(T));
      weights->parameters.push_back(to);
    }
    device.wait();  // for whichever stream uses them
    return weights;
  }

  std::unique_ptr<Workspace> make_workspace() const override {
    auto workspace = std::make_unique<StepsWorkspace<Device>>();
    workspace->device = device_.for_workspace();
    return workspace;
  }

  std::unique_ptr<Tape<T>> make_tape() const override { return std::make_unique<StepsTape<Device, T, M>>(); }

  void forward(const Weights<T>* weights, Workspace& workspace, const Forward<T>& call) const override {
    const std::int64_t steps = call.steps, batch = call.batch, width = config_.output_size();
    const std::int64_t chains = config_.num_layers * config_.directions();
    expect_contiguous<T>("x", call.x, steps, batch, config_.input_size);
    expect_contiguous<T>("h0", call.h0, chains, batch, config_.state_size());
    expect_contiguous<T>("c0", call.c0, chains, batch, config_.hidden_size);
    if (call.resets.data) {
      expect_contiguous("resets", steps, batch, call.resets.stride[0], call.resets.stride[1], 1);
    }
    expect_contiguous("y", steps, batch, call.y_step, call.y_row, width);
    const T* const* const parameters =
        call.parameters ? call.parameters : static_cast<const Copy*>(weights)->parameters.data();
    StepsForward<Device, T, M>(config_, plan_, parameters, own(workspace), call).run();
  }

  std::size_t scratch_bytes() const override { return 0; }

  void backward(Tape<T>& tape, Workspace& workspace, const Backward<T>& call) const override {
    if (call.steps) throw_step_gradients();
    const auto& kept = static_cast<const StepsTape<Device, T, M>&>(tape);
    expect_contiguous<T>("x", call.x, kept.steps, kept.batch, config_.input_size);
    if (call.grad_y) {
      expect_contiguous("grad_y", kept.steps, kept.batch, call.grad_y_step, call.grad_y_row,
                        config_.output_size());
    }
    if (call.grad_x) {
      expect_contiguous("grad_x", kept.steps, kept.batch, call.grad_x_step, call.grad_x_row,
                        config_.input_size);
    }
    StepsBackward<Device, T, M>(config_, plan_, own(workspace), kept, call).run();
  }

  std::vector<std::int64_t> gradient_rooms() const override { return sizes_; }

  std::unique_ptr<StepGradients<T>> make_step_gradients() const override { throw_step_gradients(); }

  void add_up(StepGradients<T>&, Workspace&, T* const*) const override { throw_step_gradients(); }

  double multiply_adds(std::int64_t steps, std::int64_t batch) const override {
    double total = 0;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      total += static_cast<double>(config_.layer_input_size(layer) + config_.state_size()) *
               static_cast<double>(config_.gates() * config_.hidden_size * config_.directions());
    }
    return total * static_cast<double>(steps) * static_cast<double>(batch);
  }

 private:
  struct Copy : Weights<T> {
    Buffer<Device> memory;
    std::vector<const T*> parameters;
  };

  [[noreturn]] static void throw_step_gradients() {
    throw std::invalid_argument(
        "step by step: expected device='cpu'; on a GPU, run backward over a sequence");
  }

  static StepsWorkspace<Device>& own(Workspace& workspace) {
    return static_cast<StepsWorkspace<Device>&>(workspace);
  }

  const Config config_;
  const StepPlan plan_;
  const Device device_;
  std::vector<std::int64_t> sizes_;
};

}  // namespace fastrnn::FASTRNN_TARGET
