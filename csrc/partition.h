// How the threads of one call divide its work. A thread belongs to one direction group, one row group
// and one slice of hidden units; slices of the same rows meet at a barrier in every step, row groups
// never meet, direction groups meet once per layer. Chosen by estimated cost, never by the result:
// every partition gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rnn.h"

namespace fastrnn {

// [first, first + count) of the `part`-th of `parts` nearly equal parts of `total`, larger ones first.
struct Range {
  std::int64_t first, count;
};

inline Range part_of(std::int64_t total, std::int64_t parts, std::int64_t part) {
  const std::int64_t each = total / parts, larger = total % parts;
  return {part * each + std::min(part, larger), each + (part < larger)};
}

struct Partition {
  int directions = 1, row_groups = 1, slices = 1;

  int threads() const { return directions * row_groups * slices; }
  bool operator==(const Partition& other) const {
    return directions == other.directions && row_groups == other.row_groups && slices == other.slices;
  }
};

// Estimates in cycles of one core; only their ratios matter. The constants are those of a core with
// two FMA pipes and private L2, measured with bench/microbenchmarks.cpp.
class CostModel {
 public:
  CostModel(const Config& config, int lanes, int element_bytes)
      : config_(config), lanes_(lanes), element_bytes_(element_bytes) {}

  // `slowness`: that of barriers now.
  Partition choose(std::int64_t steps, std::int64_t batch, int threads, double slowness) const {
    Partition best;
    if (threads == 1 || batch == 0 || steps == 0) return best;
    double best_cost = cost(best, steps, batch, slowness);
    if (best_cost < launch) return best;
    const auto panels =
        static_cast<int>(std::min<std::int64_t>(threads, (config_.hidden_size + lanes_ - 1) / lanes_));
    for (int directions = 1; directions <= std::min<int>(threads, config_.directions()); ++directions) {
      for (int slices = 1; slices <= std::min(threads / directions, panels); ++slices) {
        const auto groups = static_cast<int>(std::min<std::int64_t>(threads / directions / slices, batch));
        const Partition candidate{directions, groups, slices};
        const double candidate_cost = cost(candidate, steps, batch, slowness);
        if (candidate_cost < best_cost) {
          best = candidate;
          best_cost = candidate_cost;
        }
      }
    }
    return best;
  }

  // Seconds that the call would take on one thread, at 4 GHz.
  double seconds_alone(std::int64_t steps, std::int64_t batch) const {
    return cost(Partition{}, steps, batch, 1) / 4e9;
  }

 private:
  static constexpr double launch = 20000;  // between a worker that still looks and one that sleeps
  static constexpr double barrier = 250, barrier_per_thread = 60;
  static constexpr double unit_math = 50;  // lane-wise math of one panel of one row

  double cost(const Partition& p, std::int64_t steps, std::int64_t batch, double slowness) const {
    const double rows = static_cast<double>((batch + p.row_groups - 1) / p.row_groups);
    const std::int64_t all_panels = (config_.hidden_size + lanes_ - 1) / lanes_;
    const double panels = static_cast<double>((all_panels + p.slices - 1) / p.slices);
    const double gates = config_.gates();
    const bool two_phases = config_.proj_size || config_.cell == CellKind::gru_reset_before;
    const int meetings = (two_phases ? 2 : 1) + (config_.layer_norm ? config_.has_cell_state() ? 2 : 1 : 0);
    double total = 0;
    for (std::int64_t layer = 0; layer < std::min<std::int64_t>(config_.num_layers, 2); ++layer) {
      const double same = layer == 0 ? 1 : static_cast<double>(config_.num_layers - 1);
      const double width = static_cast<double>(config_.state_size());
      const double inputs = static_cast<double>(config_.layer_input_size(layer));
      const double bytes = panels * lanes_ * gates * width * element_bytes_;
      const double per_cycle = bytes < 32e3 ? 64 : bytes < 800e3 ? 40 : 14;
      double step = std::max(rows * panels * gates * width / 2, bytes / per_cycle);
      step += rows * panels * gates * inputs / 2 + rows * panels * unit_math;
      if (p.slices > 1) step += slowness * (barrier + barrier_per_thread * p.slices) * meetings;
      total += same * step;
    }
    total *= static_cast<double>(steps) * static_cast<double>(config_.directions()) / p.directions;
    return total + (p.threads() > 1 ? launch : 0);
  }

  const Config& config_;
  int lanes_;
  int element_bytes_;
};

}  // namespace fastrnn
