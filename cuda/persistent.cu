// The persistent kernels and their launches: one kernel for each cell, kind of numbers, depth and policy.
// Compiled once for each type of arrays and pass, which FASTRNN_ARRAYS (float, Bfloat16, Half) and
// FASTRNN_BACKWARD (0, 1) say.
#include <stdexcept>
#include <string>
#include <type_traits>

#include "device_cuda.cuh"
#include "group_cuda.cuh"
#include "persistent.h"

namespace fastrnn::FASTRNN_TARGET {

namespace {

using Arrays = FASTRNN_ARRAYS;
constexpr bool backward = FASTRNN_BACKWARD;
using Call = std::conditional_t<backward, PersistentBackwardCall<Arrays>, PersistentForwardCall<Arrays>>;

template <class Cell, Precision precision, int depth, class Group>
using Kernel = std::conditional_t<backward, PersistentBackward<Cell, precision, depth, Arrays, Group>,
                                  PersistentForward<Cell, precision, depth, Arrays, Group>>;

extern __shared__ __align__(256) char persistent_memory[];

// Where a block is in the launch: x counts tiles of the batch, y the blocks of a group, z directions. The
// hardware knows it, and it takes no registers.
__device__ __forceinline__ int row_group() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int rank() { return static_cast<int>(blockIdx.y); }
__device__ __forceinline__ int direction() { return static_cast<int>(blockIdx.z); }
__device__ __forceinline__ int group_index() { return static_cast<int>(blockIdx.z * gridDim.x + blockIdx.x); }

template <class Cell, Precision precision, int depth, Policy policy>
__global__ void __launch_bounds__(32 * warps_at_depth(Cell::gates, Operand<precision>::parts, depth), 1)
    run_persistent(const __grid_constant__ Call call, GridExchange exchange) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (policy == Policy::cluster) return;  // no such hardware, and the planner knows
#endif
  using Chain = std::remove_cvref_t<decltype(call.chain[0])>;
  __shared__ std::uint64_t words[sizeof(Chain) / sizeof(std::uint64_t)];
  static_assert(sizeof(Chain) % sizeof(std::uint64_t) == 0 && sizeof(Chain) <= persistent_static_bytes);
  const auto* const from = reinterpret_cast<const std::uint64_t*>(&call.chain[direction()]);
  if (threadIdx.x < sizeof(Chain) / sizeof(std::uint64_t)) words[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  const Chain& chain = *reinterpret_cast<const Chain*>(words);
  auto group = [&] {
    if constexpr (policy == Policy::block) return BlockGroup(call.layout, persistent_memory);
    if constexpr (policy == Policy::cluster) return ClusterGroup(call.layout, persistent_memory, rank());
    if constexpr (policy == Policy::grid) {
      return GridGroup(call.layout, persistent_memory, rank(), group_index(), exchange);
    }
  }();
  Kernel<Cell, precision, depth, decltype(group)>(group, call, chain, direction(), row_group()).run();
}

using Entry = void (*)(const Call, GridExchange);

template <class Cell, Precision precision, int depth>
Entry entry_of_policy(const Plan& plan) {
  switch (plan.policy) {
    case Policy::block:
      return run_persistent<Cell, precision, depth, Policy::block>;
    case Policy::cluster:
      return run_persistent<Cell, precision, depth, Policy::cluster>;
    case Policy::grid:
      return run_persistent<Cell, precision, depth, Policy::grid>;
    default:
      throw std::invalid_argument(std::string("plan: expected a persistent policy, got ") +
                                  name_of(plan.policy));
  }
}

// A long chunk is a matter of large H, which only a grid has.
template <class Cell, Precision precision>
Entry entry_of_depth(const Plan& plan) {
  using Op = Operand<precision>;
  constexpr int common = depth_of(1, Cell::gates, Op::step, Op::parts);
  constexpr int large = depth_of(1 << 20, Cell::gates, Op::step, Op::parts);
  if (plan.shape.depth == common) return entry_of_policy<Cell, precision, common>(plan);
  if constexpr (large != common) {
    if (plan.shape.depth == large && plan.policy == Policy::grid) {
      return run_persistent<Cell, precision, large, Policy::grid>;
    }
  }
  throw std::invalid_argument("plan: expected the depth of its H");
}

template <class Cell>
Entry entry_of_kind(const Plan& plan, StorageKind kind) {
  if constexpr (sizeof(Arrays) == sizeof(float)) {
    if (kind == StorageKind::tf32) return entry_of_depth<Cell, Precision::tf32>(plan);
    if (kind == StorageKind::float32) return entry_of_depth<Cell, Precision::float32>(plan);
  } else if constexpr (std::is_same_v<Arrays, Half>) {
    if (kind == StorageKind::fp16) return entry_of_depth<Cell, Precision::fp16>(plan);
  } else {
    if (kind == StorageKind::bf16) return entry_of_depth<Cell, Precision::bf16>(plan);
  }
  throw std::invalid_argument(std::string("kind: expected that of the arrays, got ") + name_of(kind));
}

Entry entry_of(const Plan& plan, CellKind cell, StorageKind kind) {
  switch (cell) {
    case CellKind::rnn_tanh:
      return entry_of_kind<Rnn<Nonlinearity::tanh>>(plan, kind);
    case CellKind::rnn_relu:
      return entry_of_kind<Rnn<Nonlinearity::relu>>(plan, kind);
    case CellKind::rnn_sigmoid:
      return entry_of_kind<Rnn<Nonlinearity::sigmoid>>(plan, kind);
    case CellKind::lstm:
      return entry_of_kind<Lstm<false>>(plan, kind);
    case CellKind::lstm_coupled:
      return entry_of_kind<Lstm<false, true>>(plan, kind);
    case CellKind::gru:
      return entry_of_kind<Gru>(plan, kind);
    default:
      throw std::invalid_argument(std::string("cell: expected one with a persistent kernel, got ") +
                                  name_of(cell));
  }
}

const PersistentShape& shape_of(const Plan& plan) {
  if (plan.shape.backward != backward) throw std::invalid_argument("plan: expected one of this pass");
  return plan.shape;
}

int attribute_of_current(cudaDeviceAttr attribute) {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "query of the current device");
  return device_attribute(device, attribute);
}

// The sizes of a launch, and what it asks of the hardware.
class Launch {
 public:
  // Tells the runtime what the kernel may use, which an occupancy query must know, too.
  Launch(const Plan& plan, Entry entry, int directions, cudaStream_t stream) {
    const PersistentShape& shape = shape_of(plan);
    // All that there is, so that threads that launch other sizes do not take it away again.
    const int most = attribute_of_current(cudaDevAttrMaxSharedMemoryPerBlockOptin) - persistent_static_bytes;
    check_cuda(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               "shared memory of a kernel");
    const auto ranks = static_cast<unsigned>(shape.ranks);
    if (plan.policy == Policy::cluster) {
      if (ranks > portable_cluster) {
        check_cuda(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                   "a large cluster");
      }
      attribute_.id = cudaLaunchAttributeClusterDimension;
      attribute_.val.clusterDim.x = attribute_.val.clusterDim.z = 1;
      attribute_.val.clusterDim.y = ranks;
    } else if (plan.policy == Policy::grid) {
      attribute_.id = cudaLaunchAttributeCooperative;
      attribute_.val.cooperative = 1;
    }
    config_.gridDim = dim3(static_cast<unsigned>(plan.row_groups), ranks, static_cast<unsigned>(directions));
    config_.blockDim = dim3(static_cast<unsigned>(shape.threads()));
    config_.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes());
    config_.stream = stream;
    config_.attrs = &attribute_;
    config_.numAttrs = plan.policy == Policy::block ? 0 : 1;
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  const cudaLaunchConfig_t& config() const { return config_; }

 private:
  static constexpr unsigned portable_cluster = 8;

  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

// Of a grid: flags and buffers are zero before a launch.
GridExchange exchange_of(const Plan& plan, int directions, void* memory, cudaStream_t stream) {
  GridExchange exchange;
  if (plan.policy != Policy::grid) return exchange;
  exchange.flags = static_cast<unsigned*>(memory);
  exchange.buffers = static_cast<char*>(memory) + exchange_flag_bytes(plan, directions);
  check_cuda(cudaMemsetAsync(memory, 0, exchange_bytes(plan, directions), stream), "memset");
  return exchange;
}

}  // namespace

template <class Call>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, Call call, int directions,
                       void* exchange, cudaStream_t stream) {
  if (call.frame.steps == 0 || call.frame.batch == 0)
    throw std::invalid_argument("call: expected steps and rows");
  const Entry entry = entry_of(plan, cell, kind);
  call.layout = layout_of(shape_of(plan));
  const Launch launch(plan, entry, directions, stream);
  const GridExchange memory = exchange_of(plan, directions, exchange, stream);
  check_cuda(cudaLaunchKernelEx(&launch.config(), entry, call, memory), "launch");
}

// Kernels of clusters are empty where they were compiled for what has none.
bool has_code(Policy policy, Entry entry) {
  if (policy != Policy::cluster) return true;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, entry), "query of a kernel");
  return attributes.ptxVersion >= 90;
}

template <class Call>
bool fits_current_device(const Plan& plan, CellKind cell, StorageKind kind, int directions) try {
  const Entry entry = entry_of(plan, cell, kind);
  if (!has_code(plan.policy, entry)) return false;
  const Launch launch(plan, entry, directions, nullptr);
  const cudaLaunchConfig_t& config = launch.config();
  int count = 0;
  if (plan.policy == Policy::cluster) {
    check_cuda(cudaOccupancyMaxActiveClusters(&count, entry, &config), "query of clusters");
    return count > 0;
  }
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, entry, static_cast<int>(config.blockDim.x),
                                                           config.dynamicSmemBytes),
             "query of blocks");
  if (plan.policy == Policy::block) return count > 0;
  return count * attribute_of_current(cudaDevAttrMultiProcessorCount) >= plan.blocks(directions);
} catch (const std::runtime_error&) {  // of check_cuda: what a device refuses does not fit it
  return false;
}

template void launch_persistent(const Plan&, CellKind, StorageKind, Call, int, void*, cudaStream_t);
template bool fits_current_device<Call>(const Plan&, CellKind, StorageKind, int);

}  // namespace fastrnn::FASTRNN_TARGET
