// The networks of a build with CUDA.
#include "device_cuda.cuh"
#include "network.h"
#include "steps.h"

namespace fastrnn {

bool built_with_cuda() { return true; }

template <class T>
std::unique_ptr<Network<T>> make_cuda_network(const Config& config) {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    (void)cudaGetLastError();
    throw std::runtime_error(std::string("device='cuda': expected an NVIDIA GPU and its driver, got: ") +
                             (status == cudaSuccess ? "no device" : cudaGetErrorString(status)));
  }
  return std::make_unique<FASTRNN_TARGET::StepsNetwork<CudaDevice, T>>(config, CudaDevice());
}

void set_cuda_stream(Workspace& workspace, void* stream) {
  static_cast<FASTRNN_TARGET::StepsWorkspace<CudaDevice>&>(workspace).device.set_stream(
      static_cast<cudaStream_t>(stream));
}

template std::unique_ptr<Network<float>> make_cuda_network(const Config&);
template std::unique_ptr<Network<double>> make_cuda_network(const Config&);

}  // namespace fastrnn
