// runtime.h in a build with CUDA.
#include "device_cuda.cuh"
#include "gather.h"
#include "runtime.h"

namespace fastrnn {
namespace {

// A device's memory and stream, with the device as the current one.
class Queue : public CudaDevice {
 public:
  explicit Queue(const CudaStream& stream) : CudaDevice(stream), current_(stream.device) {}

 private:
  const CurrentDevice current_;
};

class Event {
 public:
  Event() { check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creation of an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { (void)cudaEventDestroy(event_); }  // once it has happened
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

cudaPointerAttributes attributes_of(const void* address) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, address), "query of an address");
  return attributes;
}

}  // namespace

int cuda_device_count() { return present_devices(); }

std::string cuda_device_name(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "query of a device");
  return properties.name;
}

int cuda_device_of(const void* address) {
  const cudaPointerAttributes attributes = attributes_of(address);
  const bool of_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return of_device ? attributes.device : -1;
}

void* cuda_allocate(const CudaStream& stream, std::size_t bytes) { return Queue(stream).allocate(bytes); }

void cuda_release(const CudaStream& stream, void* memory) { CudaDevice(stream).release(memory); }

void cuda_zero(const CudaStream& stream, void* to, std::size_t bytes) { Queue(stream).zero(to, bytes); }

// Common memory has been copied when the call returns; pinned memory is read later.
void cuda_upload(const CudaStream& stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  Queue queue(stream);
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue.stream()), "copy to the device");
  if (attributes_of(from).type != cudaMemoryTypeUnregistered) queue.wait();
}

void cuda_download(const CudaStream& stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  Queue queue(stream);
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue.stream()), "copy from the device");
  queue.wait();
}

void cuda_gather(const CudaStream& stream, void* to, const StridedArray& from) {
  CudaDevice::Turn turn{CudaDevice(stream)};
  FASTRNN_TARGET::gather(turn, to, from);
}

void cuda_wait(const CudaStream& stream) { Queue(stream).wait(); }

void cuda_wait_for(const CudaStream& stream, const CudaStream& other) {
  if (stream.device == other.device && stream.handle == other.handle) return;
  const CurrentDevice of_other(other.device);
  const Event event;
  check_cuda(cudaEventRecord(event.get(), static_cast<cudaStream_t>(other.handle)), "record of an event");
  const Queue queue(stream);
  check_cuda(cudaStreamWaitEvent(queue.stream(), event.get(), 0), "wait for an event");
}

}  // namespace fastrnn
