// What stands for network.cu and runtime.cu in a build without CUDA.
#include <stdexcept>

#include "network.h"
#include "numbers.h"
#include "runtime.h"

namespace fastrnn {
namespace {

[[noreturn]] void throw_without_cuda() {
  throw std::runtime_error(
      "device='cuda': expected a build with FASTRNN_CUDA=ON, got one for the CPU only. Install the CUDA "
      "toolkit 12.8 or newer, with nvcc and cuBLAS, and build: pip install --no-binary fastrnn fastrnn "
      "-C cmake.define.FASTRNN_CUDA=ON");
}

}  // namespace

CudaBuild cuda_build() { return CudaBuild::none; }

template <class T>
std::unique_ptr<CudaNetwork<T>> make_cuda_network(const Config&, bool) {
  throw_without_cuda();
}

template std::unique_ptr<CudaNetwork<float>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<double>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Bfloat16>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Half>> make_cuda_network(const Config&, bool);

int cuda_device_count() { throw_without_cuda(); }
std::string cuda_device_name(int) { throw_without_cuda(); }
int cuda_device_of(const void*) { throw_without_cuda(); }
void* cuda_allocate(const CudaStream&, std::size_t) { throw_without_cuda(); }
void cuda_release(const CudaStream&, void*) {}
void cuda_zero(const CudaStream&, void*, std::size_t) { throw_without_cuda(); }
void cuda_upload(const CudaStream&, void*, const void*, std::size_t) { throw_without_cuda(); }
void cuda_download(const CudaStream&, void*, const void*, std::size_t) { throw_without_cuda(); }
void cuda_gather(const CudaStream&, void*, const StridedArray&) { throw_without_cuda(); }
void cuda_wait(const CudaStream&) { throw_without_cuda(); }
void cuda_wait_for(const CudaStream&, const CudaStream&) { throw_without_cuda(); }

}  // namespace fastrnn
