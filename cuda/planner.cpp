#include "planner.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn {

namespace {

constexpr std::int64_t kib = 1024, mib = kib * kib;

// Numbers of a cost model, in microseconds and per cycle: of an H100, from what is published of it.
// Estimates; only their ratios matter.
constexpr double cycles_per_microsecond = 1700;
constexpr double exchange_block = 0.05, exchange_cluster = 0.4, exchange_grid = 1.2;
constexpr double meeting_cluster = 0.2;  // besides, where there is one buffer; the cell's math hides a part
constexpr double cell_cycles = 350;      // two meetings of a block, and the math of its items
constexpr double steps_floor = 3.6;      // a product and a pointwise kernel, launched one by one
constexpr double shared_bytes_per_cycle = 128;  // of one multiprocessor
constexpr double l2_bytes_per_cycle = 2500;     // of all
constexpr int processing_cluster = 16;    // multiprocessors that share one, of data center chips at least
constexpr double worthwhile = 0.8;        // of the time, for a policy that takes more to exchange
constexpr int last_cluster_hidden = 512;  // beyond, a cluster has too few registers

struct Numbers {
  int step, parts;
  double multiply_adds_per_cycle;  // of one multiprocessor, mma.sync, dense
};

Numbers numbers_of(StorageKind kind) {
  switch (kind) {
    case StorageKind::float32:
      return {8, 2, 512.0 / 3};
    case StorageKind::tf32:
      return {8, 1, 512};
    default:
      return {16, 1, 1024};
  }
}

int gates_of(CellKind cell) {
  Config config;
  config.cell = cell;
  return config.gates();
}

// Why only Steps does it; empty: others may.
std::string excluded(const DeviceProperties& device, const Problem& problem) {
  if (problem.kind == StorageKind::float64) return "float64 has no persistent kernel";
  if (problem.has_other_options) return "an option that only Steps has";
  if (problem.state != problem.hidden) return "a projection needs two exchanges in every step";
  switch (problem.cell) {
    case CellKind::gru_reset_before:
      return "two products in every step need two exchanges";
    case CellKind::lstm_peephole:
    case CellKind::lstm_coupled_peephole:
      return "peepholes";
    default:
      break;
  }
  if (device.major < 8) return "mma.sync of these types needs compute capability 8.0";
  if (problem.steps < 2 || problem.batch == 0 || problem.hidden == 0) return "nothing to keep weights for";
  return "";
}

int round_up(std::int64_t n, int to) { return static_cast<int>((n + to - 1) / to * to); }

int most_items(const PersistentShape& shape) { return items_at_depth(shape.gates, shape.parts, shape.depth); }

// Warps: one for each job, as far as registers go, and enough for the items.
int warps_of(const PersistentShape& shape, const DeviceProperties& device) {
  const int by_registers =
      device.registers_per_multiprocessor / 65536 * warps_at_depth(shape.gates, shape.parts, shape.depth);
  const int of_warp = most_items(shape) * PersistentShape::lanes;
  const int wanted = std::max({shape.jobs(), (shape.items() + of_warp - 1) / of_warp, 4});
  return std::min(wanted, by_registers);
}

bool fits(const PersistentShape& shape, const DeviceProperties& device) {
  return shape.items() <= most_items(shape) * shape.threads() &&
         shape.shared_bytes() + persistent_static_bytes <= device.shared_per_block;
}

// `blocks`: of all directions and rows, which share L2.
double step_cost(const PersistentShape& shape, const Numbers& numbers, Policy policy, double blocks,
                 double waves) {
  const double columns = shape.rows(),
               fragments = static_cast<double>(shape.jobs()) * shape.gates * shape.depth;
  const double products = fragments * PersistentShape::panel_units * shape.step * columns;
  double cycles = products / numbers.multiply_adds_per_cycle;
  cycles +=
      static_cast<double>(shape.shared_jobs() * shape.job_bytes()) * shape.tiles / shared_bytes_per_cycle;
  cycles += 2.0 * 4 * shape.jobs() * shape.sums() * shape.tiles * PersistentShape::partial_floats /
            shared_bytes_per_cycle;
  const auto exchanged = static_cast<double>(shape.buffer_bytes());
  if (policy == Policy::cluster) cycles += exchanged / shared_bytes_per_cycle;
  if (policy == Policy::grid) {  // some warps multiply while others load
    const double loads = exchanged * shape.panels * blocks / l2_bytes_per_cycle;
    cycles = std::max(cycles, loads) + std::min(cycles, loads) / 2;
  }
  cycles += cell_cycles * shape.bands();
  const double exchange = policy == Policy::block     ? exchange_block
                          : policy == Policy::cluster ? exchange_cluster
                                                      : exchange_grid;
  if (policy == Policy::cluster && shape.buffers == 1) cycles += meeting_cluster * cycles_per_microsecond;
  return waves * (exchange + cycles / cycles_per_microsecond);
}

double steps_cost(const DeviceProperties& device, const Problem& problem, const Numbers& numbers) {
  const double weights =
      static_cast<double>(problem.directions * gates_of(problem.cell) * problem.hidden * problem.hidden);
  const double products = weights * round_up(problem.batch, PersistentShape::tile_rows);
  const double element = numbers.step == 16 ? 2 : 4;
  const double cycles = std::max(products / (numbers.multiply_adds_per_cycle * device.multiprocessors * 0.5),
                                 weights * element / l2_bytes_per_cycle);
  return steps_floor + cycles / cycles_per_microsecond;
}

// All ways of one policy, the best of which is kept in `best`.
class Search {
 public:
  Search(const DeviceProperties& device, const Problem& problem)
      : device_(device), problem_(problem), numbers_(numbers_of(problem.kind)) {
    shape_.hidden = problem.hidden;
    shape_.gates = gates_of(problem.cell);
    shape_.step = numbers_.step;
    shape_.parts = numbers_.parts;
    shape_.depth = depth_of(problem.hidden, shape_.gates, numbers_.step, numbers_.parts);
    shape_.backward = problem.backward;
  }

  void consider(Policy policy) {
    const int all = shape_.all_panels(), most = most_ranks(policy);
    for (int ranks = policy == Policy::block ? 1 : 2; ranks <= std::min(most, all); ++ranks) {
      shape_.panels = (all + ranks - 1) / ranks;
      if ((all + shape_.panels - 1) / shape_.panels != ranks) continue;  // some would have none
      shape_.ranks = ranks;
      const int all_tiles = round_up(problem_.batch, PersistentShape::tile_rows) / PersistentShape::tile_rows;
      for (int tiles = 1; tiles <= std::min(all_tiles, 8); ++tiles) {
        shape_.tiles = tiles;
        consider(policy, policy == Policy::grid ? 0 : 1, all_tiles);
        if (policy == Policy::cluster) consider(policy, 2, all_tiles);
      }
    }
  }

  const Plan& best() const { return best_; }

 private:
  int most_ranks(Policy policy) const {
    if (policy == Policy::block) return 1;
    if (policy == Policy::cluster) return device_.largest_cluster;
    return device_.multiprocessors / static_cast<int>(problem_.directions);
  }

  // A cluster lies in one processing cluster of the chip.
  double blocks_at_once(Policy policy, int ranks) const {
    if (policy != Policy::cluster) return device_.multiprocessors;
    const int together = std::max(1, processing_cluster / ranks);
    return std::max(1, device_.multiprocessors / processing_cluster) * together * ranks;
  }

  void consider(Policy policy, int buffers, int all_tiles) {
    PersistentShape shape = shape_;
    const int tiles = shape.tiles;
    shape.buffers = buffers;
    shape.warps = warps_of(shape, device_);
    int bands = 1;
    do {
      shape.band_tiles = (tiles + bands - 1) / bands;
    } while (!fits(shape, device_) && ++bands <= tiles);
    if (bands > tiles) return;
    const int groups = (all_tiles + tiles - 1) / tiles;
    const std::int64_t blocks = problem_.directions * groups * shape.ranks;
    if (policy == Policy::grid && blocks > device_.multiprocessors) return;  // all must run at once
    const double waves = std::ceil(static_cast<double>(blocks) / blocks_at_once(policy, shape.ranks));
    const double cost = step_cost(shape, numbers_, policy, static_cast<double>(blocks), waves);
    const double least = policy == best_.policy ? 1 : worthwhile;
    if (best_.policy != Policy::steps && cost >= least * best_.step_microseconds) return;
    best_.policy = policy;
    best_.blocks_per_direction = groups * shape.ranks;
    best_.row_groups = groups;
    best_.units_per_block = shape.units();
    best_.batch_tile = shape.rows();
    best_.threads = shape.threads();
    best_.shared_bytes = shape.shared_bytes();
    best_.register_weight_bytes = std::min(shape.warps, shape.jobs()) * shape.job_bytes();
    best_.shared_weight_bytes = shape.shared_jobs() * shape.job_bytes();
    best_.step_microseconds = cost;
    best_.shape = shape;
  }

  const DeviceProperties& device_;
  const Problem& problem_;
  const Numbers numbers_;
  PersistentShape shape_;
  Plan best_;
};

std::string microseconds(double value) {
  const auto tenths = static_cast<long>(std::lround(value * 10));
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " us";
}

Plan steps_plan(const std::string& why) {
  Plan plan;
  plan.why = "steps: " + why;
  return plan;
}

}  // namespace

const std::vector<DeviceProperties>& known_devices() {
  static const std::vector<DeviceProperties> devices = {
      {"A100", 8, 0, 108, 163 * kib, 164 * kib, 65536, 1, 40 * mib, true},
      {"L4", 8, 9, 58, 99 * kib, 100 * kib, 65536, 1, 48 * mib, true},
      {"RTX 4090", 8, 9, 128, 99 * kib, 100 * kib, 65536, 1, 72 * mib, true},
      {"H100", 9, 0, 132, 227 * kib, 228 * kib, 65536, 16, 50 * mib, true},
      {"H200", 9, 0, 132, 227 * kib, 228 * kib, 65536, 16, 50 * mib, true},
      {"B200", 10, 0, 148, 227 * kib, 228 * kib, 65536, 16, 126 * mib, true},
      {"RTX 5090", 12, 0, 170, 99 * kib, 100 * kib, 65536, 8, 96 * mib, true},
  };
  return devices;
}

const DeviceProperties& device_named(const std::string& name) {
  std::string names;
  for (const DeviceProperties& device : known_devices()) {
    if (device.name == name) return device;
    names += std::string(names.empty() ? "" : ", ") + device.name;
  }
  throw std::invalid_argument("device: expected one of " + names + ", got " + name);
}

const char* name_of(StorageKind kind) {
  constexpr const char* names[] = {"float32", "tf32", "bf16", "fp16", "float64"};
  return names[static_cast<int>(kind)];
}
const char* name_of(Policy policy) {
  constexpr const char* names[] = {"steps", "block", "cluster", "grid"};
  return names[static_cast<int>(policy)];
}

// The cheapest way by the estimates; of nearly equal ones that which exchanges in the simplest way.
Plan plan_layer(const DeviceProperties& device, const Problem& problem) {
  const std::string reason = excluded(device, problem);
  if (!reason.empty()) return steps_plan(reason);
  Search search(device, problem);
  const bool has_clusters = device.major >= 9 && device.largest_cluster > 1;
  if (problem.hidden <= last_cluster_hidden) {
    search.consider(Policy::block);
    if (has_clusters) search.consider(Policy::cluster);
  }
  if (device.has_cooperative_launch) search.consider(Policy::grid);
  Plan plan = search.best();
  if (plan.policy == Policy::steps) return steps_plan("weights and states exceed all multiprocessors");
  const double alternative = steps_cost(device, problem, numbers_of(problem.kind));
  const std::string estimates =
      microseconds(plan.step_microseconds) + " a step against " + microseconds(alternative) + " of steps";
  if (plan.step_microseconds >= alternative) {
    return steps_plan(std::string(name_of(plan.policy)) + " would take " + estimates);
  }
  plan.why = std::string(name_of(plan.policy)) + ": " + std::to_string(plan.shape.ranks) + " x " +
             std::to_string(plan.units_per_block) + " units, " + std::to_string(plan.row_groups) + " x " +
             std::to_string(plan.batch_tile) + " rows, " +
             (plan.shape.bands() > 1 ? std::to_string(plan.shape.bands()) + " bands, " : "") + "about " +
             estimates;
  return plan;
}

std::size_t exchange_flag_bytes(const Plan& plan, std::int64_t directions) {
  const std::int64_t flags = directions * plan.row_groups * plan.shape.ranks * 4;
  return static_cast<std::size_t>((flags + 255) / 256 * 256);
}

std::size_t exchange_bytes(const Plan& plan, std::int64_t directions) {
  if (plan.policy != Policy::grid) return 0;
  const std::int64_t groups = directions * plan.row_groups;
  return exchange_flag_bytes(plan, directions) +
         static_cast<std::size_t>(groups * 2 * plan.shape.buffer_bytes());
}

PolicyChoice policy_choice_of_environment() {
  static const PolicyChoice choice = [] {
    const char* const value = std::getenv("FASTRNN_CUDA_POLICY");
    const std::string name = value ? value : "auto";
    if (name == "steps") return PolicyChoice::steps;
    if (name == "auto") return PolicyChoice::automatic;
    throw std::invalid_argument("FASTRNN_CUDA_POLICY: expected auto or steps, got " + name);
  }();
  return choice;
}

}  // namespace fastrnn
