// What one step's exchange costs on this GPU, in microseconds: the numbers that the cost model of
// cuda/planner.cpp is made of. Each block of a group owns a piece of a buffer, and in every step all get all
// pieces, as the state of a recurrent layer does; nothing is computed. Stands alone:
//
//   nvcc -std=c++20 -O3 -arch=sm_90 bench/exchange.cu -o exchange && ./exchange > exchange.json
//
// JSON on standard output, a table on standard error. The time of a step is the slope between a short and a
// long launch, so that launching is not in it. Every block checks every piece that it got: `errors` must be
// 0.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int short_steps = 500, long_steps = 4500, rounds = 7;
constexpr int most_bytes = 256 * 1024;             // of a buffer; there are two
constexpr unsigned long long patience = 1u << 28;  // cycles that a block waits before it gives up

struct Call {
  int steps, ranks, vectors;  // vectors of 16 bytes: of the whole buffer
  uint4* global;              // two buffers, for grids
  unsigned* flags;            // of each block
  unsigned* errors;
};

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// ---- kernels

__device__ unsigned stamp(int step, int vector) {
  return static_cast<unsigned>(step) * 65599u + static_cast<unsigned>(vector);
}

__device__ uint4 piece(int step, int vector) {
  const unsigned value = stamp(step, vector);
  return {value, value + 1, value + 2, value + 3};
}

struct Near {
  __device__ static uint4 load(const uint4* from) { return *from; }
};

// Reads all, as a product would, and counts what is not of this step.
template <class Memory>
__device__ void read_all(const uint4* buffer, const Call& call, int step) {
  constexpr int at_once = 4;  // on their way, as the kernels have it
  const int stride = static_cast<int>(blockDim.x);
  unsigned wrong = 0;
  for (int first = static_cast<int>(threadIdx.x); first < call.vectors; first += at_once * stride) {
    uint4 v[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {  // past the end, the first again
      v[k] = Memory::load(buffer + (first + k * stride < call.vectors ? first + k * stride : first));
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int i = first + k * stride < call.vectors ? first + k * stride : first;
      const unsigned value = stamp(step, i);
      wrong |= (v[k].x ^ value) | (v[k].y ^ (value + 1)) | (v[k].z ^ (value + 2)) | (v[k].w ^ (value + 3));
    }
  }
  if (wrong) atomicAdd(call.errors, 1u);
}

// The vectors that one block of a group owns: f(its index).
template <class F>
__device__ void own_vectors(const Call& call, int rank, const F& f) {
  const int each = (call.vectors + call.ranks - 1) / call.ranks;
  const int end = min((rank + 1) * each, call.vectors);
  for (int i = rank * each + static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x)) f(i);
}

extern __shared__ __align__(128) uint4 memory[];

__global__ void block_kernel(const __grid_constant__ Call call) {
  for (int step = 0; step < call.steps; ++step) {
    uint4* const buffer = memory + (step & 1) * call.vectors;
    own_vectors(call, 0, [&](int i) { buffer[i] = piece(step, i); });
    __syncthreads();
    read_all<Near>(buffer, call, step);
  }
}

[[maybe_unused]] __device__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same place in another block of the cluster.
[[maybe_unused]] __device__ std::uint32_t in_block(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

[[maybe_unused]] __device__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
[[maybe_unused]] __device__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Pieces by plain stores into all blocks' shared memory; the cluster's hardware barrier. With one buffer, all
// have read it before it is written again.
template <int buffers>
__global__ void cluster_barrier_kernel(const __grid_constant__ Call call) {
#if __CUDA_ARCH__ >= 900
  const int rank = static_cast<int>(blockIdx.x) % call.ranks;
  cluster_arrive();
  cluster_wait();  // all blocks run
  for (int step = 0; step < call.steps; ++step) {
    uint4* const buffer = memory + (step & (buffers - 1)) * call.vectors;
    if (buffers == 1) {
      cluster_arrive();
      cluster_wait();
    }
    own_vectors(call, rank, [&](int i) {
      const uint4 v = piece(step, i);
      for (int to = 0; to < call.ranks; ++to) {
        asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(
                         in_block(shared_address(buffer + i), (rank + to) % call.ranks)),
                     "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                     : "memory");
      }
    });
    cluster_arrive();
    cluster_wait();
    read_all<Near>(buffer, call, step);
  }
  cluster_arrive();
  cluster_wait();  // none leaves while another writes into it
#endif
}

// Waits until the barrier's phase of this parity is over; false: it did not end.
[[maybe_unused]] __device__ bool await(std::uint32_t barrier, unsigned parity) {
  const long long start = clock64();
  while (true) {
    unsigned done;
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, "
        "1, 0, "
        "p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (done) return true;
    if (clock64() - start > static_cast<long long>(patience)) return false;
  }
}

// Pieces by stores that count their bytes on a barrier in the receiving block; nobody waits for all blocks,
// but each for its bytes.
__global__ void cluster_mbarrier_kernel(const __grid_constant__ Call call) {
#if __CUDA_ARCH__ >= 900
  __shared__ __align__(8) std::uint64_t barriers[2];  // one for each buffer
  const int rank = static_cast<int>(blockIdx.x) % call.ranks;
  if (threadIdx.x == 0) {
    for (auto& barrier : barriers) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_arrive();
  cluster_wait();
  for (int step = 0; step < call.steps; ++step) {
    uint4* const buffer = memory + (step & 1) * call.vectors;
    const std::uint32_t barrier = shared_address(&barriers[step & 1]);
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(call.vectors * 16)
                   : "memory");
    }
    own_vectors(call, rank, [&](int i) {
      const uint4 v = piece(step, i);
      for (int turn = 0; turn < call.ranks; ++turn) {
        const int to = (rank + turn) % call.ranks;
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::
                "r"(in_block(shared_address(buffer + i), to)),
            "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(in_block(barrier, to))
            : "memory");
      }
    });
    if (__syncthreads_or(!await(barrier, static_cast<unsigned>(step >> 1) & 1))) {
      if (threadIdx.x == 0) atomicAdd(call.errors, 1u);
      break;
    }
    read_all<Near>(buffer, call, step);
    // Before the block's next pieces go out, it must have read this step's: they let others overwrite it.
    __syncthreads();
  }
  cluster_arrive();
  cluster_wait();
#endif
}

// From L2, and not before what is ordered before it.
struct Far {
  __device__ static uint4 load(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
  }
};

__device__ bool await_flag(const unsigned* flag, unsigned step) {
  const long long start = clock64();
  while (true) {
    unsigned seen;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    if (seen >= step) return true;
    if (clock64() - start > static_cast<long long>(patience)) return false;
  }
}

// Pieces to L2, and a flag of each block there.
__global__ void grid_flags_kernel(const __grid_constant__ Call call) {
  const int rank = static_cast<int>(blockIdx.x);
  for (int step = 0; step < call.steps; ++step) {
    uint4* const exchange = call.global + (step & 1) * call.vectors;
    own_vectors(call, rank, [&](int i) { __stcg(exchange + i, piece(step, i)); });
    __syncthreads();
    const auto number = static_cast<unsigned>(step + 1);
    if (threadIdx.x == 0) {
      __threadfence();
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(call.flags + rank), "r"(number) : "memory");
    }
    bool arrived = true;
    for (int from = static_cast<int>(threadIdx.x); from < call.ranks; from += static_cast<int>(blockDim.x)) {
      arrived = arrived && await_flag(call.flags + from, number);
    }
    if (__syncthreads_or(!arrived)) {
      if (threadIdx.x == 0) atomicAdd(call.errors, 1u);
      return;
    }
    read_all<Far>(exchange, call, step);
    __syncthreads();
  }
}

// The same with the runtime's barrier of all blocks.
__global__ void grid_sync_kernel(const __grid_constant__ Call call) {
  const auto grid = cooperative_groups::this_grid();
  for (int step = 0; step < call.steps; ++step) {
    uint4* const exchange = call.global + (step & 1) * call.vectors;
    own_vectors(call, static_cast<int>(blockIdx.x), [&](int i) { __stcg(exchange + i, piece(step, i)); });
    grid.sync();
    read_all<Far>(exchange, call, step);
    __syncthreads();
  }
}

// What a policy of launches pays: one of these depends on the one before it.
__global__ void empty_kernel(unsigned* value) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *value += 1;
}

// ---- timing

class Stopwatch {
 public:
  Stopwatch() {
    check(cudaEventCreate(&start_), "event");
    check(cudaEventCreate(&end_), "event");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  template <class F>
  double microseconds(const F& queue, cudaStream_t stream) {
    check(cudaEventRecord(start_, stream), "event");
    queue();
    check(cudaEventRecord(end_, stream), "event");
    check(cudaEventSynchronize(end_), "kernel");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, end_), "event");
    return 1000.0 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

struct Spread {
  double low, median, high;
};

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values.front(), values[values.size() / 2], values.back()};
}

enum class Launching { plain, cluster, cooperative };

struct Policy {
  const char* name;
  const char* variant;
  void (*kernel)(Call);
  Launching launching;
  bool through_l2;
};

struct Trial {
  const Policy& policy;
  int ranks, groups, threads, bytes;
};

class Bench {
 public:
  Bench() {
    check(cudaGetDevice(&device_), "device");
    check(cudaGetDeviceProperties(&properties_, device_), "device");
    check(cudaDeviceGetAttribute(&clock_khz_, cudaDevAttrClockRate, device_), "device");
    check(cudaStreamCreate(&stream_), "stream");
    check(cudaMalloc(&global_, 2 * most_bytes), "memory");
    check(cudaMalloc(&flags_, 1024 * sizeof(unsigned)), "memory");
    check(cudaMalloc(&errors_, sizeof(unsigned)), "memory");
    check(cudaMemset(errors_, 0, sizeof(unsigned)), "memory");
  }

  int multiprocessors() const { return properties_.multiProcessorCount; }
  bool has_clusters() const { return properties_.major >= 9; }

  // Brings an idle GPU to its clock.
  void heat(const Policy& policy) {
    for (double spent = 0; spent < 5e5;) spent += run({policy, 1, multiprocessors(), 512, 1024}, long_steps);
  }

  // One group of `ranks` blocks, and as many as run at once: they share the ways between multiprocessors.
  void measure(const Policy& policy, int ranks, int threads, int bytes) {
    check(cudaFuncSetAttribute(policy.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_bytes(policy, bytes)),
          "shared memory");
    const int most = most_groups(policy, ranks, threads, bytes);
    if (most == 0) {
      std::fprintf(stderr, "%-8s %-9s %4d blocks: too many at once\n", policy.name, policy.variant, ranks);
      return;
    }
    measure({policy, ranks, 1, threads, bytes});
    if (most > 1 && policy.launching != Launching::cooperative) {
      measure({policy, ranks, most, threads, bytes});
    }
  }

  void measure_launches() {
    constexpr int launches = 1000;
    const auto queue = [&] {
      for (int i = 0; i < launches; ++i) empty_kernel<<<1, 32, 0, stream_>>>(flags_);
    };
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    queue();
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&replay, graph, 0), "graph");
    const auto queue_graph = [&] { check(cudaGraphLaunch(replay, stream_), "graph"); };
    std::vector<double> launched, replayed;
    for (int round = 0; round <= rounds; ++round) {  // the first warms up
      const double a = watch_.microseconds(queue, stream_) / launches;
      const double b = watch_.microseconds(queue_graph, stream_) / launches;
      if (round == 0) continue;
      launched.push_back(a);
      replayed.push_back(b);
    }
    check(cudaGetLastError(), "launch");
    const Policy launch{"steps", "launch", nullptr, Launching::plain, false};
    const Policy node{"steps", "graph", nullptr, Launching::plain, false};
    add({launch, 1, 1, 32, 0}, spread_of(launched));
    add({node, 1, 1, 32, 0}, spread_of(replayed));
    check(cudaGraphExecDestroy(replay), "graph");
    check(cudaGraphDestroy(graph), "graph");
  }

  // Prints everything; the process's exit code.
  int finish() {
    unsigned errors = 0;
    check(cudaMemcpy(&errors, errors_, sizeof errors, cudaMemcpyDeviceToHost), "errors");
    std::printf(
        "{\"device\": \"%s\", \"multiprocessors\": %d, \"clock_mhz\": %d, \"errors\": %u, \"results\": [",
        properties_.name, multiprocessors(), clock_khz_ / 1000, errors);
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      std::printf("%s\n  %s", i ? "," : "", lines_[i].c_str());
    }
    std::printf("\n]}\n");
    if (errors) std::fprintf(stderr, "%u pieces were wrong or late\n", errors);
    return errors ? 1 : 0;
  }

 private:
  static int shared_bytes(const Policy& policy, int bytes) { return policy.through_l2 ? 0 : 2 * bytes; }

  static cudaLaunchConfig_t configuration(const Trial& trial, cudaStream_t stream,
                                          cudaLaunchAttribute* attribute) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(trial.ranks * trial.groups));
    config.blockDim = dim3(static_cast<unsigned>(trial.threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes(trial.policy, trial.bytes));
    config.stream = stream;
    if (trial.policy.launching == Launching::cluster) {
      attribute->id = cudaLaunchAttributeClusterDimension;
      attribute->val.clusterDim.x = static_cast<unsigned>(trial.ranks);
      attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    } else if (trial.policy.launching == Launching::cooperative) {
      attribute->id = cudaLaunchAttributeCooperative;
      attribute->val.cooperative = 1;
    }
    config.attrs = attribute;
    config.numAttrs = trial.policy.launching == Launching::plain ? 0 : 1;
    return config;
  }

  // How many groups have a multiprocessor for each of their blocks; 0: not even one.
  int most_groups(const Policy& policy, int ranks, int threads, int bytes) {
    const int by_count = multiprocessors() / ranks;
    if (policy.launching != Launching::cluster) return by_count;
    if (ranks > 8) {
      check(cudaFuncSetAttribute(policy.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            "cluster");
    }
    cudaLaunchAttribute attribute{};
    const auto config = configuration({policy, ranks, 1, threads, bytes}, stream_, &attribute);
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, policy.kernel, &config) != cudaSuccess) {
      (void)cudaGetLastError();
      return 0;
    }
    return std::min(clusters, by_count);
  }

  void measure(const Trial& trial) {
    run(trial, long_steps);  // warms up
    std::vector<double> slopes;
    for (int round = 0; round < rounds; ++round) {
      const double few = run(trial, short_steps);
      const double many = run(trial, long_steps);
      slopes.push_back((many - few) / (long_steps - short_steps));
    }
    add(trial, spread_of(slopes));
  }

  double run(const Trial& trial, int steps) {
    check(cudaMemsetAsync(flags_, 0, 1024 * sizeof(unsigned), stream_), "flags");
    const Call call{steps, trial.ranks, trial.bytes / 16, global_, flags_, errors_};
    cudaLaunchAttribute attribute{};
    const auto config = configuration(trial, stream_, &attribute);
    return watch_.microseconds(
        [&] { check(cudaLaunchKernelEx(&config, trial.policy.kernel, call), "launch"); }, stream_);
  }

  void add(const Trial& trial, const Spread& spread) {
    char line[256];
    std::snprintf(
        line, sizeof line,
        "{\"policy\": \"%s\", \"variant\": \"%s\", \"blocks\": %d, \"groups\": %d, \"threads\": %d, "
        "\"bytes\": %d, \"microseconds\": %.4f, \"low\": %.4f, \"high\": %.4f}",
        trial.policy.name, trial.policy.variant, trial.ranks, trial.groups, trial.threads, trial.bytes,
        spread.median, spread.low, spread.high);
    lines_.emplace_back(line);
    std::fprintf(stderr, "%-8s %-9s %3d x %3d blocks %4d threads %6d bytes %8.3f us (%.3f to %.3f)\n",
                 trial.policy.name, trial.policy.variant, trial.groups, trial.ranks, trial.threads,
                 trial.bytes, spread.median, spread.low, spread.high);
  }

  int device_ = 0, clock_khz_ = 0;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  uint4* global_ = nullptr;
  unsigned *flags_ = nullptr, *errors_ = nullptr;
  Stopwatch watch_;
  std::vector<std::string> lines_;
};

}  // namespace

int main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no GPU\n");
    return 3;
  }
  Bench bench;
  const Policy block{"block", "barrier", block_kernel, Launching::plain, false};
  const Policy barrier{"cluster", "barrier", cluster_barrier_kernel<2>, Launching::cluster, false};
  const Policy one{"cluster", "one", cluster_barrier_kernel<1>, Launching::cluster, false};
  const Policy mbarrier{"cluster", "mbarrier", cluster_mbarrier_kernel, Launching::cluster, false};
  const Policy flags{"grid", "flags", grid_flags_kernel, Launching::cooperative, true};
  const Policy sync{"grid", "sync", grid_sync_kernel, Launching::cooperative, true};
  bench.heat(block);
  // A state of 8 rows: 64 units of 2 bytes are 1 KiB, 1024 units of 4 bytes 32 KiB. The largest shows how
  // fast L2 is read by all.
  for (int threads : {128, 256, 512}) {
    for (int bytes : {1024, 4096, 16384}) bench.measure(block, 1, threads, bytes);
  }
  if (bench.has_clusters()) {
    for (int ranks : {2, 4, 8, 16}) {
      for (int bytes : {1024, 4096, 16384}) {
        bench.measure(barrier, ranks, 256, bytes);
        bench.measure(one, ranks, 256, bytes);
        bench.measure(mbarrier, ranks, 256, bytes);
      }
    }
  }
  std::vector<int> grids = {8, 16, 32, 64, 96, bench.multiprocessors()};
  for (int ranks : grids) {
    for (int bytes : {4096, 16384, 65536, most_bytes}) {
      bench.measure(flags, ranks, 256, bytes);
      bench.measure(sync, ranks, 256, bytes);
    }
  }
  bench.measure_launches();
  return bench.finish();
}
