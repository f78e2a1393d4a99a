// The persistent kernels and their launches. One kernel for each cell, kind of numbers, depth and policy; a
// build may leave out cells or kinds by splitting this file: FASTRNN_PERSISTENT_KIND picks one.
#include <stdexcept>
#include <string>
#include <type_traits>

#include "device_cuda.cuh"
#include "group_cuda.cuh"
#include "persistent.h"

namespace fastrnn::FASTRNN_TARGET {

namespace {

extern __shared__ __align__(256) char persistent_memory[];

// Which direction and tile of the batch a group of blocks has.
struct GroupIndex {
  int rank, group, direction, row_group;
  __device__ GroupIndex(const PersistentLayout& layout, int row_groups) {
    rank = static_cast<int>(blockIdx.x) % layout.ranks;
    group = static_cast<int>(blockIdx.x) / layout.ranks;
    direction = group / row_groups;
    row_group = group % row_groups;
  }
};

template <template <class, Precision, int, class, class> class Kernel, class Cell, Precision precision,
          int depth, class T, Policy policy, class Call>
__global__ void __launch_bounds__(32 * warps_at_depth(Cell::gates, Operand<precision>::parts, depth), 1)
    run_persistent(const __grid_constant__ Call call, int row_groups, GridExchange exchange) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (policy == Policy::cluster) return;  // no such hardware, and the planner knows
#endif
  const GroupIndex index(call.layout, row_groups);
  using Chain = std::remove_cvref_t<decltype(call.chain[0])>;
  __shared__ std::uint64_t words[sizeof(Chain) / sizeof(std::uint64_t)];
  static_assert(sizeof(Chain) % sizeof(std::uint64_t) == 0 && sizeof(Chain) <= persistent_static_bytes);
  const auto* const from = reinterpret_cast<const std::uint64_t*>(&call.chain[index.direction]);
  if (threadIdx.x < sizeof(Chain) / sizeof(std::uint64_t)) words[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  const Chain& chain = *reinterpret_cast<const Chain*>(words);
  auto group = [&] {
    if constexpr (policy == Policy::block) return BlockGroup(call.layout, persistent_memory);
    if constexpr (policy == Policy::cluster) return ClusterGroup(call.layout, persistent_memory, index.rank);
    if constexpr (policy == Policy::grid) {
      return GridGroup(call.layout, persistent_memory, index.rank, index.group, exchange);
    }
  }();
  Kernel<Cell, precision, depth, T, decltype(group)>(group, call, chain, index.direction, index.row_group)
      .run();
}

struct Launch {
  const Plan& plan;
  std::int64_t shared_bytes;
  int directions;
  void* exchange;
  cudaStream_t stream;
};

// Blocks of a group are neighbours in the launch, as the hardware makes clusters of them.
template <class Call>
void launch(const Launch& launch, void (*kernel)(const Call, int, GridExchange), const Call& call) {
  const Plan& plan = launch.plan;
  const std::int64_t bytes = launch.shared_bytes;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
      "shared memory of a kernel");
  cudaLaunchAttribute attribute{};
  if (plan.policy == Policy::cluster) {
    if (plan.shape.ranks > 8) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                 "a large cluster");
    }
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(plan.shape.ranks);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (plan.policy == Policy::grid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  const int groups = launch.directions * plan.row_groups;
  GridExchange exchange;
  if (plan.policy == Policy::grid) {
    const std::size_t flags = static_cast<std::size_t>((groups * plan.shape.ranks * 4 + 255) / 256 * 256);
    exchange.flags = static_cast<unsigned*>(launch.exchange);
    exchange.buffers = static_cast<char*>(launch.exchange) + flags;
    check_cuda(cudaMemsetAsync(exchange.flags, 0, flags, launch.stream), "memset");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(groups * plan.shape.ranks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = plan.policy == Policy::block ? 0 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, call, plan.row_groups, exchange), "launch");
}

template <template <class, Precision, int, class, class> class Kernel, class Cell, Precision precision,
          int depth, class T, class Call>
void launch_policy(const Launch& args, const Call& call) {
  switch (args.plan.policy) {
    case Policy::block:
      return launch(args, run_persistent<Kernel, Cell, precision, depth, T, Policy::block, Call>, call);
    case Policy::cluster:
      return launch(args, run_persistent<Kernel, Cell, precision, depth, T, Policy::cluster, Call>, call);
    default:
      return launch(args, run_persistent<Kernel, Cell, precision, depth, T, Policy::grid, Call>, call);
  }
}

// A long chunk is a matter of large H, which only a grid has.
template <template <class, Precision, int, class, class> class Kernel, class Cell, Precision precision,
          class T, class Call>
void launch_depth(const Launch& args, const Call& call) {
  using Op = Operand<precision>;
  constexpr int common = depth_of(1, Cell::gates, Op::step, Op::parts);
  constexpr int large = depth_of(1 << 20, Cell::gates, Op::step, Op::parts);
  if (args.plan.shape.depth == common) {
    return launch_policy<Kernel, Cell, precision, common, T>(args, call);
  }
  if constexpr (large != common) {
    if (args.plan.shape.depth == large && args.plan.policy == Policy::grid) {
      return launch(args, run_persistent<Kernel, Cell, precision, large, T, Policy::grid, Call>, call);
    }
  }
  throw std::invalid_argument("plan: expected the depth of its H");
}

template <template <class, Precision, int, class, class> class Kernel, class Cell, class T, class Call>
void launch_kind(const Launch& args, StorageKind kind, const Call& call) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (kind == StorageKind::tf32) return launch_depth<Kernel, Cell, Precision::tf32, T>(args, call);
    if (kind == StorageKind::float32) return launch_depth<Kernel, Cell, Precision::float32, T>(args, call);
  } else if constexpr (std::is_same_v<T, Half>) {
    if (kind == StorageKind::fp16) return launch_depth<Kernel, Cell, Precision::fp16, T>(args, call);
  } else {
    if (kind == StorageKind::bf16) return launch_depth<Kernel, Cell, Precision::bf16, T>(args, call);
  }
  throw std::invalid_argument(std::string("kind: expected that of the arrays, got ") + name_of(kind));
}

template <template <class, Precision, int, class, class> class Kernel, class T, class Call>
void launch_cell(const Plan& plan, CellKind cell, StorageKind kind, Call& call, int directions,
                 void* exchange, cudaStream_t stream, bool backward) {
  if (plan.policy == Policy::steps) throw std::invalid_argument("plan: expected a persistent policy");
  if (call.frame.steps == 0 || call.frame.batch == 0)
    throw std::invalid_argument("call: expected steps and rows");
  PersistentShape shape = plan.shape;
  shape.backward = backward;
  call.layout = layout_of(shape);
  const Launch args{plan, shape.shared_bytes(), directions, exchange, stream};
  switch (cell) {
    case CellKind::rnn_tanh:
      return launch_kind<Kernel, Rnn<Nonlinearity::tanh>, T>(args, kind, call);
#if !defined(FASTRNN_PERSISTENT_SOME)
    case CellKind::rnn_relu:
      return launch_kind<Kernel, Rnn<Nonlinearity::relu>, T>(args, kind, call);
    case CellKind::rnn_sigmoid:
      return launch_kind<Kernel, Rnn<Nonlinearity::sigmoid>, T>(args, kind, call);
    case CellKind::lstm_coupled:
      return launch_kind<Kernel, Lstm<false, true>, T>(args, kind, call);
#endif
    case CellKind::lstm:
      return launch_kind<Kernel, Lstm<false>, T>(args, kind, call);
    case CellKind::gru:
      return launch_kind<Kernel, Gru, T>(args, kind, call);
    default:
      throw std::invalid_argument(std::string("cell: expected one with a persistent kernel, got ") +
                                  name_of(cell));
  }
}

}  // namespace

template <class T>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, PersistentForwardCall<T> call,
                       int directions, void* exchange, cudaStream_t stream) {
  launch_cell<PersistentForward, T>(plan, cell, kind, call, directions, exchange, stream, false);
}
template <class T>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, PersistentBackwardCall<T> call,
                       int directions, void* exchange, cudaStream_t stream) {
  launch_cell<PersistentBackward, T>(plan, cell, kind, call, directions, exchange, stream, true);
}

#if !defined(FASTRNN_PERSISTENT_KIND) || FASTRNN_PERSISTENT_KIND == 0
DeviceProperties current_device_properties() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "query");
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "query");
    return value;
  };
  DeviceProperties properties;
  properties.name = "current";
  properties.major = get(cudaDevAttrComputeCapabilityMajor);
  properties.minor = get(cudaDevAttrComputeCapabilityMinor);
  properties.multiprocessors = get(cudaDevAttrMultiProcessorCount);
  properties.shared_per_block = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties.shared_per_multiprocessor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties.registers_per_multiprocessor = get(cudaDevAttrMaxRegistersPerMultiprocessor);
  // 16 needs permission and whole processing clusters, which data center chips alone have.
  const bool has_clusters = properties.major >= 9 && get(cudaDevAttrClusterLaunch);
  properties.largest_cluster = !has_clusters ? 1 : properties.major < 12 ? 16 : 8;
  properties.l2_bytes = get(cudaDevAttrL2CacheSize);
  properties.has_cooperative_launch = get(cudaDevAttrCooperativeLaunch);
  return properties;
}
#endif

#define FASTRNN_LAUNCHES(T)                                                                                  \
  template void launch_persistent(const Plan&, CellKind, StorageKind, PersistentForwardCall<T>, int, void*,  \
                                  cudaStream_t);                                                             \
  template void launch_persistent(const Plan&, CellKind, StorageKind, PersistentBackwardCall<T>, int, void*, \
                                  cudaStream_t);

#if !defined(FASTRNN_PERSISTENT_KIND) || FASTRNN_PERSISTENT_KIND == 0
FASTRNN_LAUNCHES(float)
#endif
#if !defined(FASTRNN_PERSISTENT_KIND) || FASTRNN_PERSISTENT_KIND == 1
FASTRNN_LAUNCHES(Bfloat16)
#endif
#if !defined(FASTRNN_PERSISTENT_KIND) || FASTRNN_PERSISTENT_KIND == 2
FASTRNN_LAUNCHES(Half)
#endif

}  // namespace fastrnn::FASTRNN_TARGET
