// What stands for network.cu and runtime.cu in an emulated build: memory of the host, and no streams.
#include "device_emulated.h"
#include "gather.h"
#include "network.h"
#include "runtime.h"
#include "steps.h"

namespace fastrnn {

CudaBuild cuda_build() { return CudaBuild::emulated; }

template <class T>
std::unique_ptr<CudaNetwork<T>> make_cuda_network(const Config& config, bool tf32) {
  return std::make_unique<FASTRNN_TARGET::StepsNetwork<EmulatedDevice, T>>(config, tf32, EmulatedDevice(),
                                                                           policy_choice_of_environment());
}

template std::unique_ptr<CudaNetwork<float>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<double>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Bfloat16>> make_cuda_network(const Config&, bool);
template std::unique_ptr<CudaNetwork<Half>> make_cuda_network(const Config&, bool);

namespace {

EmulatedDevice device_of(const CudaStream& stream) { return EmulatedDevice().on(stream); }

}  // namespace

int cuda_device_count() { return 1; }
std::string cuda_device_name(int device) {
  (void)device_of({device, nullptr});
  return "emulated";
}
int cuda_device_of(const void*) { return 0; }

void* cuda_allocate(const CudaStream& stream, std::size_t bytes) { return device_of(stream).allocate(bytes); }
void cuda_release(const CudaStream&, void* memory) { EmulatedDevice().release(memory); }
void cuda_zero(const CudaStream& stream, void* to, std::size_t bytes) { device_of(stream).zero(to, bytes); }
void cuda_upload(const CudaStream& stream, void* to, const void* from, std::size_t bytes) {
  device_of(stream).copy(to, from, bytes);
}
void cuda_download(const CudaStream& stream, void* to, const void* from, std::size_t bytes) {
  device_of(stream).copy(to, from, bytes);
}
void cuda_gather(const CudaStream& stream, void* to, const StridedArray& from) {
  EmulatedDevice::Turn turn(device_of(stream));
  FASTRNN_TARGET::gather(turn, to, from);
}
void cuda_wait(const CudaStream& stream) { device_of(stream).wait(); }
void cuda_wait_for(const CudaStream& stream, const CudaStream& other) {
  (void)device_of(stream);
  (void)device_of(other);
}

}  // namespace fastrnn
