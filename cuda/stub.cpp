// What stands for network.cu in a build without CUDA.
#include <stdexcept>

#include "network.h"

namespace fastrnn {
namespace {

[[noreturn]] void throw_without_cuda() {
  throw std::runtime_error(
      "device='cuda': expected a build with FASTRNN_CUDA=ON, got one for the CPU only. Install the CUDA "
      "toolkit 12 or newer, with nvcc and cuBLAS, and build: pip install --no-binary fastrnn fastrnn "
      "-C cmake.define.FASTRNN_CUDA=ON");
}

}  // namespace

bool built_with_cuda() { return false; }

template <class T>
std::unique_ptr<Network<T>> make_cuda_network(const Config&) {
  throw_without_cuda();
}

void set_cuda_stream(Workspace&, void*) { throw_without_cuda(); }

template std::unique_ptr<Network<float>> make_cuda_network(const Config&);
template std::unique_ptr<Network<double>> make_cuda_network(const Config&);

}  // namespace fastrnn
