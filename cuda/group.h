// The blocks that work on one direction and tile of the batch, as one warp of one of them sees it. A `Group`
// is what the persistent kernels are written over:
//
//   rank, warp             of this block among the group's, of this warp in its block
//   lanes(f)               f(lane) for the lanes of this warp: a device's thread calls it for itself, the
//                          emulation for all 32. What a lane keeps between two calls is in Lanes<>
//   char* shared           memory of the block, PersistentShape::shared_bytes()
//   sync()                 all warps of the block meet
//   start()                all blocks have begun and their buffers are ready for what others write there
//   char* buffer(step)     of this block, with what is exchanged before `step`
//   publish(step)          the block has written its own pieces of its buffer(step), which the others shall
//                          get. Between the last sync() and this no warp reads buffer(step)
//   receive(step)          all pieces of buffer(step) are there
//
// Every warp calls the same of these in the same order. Nobody waits in `publish`, so what follows it up to
// `receive` overlaps with the exchange. Two buffers suffice: who publishes step s + 1 has received step s of
// all others, who had then read step s - 1, which lay where s + 1 goes.
#pragma once

#include <cstdint>

#include "fragments.h"
#include "persistent_shape.h"

namespace fastrnn::FASTRNN_TARGET {

// Calls f(byte) for the vectors of some panels in every row of a buffer, the share of one thread.
constexpr int vector_bytes = 16;

template <class F>
FASTRNN_DEVICE void each_vector(const PersistentLayout& layout, int first_panel, int panels, int thread,
                                const F& f) {
  const int of_row = panels * layout.panel_bytes / vector_bytes, all = layout.exchange_rows * of_row;
  for (int v = thread; v < all; v += layout.threads) {
    f(v / of_row * layout.row_bytes + first_panel * layout.panel_bytes + v % of_row * vector_bytes);
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
