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

#if defined(__CUDACC__)

// `exchange`: exchange_bytes(), aligned to 256. The layout of the call is set from the plan. T follows from
// the kind: float (float32, tf32), Bfloat16, Half; others throw std::invalid_argument.
// Call: PersistentForwardCall<T> or PersistentBackwardCall<T>.
template <class Call>
void launch_persistent(const Plan& plan, CellKind cell, StorageKind kind, Call call, int directions,
                       void* exchange, cudaStream_t stream);

// Whether the current device can run the plan in the pass of Call: a grid all at once, a cluster at all.
template <class Call>
bool fits_current_device(const Plan& plan, CellKind cell, StorageKind kind, int directions);

// The same in the plan's pass.
template <class T>
bool persistent_fits(const Plan& plan, CellKind cell, StorageKind kind, int directions) {
  return plan.shape.backward ? fits_current_device<PersistentBackwardCall<T>>(plan, cell, kind, directions)
                             : fits_current_device<PersistentForwardCall<T>>(plan, cell, kind, directions);
}

#endif

}  // namespace fastrnn::FASTRNN_TARGET
