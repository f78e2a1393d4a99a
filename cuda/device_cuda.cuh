// The device of device.h on an NVIDIA GPU: a stream, memory from a pool, kernels, cuBLAS.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <type_traits>

#include "cublas.h"
#include "device.h"
#include "persistent.h"

namespace fastrnn {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // a failure of ours must not meet the next caller, unless it sticks
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("device='cuda': ") + what + " failed: " + cudaGetErrorString(status));
}

// Number of GPUs; throws where there is none.
inline int present_devices() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices > 0) return devices;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string("device='cuda': expected an NVIDIA GPU and its driver, got: ") +
                           (status == cudaSuccess ? "no device" : cudaGetErrorString(status)));
}

inline int device_attribute(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "query of a device");
  return value;
}

// For plan_layer.
inline DeviceProperties properties_of(int device) {
  const auto get = [device](cudaDeviceAttr attribute) { return device_attribute(device, attribute); };
  DeviceProperties properties;
  properties.name = "GPU";
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

// Two functions of the driver, which this library is not linked with.
class Driver {
 public:
  static const Driver& instance() {
    static const Driver driver;
    return driver;
  }

  int (*get_context)(void** context) = nullptr;
  int (*set_context)(void* context) = nullptr;

 private:
  Driver() {
    find("cuCtxGetCurrent", get_context);
    find("cuCtxSetCurrent", set_context);
  }
  template <class Function>
  static void find(const char* name, Function& function) {
    constexpr unsigned version = 12000;
    void* found = nullptr;
    check_cuda(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, nullptr),
               "search of a function of the driver");
    function = reinterpret_cast<Function>(found);
    if (!function) throw std::runtime_error(std::string("device='cuda': expected a driver with ") + name);
  }
};

// Makes a device the host thread's current one for a while. What was current before is known by its context
// and not by its number: to choose a number would make a context there if there was none.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : driver_(Driver::instance()) {
    if (driver_.get_context(&before_) != 0) before_ = nullptr;
    const cudaError_t status = cudaSetDevice(device);
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();
    throw std::runtime_error("device='cuda:" + std::to_string(device) +
                             "' cannot be used: " + cudaGetErrorString(status));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() { (void)driver_.set_context(before_); }

 private:
  const Driver& driver_;
  void* before_ = nullptr;  // null: none
};

constexpr int block_threads = 256, warp_threads = 32;

// A block, for the rows of launch_rows. Sums run in the order of the threads within a warp's tree and of the
// warps, which the number of units alone decides.
struct CudaTeam {
  int thread, threads;
  double* partial;  // (warps,), shared

  template <class M>
  __device__ M sum(M value) const {
    for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    }
    if (threads == warp_threads) return value;  // all lanes have the same: a + b is b + a
    if (thread % warp_threads == 0) partial[thread / warp_threads] = static_cast<double>(value);
    __syncthreads();
    M total(0);
    for (int warp = 0; warp < threads / warp_threads; ++warp) total += static_cast<M>(partial[warp]);
    __syncthreads();
    return total;
  }
};

// The functor stays where kernel parameters are: chains are picked by the row, and an index into a copy of
// them would send that copy through local memory.
template <class Functor>
__global__ void __launch_bounds__(block_threads, 1)
    run_elements(std::int64_t rows, std::int64_t columns, const __grid_constant__ Functor functor) {
  const std::int64_t row_step = std::int64_t{gridDim.y} * blockDim.y;
  const std::int64_t column = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  for (std::int64_t row = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    functor(row, column);
  }
}

template <class Functor>
__global__ void __launch_bounds__(block_threads, 1)
    run_rows(std::int64_t rows, const __grid_constant__ Functor functor) {
  __shared__ double partial[block_threads / warp_threads];
  const CudaTeam team{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), partial};
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) functor(row, team);
}

template <class T>
constexpr cudaDataType_t cuda_type_of = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t cuda_type_of<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t cuda_type_of<Bfloat16> = CUDA_R_16BF;
template <>
inline constexpr cudaDataType_t cuda_type_of<Half> = CUDA_R_16F;

// All but a turn expects that the device is the current one.
class CudaDevice {
 public:
  static constexpr std::int64_t block_bytes = std::int64_t{64} << 20;

  explicit CudaDevice(const CudaStream& stream = {})
      : number_(stream.device), stream_(static_cast<cudaStream_t>(stream.handle)) {}

  CudaDevice on(const CudaStream& stream) const { return CudaDevice(stream); }

  // What cuBLAS recommends for the newest GPU that is there.
  static std::size_t room_bytes() {
    static const std::size_t bytes = [] {
      int newest = 0;
      for (int device = 0; device < present_devices(); ++device) {
        newest = std::max(newest, device_attribute(device, cudaDevAttrComputeCapabilityMajor));
      }
      return std::size_t{newest >= 9 ? 32u : 4u} << 20;
    }();
    return bytes;
  }

  static int count() { return present_devices(); }
  static const DeviceProperties& properties(int device) {
    static std::mutex mutex;
    static std::map<int, DeviceProperties> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(device);
    return found != known.end() ? found->second : known.emplace(device, properties_of(device)).first->second;
  }

  int number() const { return number_; }
  cudaStream_t stream() const { return stream_; }

  void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMallocFromPoolAsync(&memory, std::max<std::size_t>(bytes, 1), pool(number_), stream_),
               "allocation");
    return memory;
  }
  void release(void* memory) noexcept {
    try {
      const CurrentDevice current(number_);
      if (cudaFreeAsync(memory, stream_) != cudaSuccess) (void)cudaGetLastError();
    } catch (const std::exception&) {  // the driver has gone, and the memory with it
    }
  }
  void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes) check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
  }
  void zero(void* to, std::size_t bytes) {
    if (bytes) check_cuda(cudaMemsetAsync(to, 0, bytes, stream_), "memset");
  }
  void wait() { check_cuda(cudaStreamSynchronize(stream_), "wait"); }

  class Turn;

 private:
  // Of memory that comes back, some stays for the next call; others in this process may want the rest.
  static cudaMemPool_t pool(int device) {
    static std::mutex mutex;
    static std::map<int, cudaMemPool_t> pools;
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto known = pools.find(device); known != pools.end()) return known->second;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t pool = nullptr;
    check_cuda(cudaMemPoolCreate(&pool, &properties), "creation of a memory pool");
    std::uint64_t threshold = std::uint64_t{64} << 20;
    const cudaError_t status = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold);
    if (status != cudaSuccess) (void)cudaMemPoolDestroy(pool);
    check_cuda(status, "creation of a memory pool");
    return pools[device] = pool;
  }

  int number_;
  cudaStream_t stream_;
};

class CudaDevice::Turn : public CudaDevice {
 public:
  explicit Turn(const CudaDevice& device) : CudaDevice(device), current_(device.number()) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    if (handle_) CublasHandles::instance().give_back(number(), handle_);
  }

  void use_room(void* memory) { room_ = memory; }

  template <class Functor>
  void launch(std::int64_t rows, std::int64_t columns, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    if (rows == 0 || columns == 0) return;
    const dim3 block(warps_for(columns) * warp_threads, block_threads / (warps_for(columns) * warp_threads));
    constexpr std::int64_t most_y = 65535;
    const dim3 grid(static_cast<unsigned>((columns + block.x - 1) / block.x),
                    static_cast<unsigned>(std::min(most_y, (rows + block.y - 1) / block.y)));
    start(grid, block, run_elements<Functor>, rows, columns, functor);
  }

  template <class Functor>
  void launch_rows(std::int64_t rows, std::int64_t units, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    if (rows == 0) return;
    constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
    const auto blocks = static_cast<unsigned>(std::min(most, rows));
    start(dim3(blocks), dim3(warps_for(units) * warp_threads), run_rows<Functor>, rows, functor);
  }

  template <class In, class Out>
  void multiply(const Product<In, Out>& p) {
    if (p.rows == 0 || p.columns == 0) return;
    if (p.depth == 0) {
      if (p.beta == 0) clear(p);
      return;
    }
    as_column_major(p, [&](const ColumnMajorProduct<In, Out>& product) { multiply(product); });
  }

  template <class T>
  bool fits(const Plan& plan, CellKind cell, StorageKind kind, int directions) {
    return FASTRNN_TARGET::persistent_fits<T>(plan, cell, kind, directions);
  }
  template <class Call>
  void run_persistent(const Plan& plan, CellKind cell, StorageKind kind, const Call& call, int directions,
                      void* exchange) {
    FASTRNN_TARGET::launch_persistent(plan, cell, kind, call, directions, exchange, stream());
  }

 private:
  // Its own status, unlike cudaGetLastError, is not that of somebody's earlier failure.
  template <class... Parameters, class... Arguments>
  void start(dim3 grid, dim3 block, void (*kernel)(Parameters...), const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream();
    check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
  }

  static unsigned warps_for(std::int64_t columns) {
    constexpr std::int64_t most = block_threads / warp_threads;
    const std::int64_t needed = (columns + warp_threads - 1) / warp_threads;
    unsigned warps = 1;  // a power of two
    while (warps < most && warps < needed) warps *= 2;
    return warps;
  }

  cublasHandle_t handle() {
    if (handle_) return handle_;
    if (!room_) throw std::logic_error("product: no room");
    // While a graph is captured, which making a handle is no part of.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "change of the capture mode");
    try {
      handle_ = CublasHandles::instance().take(number());
    } catch (...) {
      (void)cudaThreadExchangeStreamCaptureMode(&mode);
      throw;
    }
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "change of the capture mode");
    const Cublas& cublas = Cublas::instance();
    Cublas::check(cublas.set_stream(handle_, stream()), "choice of the stream");
    Cublas::check(cublas.set_workspace(handle_, room_, room_bytes()), "choice of the workspace");
    return handle_;
  }

  template <class In, class Out>
  void multiply(const ColumnMajorProduct<In, Out>& p) {
    using Scale = MathOf<Out>;
    const Scale alpha = 1, beta = p.beta;
    const auto operation = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const cublasComputeType_t compute = std::is_same_v<Scale, double>         ? CUBLAS_COMPUTE_64F
                                        : p.tf32 && std::is_same_v<In, float> ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                              : CUBLAS_COMPUTE_32F;
    const cublasStatus_t status = Cublas::instance().multiply(
        handle(), operation(p.transpose_a), operation(p.transpose_b), p.m, p.n, p.k, &alpha, p.a,
        cuda_type_of<In>, p.a_leading, p.a_step, p.b, cuda_type_of<In>, p.b_leading, p.b_step, &beta, p.c,
        cuda_type_of<Out>, p.c_leading, p.c_step, p.count, compute, CUBLAS_GEMM_DEFAULT);
    Cublas::check(status, "product");
  }

  template <class In, class Out>
  void clear(const Product<In, Out>& p) {
    for (int i = 0; i < p.count; ++i) {
      check_cuda(cudaMemset2DAsync(p.out[i], static_cast<std::size_t>(p.out_stride) * sizeof(Out), 0,
                                   static_cast<std::size_t>(p.columns) * sizeof(Out),
                                   static_cast<std::size_t>(p.rows), stream()),
                 "memset");
    }
  }

  const CurrentDevice current_;
  cublasHandle_t handle_ = nullptr;
  void* room_ = nullptr;
};

}  // namespace fastrnn
