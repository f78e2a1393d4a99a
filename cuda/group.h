// The blocks that work on one direction and tile of the batch, as one warp of one of them sees it. A `Group`
// is what the persistent kernels are written over:
//
//   rank, warp             of this block among the group's, of this warp in its block
//   lanes(f)               f(lane) for the lanes of this warp: a device's thread calls it for itself, the
//                          emulation for all 32. What a lane keeps between two calls is in Lanes<>
//   char* shared           memory of the block, PersistentShape::shared_bytes()
//   sync()                 all warps of the block meet
//   start()                all blocks have begun and their buffers are ready for what others write there
//   char* buffer(step)     with what is exchanged before `step`: in the block's memory, or in that of a grid
//   words(fragment, lane)  of a right fragment in a buffer: what right_of() takes
//   is_far                 whether such a read takes long, as from L2
//   publish(step)          the block has written its own pieces of its buffer(step), which the others shall
//                          get. Between the last sync() and this no warp reads those pieces
//   receive(step)          all pieces of buffer(step) are there
//   release(step)          the block has read all that it needs of buffer(step), and goes on to publish the
//                          next one. Comes after a sync()
//
// Every warp calls the same of these in the same order. With two buffers nobody waits in `publish`, so what
// follows it up to `receive` overlaps with the exchange. Two suffice: who writes pieces of step s + 1 has
// received step s of all others, who had then read step s - 1, which lay where s + 1 goes. With one, in a
// cluster, `publish` waits until all others have released it.
#pragma once

#include <cstdint>

#include "fragments.h"
#include "persistent_shape.h"

namespace fastrnn::FASTRNN_TARGET {

// f(byte) for vectors of the piece of a rank, where `first` is less than `stride`.
template <class F>
FASTRNN_DEVICE void each_vector(const PersistentLayout& layout, int rank, int first, int stride, const F& f) {
  const int begin = rank * layout.panels * layout.panel_bytes;
  const int own = layout.panels_of(rank) * layout.panel_bytes;  // of a row
  for (int v = first; v < layout.piece; v += stride) {
    const int row = layout.by_piece_row.quotient(v);
    const int byte = (v - row * layout.piece_row) * vector_bytes;
    if (byte < own) f(row * layout.row_bytes + begin + byte);
  }
}

// f(to, first, stride) for the ranks that a warp of a cluster sends to, and its share of the vectors. Each
// rank begins with another, lest all write to the first one at once.
template <class F>
FASTRNN_DEVICE void each_receiver(const PersistentLayout& layout, int rank, int warp, int lane, const F& f) {
  const int place = layout.by_senders.quotient(warp), sender = warp - place * layout.senders;
  for (int i = 1 + place; i < layout.ranks; i += layout.served) {
    const int to = rank + i < layout.ranks ? rank + i : rank + i - layout.ranks;
    f(to, sender * warp_lanes + lane, layout.senders * warp_lanes);
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
