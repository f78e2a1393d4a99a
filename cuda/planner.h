// Which policy runs a layer on a GPU, and how it is cut. Needs no CUDA and no GPU: shapes and properties in,
// a plan out, which tests read as a table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "persistent_shape.h"
#include "rnn.h"

namespace fastrnn {

struct DeviceProperties {
  const char* name = "";
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t shared_per_block = 0;  // bytes, at most on request
  std::int64_t shared_per_multiprocessor = 0;
  int registers_per_multiprocessor = 65536;  // of 4 bytes
  int largest_cluster = 1;                   // blocks; beyond 8 on request
  std::int64_t l2_bytes = 0;
  bool has_cooperative_launch = true;
};

// Data sheets and the tables of the CUDA C++ programming guide ("Compute capabilities").
const std::vector<DeviceProperties>& known_devices();
// By name; throws std::invalid_argument with those that there are.
const DeviceProperties& device_named(const std::string& name);

enum class StorageKind : int { float32, tf32, bf16, fp16, float64, count };
enum class Policy : int { steps, block, cluster, grid, count };
const char* name_of(StorageKind kind);
const char* name_of(Policy policy);

// One layer in one pass: the arrays between the passes are the same whatever ran, so that each has a plan of
// its own. `float32` has products as exact as float32's; `tf32` allows the tensor cores' shorter numbers.
struct Problem {
  CellKind cell = CellKind::lstm;
  StorageKind kind = StorageKind::float32;
  std::int64_t steps = 0, batch = 0, hidden = 0, state = 0, directions = 1;  // T, B, H, R, D
  bool has_other_options = false;  // noise, layer norm: what only Steps does
  bool backward = false;
};

struct Plan {
  Policy policy = Policy::steps;
  int blocks_per_direction = 0;  // ranks * row groups
  int row_groups = 0;            // tiles of the batch
  int units_per_block = 0;
  int batch_tile = 0;  // rows
  int threads = 0;
  std::int64_t shared_bytes = 0;           // of a block
  std::int64_t register_weight_bytes = 0;  // of a block: weights in registers ...
  std::int64_t shared_weight_bytes = 0;    // ... and in shared memory
  double step_microseconds = 0;            // estimated
  PersistentShape shape;
  std::string why;  // for people: why this and no other

  int blocks(std::int64_t directions) const { return static_cast<int>(directions) * blocks_per_direction; }
};

Plan plan_layer(const DeviceProperties& device, const Problem& problem);

// Bytes of memory that a launch of the plan needs on the device besides its arrays: of a grid.
std::size_t exchange_bytes(const Plan& plan, std::int64_t directions);
// Of them, of the flags that they begin with: 4 for each block.
std::size_t exchange_flag_bytes(const Plan& plan, std::int64_t directions);

// What a network may choose among: FASTRNN_CUDA_POLICY, `auto` or `steps`, for comparisons. Throws
// std::invalid_argument for any other value.
enum class PolicyChoice : int { automatic, steps };
PolicyChoice policy_choice_of_environment();

}  // namespace fastrnn
