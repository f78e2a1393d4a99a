// Networks on an NVIDIA GPU. In a build without CUDA all of this is there and throws; in an emulated one, for
// tests, device memory is host memory and streams are null.
#pragma once

#include <string>
#include <vector>

#include "rnn.h"

namespace fastrnn {

struct Bfloat16;  // numbers.h
struct Half;

enum class CudaBuild : int { none, emulated, cuda };
// What this build is. Says nothing of the machine.
CudaBuild cuda_build();

// Where a call's work is queued: a device's number and a cudaStream_t of it; null: its default stream.
struct CudaStream {
  int device = 0;
  void* handle = nullptr;
};

// Memory of a device that the caller owns, aligned to 256 bytes.
struct DeviceBlock {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// T is the type of all arrays: float, double, Bfloat16, Half; the math and the cell state of 16-bit types are
// in float. What the contract of Network says of packed weights, scratch and guard is not for GPUs: calls are
// given the parameters, and steps.h says how arrays must lie. `prepare` comes before each call.
template <class T>
class CudaNetwork : public Network<T> {
 public:
  // Of memory for a call of these sizes and options; pointers count only as null or not, `tape` and
  // `parameters` not at all.
  virtual std::size_t tape_bytes(const Forward<T>& call) const = 0;
  virtual std::size_t workspace_bytes(const Forward<T>& call, bool keep) const = 0;
  virtual std::size_t workspace_bytes(const Tape<T>& tape, const Backward<T>& call) const = 0;
  // What the next call with these works in. A tape's memory must stay until backward has used it, which is
  // given the same device.
  virtual void prepare(Workspace& workspace, const CudaStream& stream, const DeviceBlock& memory) const = 0;
  virtual void prepare(Tape<T>& tape, const DeviceBlock& memory) const = 0;
  // How each layer would run on a device, for people.
  virtual std::vector<std::string> plans(int device, const Forward<T>& call, bool keep) const = 0;
};

// `tf32`: products of float32 may use the tensor cores' numbers of 10 bits; of other types it has no effect.
template <class T>
std::unique_ptr<CudaNetwork<T>> make_cuda_network(const Config& config, bool tf32);

}  // namespace fastrnn
