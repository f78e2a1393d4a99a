// Launches of the persistent kernels, for the driver. Device pointers; all is queued on the stream, nothing
// waits for the host, and a CUDA graph can capture it. float32 is the type of the math and of the cell state.
#pragma once

#include "persistent_backward.h"
#include "persistent_forward.h"
#include "planner.h"

namespace fastrnn::FASTRNN_TARGET {

// In what the products of a kind are formed.
constexpr Precision precision_of(StorageKind kind) {
  switch (kind) {
    case StorageKind::bf16:
      return Precision::bf16;
    case StorageKind::fp16:
      return Precision::fp16;
    case StorageKind::tf32:
      return Precision::tf32;
    default:
      return Precision::float32;
  }
}

// Bytes of memory that a launch of the plan needs on the device besides its arrays: of a grid.
inline std::size_t exchange_bytes(const Plan& plan, std::int64_t directions) {
  if (plan.policy != Policy::grid) return 0;
  PersistentShape shape = plan.shape;
  shape.backward = true;  // the larger of the two
  const std::int64_t groups = directions * plan.row_groups;
  const std::int64_t flags = (groups * shape.ranks * 4 + 255) / 256 * 256;
  return static_cast<std::size_t>(flags + groups * 2 * shape.buffer_bytes());
}

#if defined(__CUDACC__)

// `exchange`: exchange_bytes(), aligned to 256. The layout of the call is set from the plan. T follows from
// the kind: float (float32, tf32), Bfloat16, Half; others throw std::invalid_argument.
template <class T>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, PersistentForwardCall<T> call,
                       int directions, void* exchange, cudaStream_t stream);
template <class T>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, PersistentBackwardCall<T> call,
                       int directions, void* exchange, cudaStream_t stream);

// What the current device is, for plan_layer.
DeviceProperties current_device_properties();

#endif

}  // namespace fastrnn::FASTRNN_TARGET
