// The launches of persistent.h on emulated blocks.
#pragma once

#include "persistent.h"

namespace fastrnn::FASTRNN_TARGET {

// Those that tests need: a chunk of k is longer where H is beyond what they can wait for.
inline bool is_emulated(const Plan& plan) {
  const PersistentShape& shape = plan.shape;
  return shape.depth == depth_of(1, shape.gates, shape.step, shape.parts) && shape.ranks * shape.warps <= 512;
}

// Of float, Bfloat16 and Half, as launch_persistent.
template <class Call>
void emulate_persistent(const Plan& plan, CellKind cell, StorageKind kind, const Call& call, int directions);

}  // namespace fastrnn::FASTRNN_TARGET
