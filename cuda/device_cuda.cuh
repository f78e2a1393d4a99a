// The device of device.h on an NVIDIA GPU: a stream, memory from a pool, kernels, cuBLAS.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>

#include "cublas.h"
#include "device.h"

namespace fastrnn {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // a failure of ours must not meet the next caller, unless it sticks
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("device='cuda': ") + what + " failed: " + cudaGetErrorString(status));
}

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

class CudaDevice {
 public:
  static constexpr std::int64_t block_bytes = std::int64_t{64} << 20;

  explicit CudaDevice(cudaStream_t stream = nullptr) : stream_(stream) {}

  CudaDevice for_workspace() const { return CudaDevice(stream_); }

  // What is queued on the old stream must have been waited for by the new one.
  void set_stream(cudaStream_t stream) {
    stream_ = stream;
    if (handle_) handle_->set_stream(stream);
  }

  void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMallocFromPoolAsync(&memory, std::max<std::size_t>(bytes, 1), pool(), stream_),
               "allocation");
    return memory;
  }
  void release(void* memory) { (void)cudaFreeAsync(memory, stream_); }
  void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes) check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
  }
  void zero(void* to, std::size_t bytes) {
    if (bytes) check_cuda(cudaMemsetAsync(to, 0, bytes, stream_), "memset");
  }
  void wait() { check_cuda(cudaStreamSynchronize(stream_), "wait"); }

  template <class Functor>
  void launch(std::int64_t rows, std::int64_t columns, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    if (rows == 0 || columns == 0) return;
    const dim3 block(warps_for(columns) * warp_threads, block_threads / (warps_for(columns) * warp_threads));
    constexpr std::int64_t most_y = 65535;
    const dim3 grid(static_cast<unsigned>((columns + block.x - 1) / block.x),
                    static_cast<unsigned>(std::min(most_y, (rows + block.y - 1) / block.y)));
    run_elements<<<grid, block, 0, stream_>>>(rows, columns, functor);
    check_cuda(cudaGetLastError(), "launch");
  }

  template <class Functor>
  void launch_rows(std::int64_t rows, std::int64_t units, const Functor& functor) {
    static_assert(std::is_trivially_copyable_v<Functor>);
    if (rows == 0) return;
    constexpr std::int64_t most = (std::int64_t{1} << 31) - 1;
    const auto blocks = static_cast<unsigned>(std::min(most, rows));
    run_rows<<<blocks, warps_for(units) * warp_threads, 0, stream_>>>(rows, functor);
    check_cuda(cudaGetLastError(), "launch");
  }

  template <class In, class Out>
  void multiply(const Product<In, Out>& p) {
    if (p.rows == 0 || p.columns == 0) return;
    if (p.depth == 0) {
      if (p.beta == Out(0)) clear(p);
      return;
    }
    as_column_major(p,
                    [&](const ColumnMajorProduct<In, Out>& product) { multiply(product, p.alpha, p.beta); });
  }

 private:
  // With room of its own, which a captured graph may keep using.
  class Handle {
   public:
    explicit Handle(cudaStream_t stream) : cublas_(Cublas::instance()) {
      check_cuda(cudaMalloc(&room_, room_bytes), "allocation");
      Cublas::check(cublas_.create(&handle_), "creation");
      set_stream(stream);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
      if (handle_) (void)cublas_.destroy(handle_);
      (void)cudaFree(room_);
    }
    void set_stream(cudaStream_t stream) {
      Cublas::check(cublas_.set_stream(handle_, stream), "stream");
      Cublas::check(cublas_.set_workspace(handle_, room_, room_bytes), "workspace");
    }
    cublasHandle_t get() const { return handle_; }

   private:
    static constexpr std::size_t room_bytes = std::size_t{32} << 20;  // what cuBLAS recommends from Hopper on
    const Cublas& cublas_;
    cublasHandle_t handle_ = nullptr;
    void* room_ = nullptr;
  };

  // Memory that comes back stays for the next call.
  static cudaMemPool_t pool() {
    static std::mutex mutex;
    static std::map<int, cudaMemPool_t> pools;  // by device
    int device = 0;
    check_cuda(cudaGetDevice(&device), "choice of the device");
    const std::lock_guard<std::mutex> lock(mutex);
    cudaMemPool_t& pool = pools[device];
    if (pool) return pool;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    check_cuda(cudaMemPoolCreate(&pool, &properties), "creation of a memory pool");
    std::uint64_t threshold = ~std::uint64_t{0};
    check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold), "memory pool");
    return pool;
  }

  static unsigned warps_for(std::int64_t columns) {
    constexpr std::int64_t most = block_threads / warp_threads;
    const std::int64_t needed = (columns + warp_threads - 1) / warp_threads;
    unsigned warps = 1;  // a power of two
    while (warps < most && warps < needed) warps *= 2;
    return warps;
  }

  template <class In, class Out>
  void multiply(const ColumnMajorProduct<In, Out>& p, Out alpha, Out beta) {
    if (!handle_) handle_ = std::make_shared<Handle>(stream_);
    constexpr bool doubles = std::is_same_v<Out, double>;
    using Scale = std::conditional_t<doubles, double, float>;
    const auto alpha_scale = static_cast<Scale>(alpha), beta_scale = static_cast<Scale>(beta);
    const auto operation = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const cublasStatus_t status = Cublas::instance().multiply(
        handle_->get(), operation(p.transpose_a), operation(p.transpose_b), p.m, p.n, p.k, &alpha_scale, p.a,
        cuda_type_of<In>, p.a_leading, p.a_step, p.b, cuda_type_of<In>, p.b_leading, p.b_step, &beta_scale,
        p.c, cuda_type_of<Out>, p.c_leading, p.c_step, p.count,
        doubles ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    Cublas::check(status, "product");
  }

  template <class In, class Out>
  void clear(const Product<In, Out>& p) {
    for (int i = 0; i < p.count; ++i) {
      check_cuda(cudaMemset2DAsync(p.out[i], static_cast<std::size_t>(p.out_stride) * sizeof(Out), 0,
                                   static_cast<std::size_t>(p.columns) * sizeof(Out),
                                   static_cast<std::size_t>(p.rows), stream_),
                 "memset");
    }
  }

  cudaStream_t stream_;
  std::shared_ptr<Handle> handle_;
};

}  // namespace fastrnn
