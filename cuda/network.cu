// The networks of a build with CUDA.
#include "device_cuda.cuh"
#include "network.h"
#include "steps.h"

namespace fastrnn {

CudaBuild cuda_build() { return CudaBuild::cuda; }

template <class T>
std::unique_ptr<CudaNetwork<T>> make_cuda_network(const Config& config, bool tf32) {
  (void)present_devices();
  return std::make_unique<FASTRNN_TARGET::StepsNetwork<CudaDevice, T>>(config, tf32, CudaDevice(),
                                                                       policy_choice_of_environment());
}

template std::unique_ptr<CudaNetwork<float>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<double>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Bfloat16>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Half>> make_cuda_network(const Config&, bool);

}  // namespace fastrnn
