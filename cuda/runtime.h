// Memory and streams of NVIDIA GPUs, as the binding needs them. In a build without CUDA all of this throws.
// Everything but `download` and `wait` queues work and returns.
#pragma once

#include "network.h"

namespace fastrnn {

// An array of at most four axes, of elements of 1, 2, 4 or 8 bytes, aligned to their size. Strides in bytes,
// of any sign; axes that it has not are of size 1 and come first.
struct StridedArray {
  const void* data = nullptr;
  std::int64_t size[4] = {1, 1, 1, 1}, stride[4] = {0, 0, 0, 0};
  int element_bytes = 1;
};

// At least 1; throws where there is no GPU or no driver.
int cuda_device_count();
std::string cuda_device_name(int device);
// The device whose memory an address is of, or -1: memory of the host.
int cuda_device_of(const void* address);

void* cuda_allocate(const CudaStream& stream, std::size_t bytes);  // aligned to 256 bytes
void cuda_release(const CudaStream& stream, void* memory);  // once what is queued has used it; never throws
void cuda_zero(const CudaStream& stream, void* to, std::size_t bytes);
// Memory of the host may be used again at once.
void cuda_upload(const CudaStream& stream, void* to, const void* from, std::size_t bytes);
void cuda_download(const CudaStream& stream, void* to, const void* from, std::size_t bytes);
// The elements in their order, without gaps; both on the device.
void cuda_gather(const CudaStream& stream, void* to, const StridedArray& from);
void cuda_wait(const CudaStream& stream);
// What is queued on `stream` from now on starts after what is queued on `other` by now.
void cuda_wait_for(const CudaStream& stream, const CudaStream& other);

}  // namespace fastrnn
