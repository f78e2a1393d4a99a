// How a persistent kernel is cut: one launch takes all steps, and its weights stay where they are read.
//
// A block owns `panels` panels of 16 hidden units with all their gates, of one direction and one tile of the
// batch; the `ranks` blocks of the same direction and rows are a group, which hands round the state (forward)
// or the gradients of the gates (backward) in every step. The product of a panel is cut along k into chunks
// of `depth` fragments. A job is one panel and one chunk: `gates` * `depth` left fragments, kept in registers
// of a warp if there is one for it, else in shared memory. The sums of chunks meet in shared memory and are
// added in their order, so that no bit of a result depends on blocks, ranks, warps or rows. Where there is no
// room for those of all rows, a step takes the rows in bands: product, sums and math of one, then of the
// next.
//
// No CUDA here: the planner, the kernels and the tests of both read it.
#pragma once

#include <cstdint>

namespace fastrnn {

#if defined(__CUDACC__)
#define FASTRNN_SHAPE __host__ __device__ constexpr
#else
#define FASTRNN_SHAPE constexpr
#endif

struct PersistentShape {
  std::int64_t hidden = 0;  // H
  int gates = 1;            // G
  int step = 16;            // units of k of a fragment
  int parts = 1;            // of a left fragment: 512 bytes each
  int depth = 4;            // fragments along k of a chunk
  int panels = 1, ranks = 1;
  int tiles = 1;       // of 8 rows of the batch
  int band_tiles = 1;  // at most: the tiles of a band
  int warps = 1;
  // Of what is exchanged, in shared memory: 1 or 2 where others write into it, none where it is in global
  // memory.
  int buffers = 1;
  bool backward = false;  // the product is W_hh^T times the gradients of all gates

  static constexpr int panel_units = 16, tile_rows = 8, lanes = 32;
  static constexpr int fragment_bytes = 512, right_bytes = 256;
  // A product tile in shared memory: two columns of 16 rows, then a gap of 8 floats. So a warp that stores a
  // tile, and one that reads two columns of it, meets no bank twice.
  static constexpr int partial_floats = 20 * tile_rows;
  FASTRNN_SHAPE static int column_at(int column) { return column / 2 * 40 + column % 2 * panel_units; }

  FASTRNN_SHAPE int rows() const { return tiles * tile_rows; }
  FASTRNN_SHAPE int bands() const { return (tiles + band_tiles - 1) / band_tiles; }
  FASTRNN_SHAPE int threads() const { return warps * lanes; }
  FASTRNN_SHAPE int all_panels() const { return static_cast<int>((hidden + panel_units - 1) / panel_units); }
  FASTRNN_SHAPE int first_panel(int rank) const { return rank * panels; }
  FASTRNN_SHAPE int panels_of(int rank) const {
    const int left = all_panels() - first_panel(rank);
    return left < panels ? left : panels;
  }
  FASTRNN_SHAPE int panel_steps() const { return panel_units / step; }
  FASTRNN_SHAPE int chunks() const { return (all_panels() * panel_steps() + depth - 1) / depth; }
  FASTRNN_SHAPE int k_steps() const { return chunks() * depth; }
  FASTRNN_SHAPE int jobs() const { return panels * chunks(); }
  FASTRNN_SHAPE int shared_jobs() const { return jobs() > warps ? jobs() - warps : 0; }
  FASTRNN_SHAPE std::int64_t job_bytes() const {
    return std::int64_t{1} * gates * depth * parts * fragment_bytes;
  }

  // What is exchanged: of each tile a row of fragments along k, backward of all gates in turn. A rank's own
  // panels are one piece of every row.
  FASTRNN_SHAPE int k_step_bytes() const { return (backward ? gates : 1) * right_bytes; }
  FASTRNN_SHAPE std::int64_t row_bytes() const { return std::int64_t{k_steps()} * k_step_bytes(); }
  FASTRNN_SHAPE std::int64_t buffer_bytes() const { return tiles * row_bytes(); }

  // Shared memory, in bytes from its start. Items are the units and rows of a block; each has one owner.
  FASTRNN_SHAPE int units() const { return panels * panel_units; }
  FASTRNN_SHAPE int items() const { return units() * rows(); }
  FASTRNN_SHAPE int sums() const { return backward ? 1 : gates; }  // product tiles of a job
  // Floats from one panel's partial sums to the next. A warp reads two panels of several at once: their
  // banks are 16 apart.
  FASTRNN_SHAPE std::int64_t panel_stride() const {
    return std::int64_t{1} * chunks() * sums() * band_tiles * partial_floats + (panels > 1 ? panel_units : 0);
  }
  FASTRNN_SHAPE std::int64_t weights_at() const { return buffers * buffer_bytes(); }
  FASTRNN_SHAPE std::int64_t partials_at() const { return weights_at() + shared_jobs() * job_bytes(); }
  FASTRNN_SHAPE std::int64_t state_at() const { return partials_at() + 4 * panels * panel_stride(); }
  FASTRNN_SHAPE std::int64_t biases_at() const { return state_at() + std::int64_t{2} * 4 * items(); }
  FASTRNN_SHAPE std::int64_t lengths_at() const {
    return biases_at() + (backward ? 0 : std::int64_t{2} * 4 * gates * units());
  }
  FASTRNN_SHAPE std::int64_t shared_bytes() const { return lengths_at() + std::int64_t{4} * rows(); }
};

constexpr int most_warps = 16;
// Shared memory of a block besides PersistentShape::shared_bytes(): for the pointers of a direction.
constexpr int persistent_static_bytes = 256;

// Left fragments of a chunk along k: a matter of the cell, the numbers and H alone, because the order of sums
// follows from it. A thread then keeps up to 64 registers of weights in a block of 16 warps, or 128 in one
// of 8.
constexpr int depth_of(std::int64_t hidden, int gates, int step, int parts) {
  const int depth = step == 16 ? (hidden <= 512 ? 4 : 8) : 8 / parts;
  return gates == 1 ? 2 * depth : depth;
}
// Warps of a block at most, by the registers of one thread that hold weights.
constexpr int warps_at_depth(int gates, int parts, int depth) {
  return 4 * gates * parts * depth > 64 ? most_warps / 2 : most_warps;
}
// How many units and rows a thread takes at most: 1024 a block.
constexpr int items_at_depth(int gates, int parts, int depth) {
  return 2 * most_warps / warps_at_depth(gates, parts, depth);
}

// Division by a number that is known before the launch, as a product: n * factor / 2^31, which is rounded up
// by less than n / 2^31 of a divisor. Exact while n * divisor < 2^31; what is counted here lies in shared
// memory, and both stay below 2^15.
struct Divisor {
  std::uint32_t factor;

  FASTRNN_SHAPE int quotient(int n) const {
    return static_cast<int>(std::uint64_t{2 * static_cast<std::uint32_t>(n)} * factor >> 32);
  }
};

constexpr Divisor divisor_of(int n) {
  const auto by = static_cast<std::uint32_t>(n);
  return {((std::uint32_t{1} << 31) + by - 1) / by};
}

// What a kernel needs of its shape, as plain numbers: they come with its arguments and take neither registers
// nor divisions. Shared memory bounds them all, or H, 64 rows and the gates where a buffer is in global
// memory.
struct PersistentLayout {
  int ranks, panels, all_panels, tiles, band_tiles, rows, warps, threads, chunks, shared_jobs, job_bytes;
  int units, items, buffers, row_bytes, buffer_bytes, panel_bytes;
  int weights_at, partials_at, state_at, biases_at, lengths_at;  // bytes in shared memory
  int sum_stride, chunk_stride, panel_stride;                    // floats between partial sums
  Divisor by_chunks;
  // Of the piece that a rank publishes, in vectors: of one row, and all. The last rank may have less.
  int piece_row, piece;
  Divisor by_piece_row;
  // A cluster's warps share out whom they send to: so many together serve one rank, and so many at once.
  int senders, served;
  Divisor by_senders;

  FASTRNN_SHAPE int panels_of(int rank) const {
    const int left = all_panels - rank * panels;
    return left < panels ? left : panels;
  }
  FASTRNN_SHAPE int first_unit(int rank) const { return rank * units; }
};

// What is exchanged moves in units of so many bytes.
constexpr int vector_bytes = 16;

constexpr PersistentLayout layout_of(const PersistentShape& shape) {
  const auto number = [](std::int64_t n) { return static_cast<int>(n); };
  PersistentLayout layout{};
  layout.ranks = shape.ranks;
  layout.panels = shape.panels;
  layout.all_panels = shape.all_panels();
  layout.tiles = shape.tiles;
  layout.band_tiles = shape.band_tiles;
  layout.rows = shape.rows();
  layout.warps = shape.warps;
  layout.threads = shape.threads();
  layout.chunks = shape.chunks();
  layout.shared_jobs = shape.shared_jobs();
  layout.job_bytes = number(shape.job_bytes());
  layout.units = shape.units();
  layout.items = shape.items();
  layout.buffers = shape.buffers;
  layout.row_bytes = number(shape.row_bytes());
  layout.buffer_bytes = number(shape.buffer_bytes());
  layout.panel_bytes = shape.panel_steps() * shape.k_step_bytes();
  layout.weights_at = number(shape.weights_at());
  layout.partials_at = number(shape.partials_at());
  layout.state_at = number(shape.state_at());
  layout.biases_at = number(shape.biases_at());
  layout.lengths_at = number(shape.lengths_at());
  layout.sum_stride = shape.band_tiles * PersistentShape::partial_floats;
  layout.chunk_stride = shape.sums() * layout.sum_stride;
  layout.panel_stride = number(shape.panel_stride());
  layout.by_chunks = divisor_of(layout.chunks);
  layout.piece_row = layout.panels * layout.panel_bytes / vector_bytes;
  layout.piece = layout.tiles * layout.piece_row;
  layout.by_piece_row = divisor_of(layout.piece_row);
  const int others = shape.ranks > 1 ? shape.ranks - 1 : 1;
  layout.senders = shape.warps > others ? shape.warps / others : 1;
  layout.served = shape.warps / layout.senders;
  layout.by_senders = divisor_of(layout.senders);
  return layout;
}

}  // namespace fastrnn
