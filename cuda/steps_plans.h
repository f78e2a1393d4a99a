// Which policy runs the layers of a call on a device. In a pass all layers of a network have the same
// plan: what differs between them is projected before their steps.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "steps_tape.h"

namespace fastrnn::FASTRNN_TARGET {

// Answers, for any number of threads.
template <class Key, class Value>
class Remembered {
 public:
  template <class Make>
  Value get(const Key& key, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    if (known_.size() >= most) known_.clear();
    return known_.emplace(key, make()).first->second;
  }

 private:
  static constexpr std::size_t most = 1024;  // batches of all sizes come and go
  std::mutex mutex_;
  std::map<Key, Value> known_;
};

template <class T>
constexpr StorageKind kind_of(bool tf32) {
  if (std::is_same_v<T, double>) return StorageKind::float64;
  if (std::is_same_v<T, Bfloat16>) return StorageKind::bf16;
  if (std::is_same_v<T, Half>) return StorageKind::fp16;
  return tf32 ? StorageKind::tf32 : StorageKind::float32;
}

// Of one network.
template <class Device, class T>
class Plans {
 public:
  // `settings` stays alive.
  Plans(const Settings& settings, PolicyChoice choice) : settings_(settings), choice_(choice) {}

  StorageKind kind() const { return kind_of<T>(settings_.tf32); }

  // One that the device whose turn it is can run.
  std::shared_ptr<const Plan> plan(typename Device::Turn& device, std::int64_t steps, std::int64_t batch,
                                   const Noise& noise, bool backward) {
    const Problem problem = problem_of(steps, batch, noise, backward);
    return plans_.get({device.number(), steps > 1, batch, problem.has_other_options, backward},
                      [&] { return std::make_shared<const Plan>(fitting(device, problem)); });
  }

  // Of memory that such a call's plan may need, whatever the device.
  std::size_t exchange_bytes(std::int64_t steps, std::int64_t batch, const Noise& noise, bool backward) {
    if (!may_persist()) return 0;
    const Problem problem = problem_of(steps, batch, noise, backward);
    return bytes_.get({steps > 1, batch, problem.has_other_options, backward}, [&] {
      std::size_t bytes = 0;
      for (int device = 0; device < Device::count(); ++device) {
        DeviceProperties properties = Device::properties(device);
        for (const int largest_cluster : {properties.largest_cluster, 1}) {  // `fitting` takes no others
          properties.largest_cluster = largest_cluster;
          bytes = std::max(bytes, fastrnn::exchange_bytes(plan_layer(properties, problem), directions()));
        }
      }
      return bytes;
    });
  }

 private:
  std::int64_t directions() const { return settings_.config.directions(); }
  bool may_persist() const { return !std::is_same_v<T, double> && choice_ == PolicyChoice::automatic; }

  Problem problem_of(std::int64_t steps, std::int64_t batch, const Noise& noise, bool backward) const {
    const Config& config = settings_.config;
    Problem problem;
    problem.cell = config.cell;
    problem.kind = kind();
    problem.steps = steps;
    problem.batch = batch;
    problem.hidden = config.hidden_size;
    problem.state = config.state_size();
    problem.directions = directions();
    problem.backward = backward;
    // What acts outside of the steps, or on W_hh alone, does not matter.
    problem.has_other_options = config.proj_size > 0 || config.layer_norm || noise.recurrent_dropout > 0 ||
                                noise.zoneout_h > 0 || noise.zoneout_c > 0;
    return problem;
  }

  // Where a device has less room than the planner expects of it: a smaller cluster, a grid, or Steps.
  Plan fitting(typename Device::Turn& device, const Problem& problem) const {
    if (choice_ == PolicyChoice::steps) {
      Plan plan;
      plan.why = "steps: FASTRNN_CUDA_POLICY=steps";
      return plan;
    }
    DeviceProperties properties = Device::properties(device.number());
    for (;;) {
      Plan plan = plan_layer(properties, problem);
      if constexpr (!std::is_same_v<T, double>) {
        if (plan.policy == Policy::steps) return plan;
        const auto all = static_cast<int>(directions());
        if (device.template fits<T>(plan, problem.cell, problem.kind, all)) return plan;
        if (plan.policy == Policy::cluster) {
          properties.largest_cluster = plan.shape.ranks - 1;
          continue;
        }
        plan = Plan{};
        plan.why = "steps: the device has no room for a persistent kernel";
      }
      return plan;
    }
  }

  const Settings& settings_;
  const PolicyChoice choice_;
  Remembered<std::tuple<int, bool, std::int64_t, bool, bool>, std::shared_ptr<const Plan>> plans_;
  Remembered<std::tuple<bool, std::int64_t, bool, bool>, std::size_t> bytes_;
};

}  // namespace fastrnn::FASTRNN_TARGET
