// The recurrent product of one block in every step: left fragments of W_hh that never move, times what the
// group exchanges.
#pragma once

#include "group.h"
#include "steps_cells.h"

namespace fastrnn::FASTRNN_TARGET {

// Tiles of the batch whose sums are in shared memory at once.
struct Band {
  int first;

  FASTRNN_DEVICE int end(const PersistentLayout& layout) const {
    const int end = first + layout.band_tiles;
    return end < layout.tiles ? end : layout.tiles;
  }
  FASTRNN_DEVICE bool is_last(const PersistentLayout& layout) const { return end(layout) == layout.tiles; }
  FASTRNN_DEVICE bool has(const PersistentLayout& layout, int n) const {  // a row of the block
    return static_cast<unsigned>(n / tile_columns - first) < static_cast<unsigned>(layout.band_tiles);
  }
};

// f(band) for all of a step. Who reads a band's sums meets all others before they write the next one's.
template <class Group, class F>
FASTRNN_DEVICE void each_band(Group& group, const PersistentLayout& layout, const F& f) {
  FASTRNN_UNROLL_BY(1)
  for (int first = 0; first < layout.tiles; first += layout.band_tiles) {
    if (first > 0) group.sync();
    f(Band{first});
  }
}

// Forward, the sum of gate g for 16 units over a chunk of k; all gates read the same right fragments.
// Backward, the sum over a chunk of k and over the gates, each with its own; its weights are transposed.
template <Precision precision, int gates, int depth, bool backward>
class PersistentProduct {
 public:
  using Op = Operand<precision>;

  // W: (G * H, H) as T.
  template <class T, class Group>
  FASTRNN_DEVICE void load(const Group& group, const PersistentLayout& layout, const T* weight_hh,
                           std::int64_t hidden_units) {
    const auto hidden = static_cast<int>(hidden_units);
    const int jobs = layout.panels_of(group.rank) * layout.chunks;
    const int first_unit = layout.first_unit(group.rank);
    const auto fragment = [&](int lane, int job, int gate, int k_step) {
      const int panel = layout.by_chunks.quotient(job), chunk = job - panel * layout.chunks;
      const int unit = first_unit + panel * panel_rows;
      const int k = (chunk * depth + k_step) * Op::step;
      return left_fragment<Op>(lane, [&](int row, int column) {
        const int u = unit + row, from = k + column;
        if (u >= hidden || from >= hidden) return 0.0f;
        const int line = gate * hidden + (backward ? from : u);
        return static_cast<float>(weight_hh[line * hidden + (backward ? u : from)]);
      });
    };
    if (group.warp < jobs) {
      // Some fragments at a time: all loads at once would take more registers than the weights do.
      constexpr int at_once = gates * depth % 4 == 0 ? 4 : 1;
      FASTRNN_UNROLL_BY(1)
      for (int first = 0; first < gates * depth; first += at_once) {
        Lanes<Left<Op>> left[at_once];
        FASTRNN_UNROLL
        for (int i = 0; i < at_once; ++i) {
          group.lanes([&](int lane) {
            left[i][lane] = fragment(lane, group.warp, (first + i) / depth, (first + i) % depth);
          });
        }
        FASTRNN_UNROLL
        for (int i = 0; i < gates * depth; ++i) {
          if (i / at_once * at_once != first) continue;
          group.lanes([&](int lane) { held_[i / depth][i % depth][lane] = left[i % at_once][lane]; });
        }
      }
    }
    char* const weights = group.shared + layout.weights_at;
    FASTRNN_UNROLL_BY(1)
    for (int job = layout.warps + group.warp; job < jobs; job += layout.warps) {
      char* const to = weights + (job - layout.warps) * layout.job_bytes;
      group.lanes([&](int lane) {
        for (int i = 0; i < gates * depth; ++i) {
          const Left<Op> left = fragment(lane, job, i / depth, i % depth);
          FASTRNN_UNROLL
          for (int part = 0; part < Op::parts; ++part) {
            memcpy(place(to, i, part, lane), left.word + part * Left<Op>::registers, vector_bytes);
          }
        }
      });
    }
  }

  // The product tiles of this warp's jobs for a band, into the shared memory for partial sums.
  template <class Group>
  FASTRNN_DEVICE void run(const Group& group, const PersistentLayout& layout, const Band& band,
                          const char* buffer) const {
    float* const partials = reinterpret_cast<float*>(group.shared + layout.partials_at);
    const int jobs = layout.panels_of(group.rank) * layout.chunks;
    if (group.warp < jobs) {
      run_job(group, layout, band, group.warp, buffer, partials,
              [&](int g, int k) -> const Lanes<Left<Op>>& { return held_[g][k]; });
    }
    const char* const weights = group.shared + layout.weights_at;
    FASTRNN_UNROLL_BY(1)
    for (int job = layout.warps + group.warp; job < jobs; job += layout.warps) {
      const char* const from = weights + (job - layout.warps) * layout.job_bytes;
      run_job(group, layout, band, job, buffer, partials, [&](int g, int k) {
        Lanes<Left<Op>> left;
        group.lanes([&](int lane) {
          FASTRNN_UNROLL
          for (int part = 0; part < Op::parts; ++part) {
            memcpy(left[lane].word + part * Left<Op>::registers, place(from, g * depth + k, part, lane),
                   vector_bytes);
          }
        });
        return left;
      });
    }
  }

 private:
  static constexpr int rights = backward ? gates : 1;  // fragments of one k

  // How many right fragments of a chunk a warp loads at once: several where they come from far, as far as
  // registers go, of which backward items take more.
  template <class Group>
  static constexpr int loaded = [] {
    const bool is_tight =
        backward && (Op::parts > 1 || warps_at_depth(gates, Op::parts, depth) == most_warps);
    int n = is_tight ? Group::is_far ? 4 : 1 : 8;
    while (depth * rights % n) --n;
    return n;
  }();

  // 16 bytes of each lane in turn.
  template <class Char>
  FASTRNN_DEVICE static Char* place(Char* job, int fragment, int part, int lane) {
    Char* const at = job + ((fragment * Op::parts + part) * warp_lanes + lane) * vector_bytes;
    return static_cast<Char*>(__builtin_assume_aligned(at, vector_bytes));
  }

  template <class Group, class Weights>
  FASTRNN_DEVICE void run_job(const Group& group, const PersistentLayout& layout, const Band& band, int job,
                              const char* buffer, float* partials, const Weights& weights) const {
    const int panel = layout.by_chunks.quotient(job), chunk = job - panel * layout.chunks;
    FASTRNN_UNROLL_BY(1)
    for (int tile = band.first, end = band.end(layout); tile < end; ++tile) {
      Lanes<Accumulator> sum[gates];
      group.lanes([&](int lane) {
        FASTRNN_UNROLL
        for (int g = 0; g < gates; ++g) sum[g][lane] = Accumulator{};
      });
      const char* const at = buffer + tile * layout.row_bytes + chunk * depth * rights * right_bytes;
      constexpr int ahead = loaded<Group>;
      FASTRNN_UNROLL
      for (int first = 0; first < depth * rights; first += ahead) {
        Lanes<std::uint64_t> words[ahead];
        FASTRNN_UNROLL
        for (int i = 0; i < ahead; ++i) {
          group.lanes([&](int lane) { words[i][lane] = group.words(at + (first + i) * right_bytes, lane); });
        }
        FASTRNN_UNROLL
        for (int i = 0; i < ahead; ++i) {
          Lanes<Right<Op>> right;
          group.lanes([&](int lane) { right[lane] = right_of<Op>(words[i][lane]); });
          const int k = (first + i) / rights;
          FASTRNN_UNROLL
          for (int g = (first + i) % rights; g < gates; g += rights) {
            multiply<precision>(sum[g], weights(g, k), right);
          }
        }
      }
      if constexpr (backward) {
        group.lanes([&](int lane) {
          FASTRNN_UNROLL
          for (int g = 1; g < gates; ++g) {
            FASTRNN_UNROLL
            for (int i = 0; i < 4; ++i) sum[0][lane].value[i] += sum[g][lane].value[i];
          }
        });
      }
      FASTRNN_UNROLL
      for (int g = 0; g < (backward ? 1 : gates); ++g) {
        float* const to = partials + panel * layout.panel_stride + chunk * layout.chunk_stride +
                          g * layout.sum_stride + (tile - band.first) * PersistentShape::partial_floats;
        group.lanes([&](int lane) {
          FASTRNN_UNROLL
          for (int i = 0; i < 4; ++i) {
            const Position p = product_position(lane, i);
            to[PersistentShape::column_at(p.column) + p.row] = sum[g][lane].value[i];
          }
        });
      }
    }
  }

  Lanes<Left<Op>> held_[gates][depth];
};

// Lengths of the rows of a block, kept in its shared memory: an acquire empties L1 in every step. All warps
// shall meet before they are read.
template <class Group>
FASTRNN_DEVICE void load_lengths(const Group& group, const PersistentLayout& layout, int row_group,
                                 const Frame& frame) {
  auto* const lengths = reinterpret_cast<int*>(group.shared + layout.lengths_at);
  group.lanes([&](int lane) {
    for (int n = group.thread(lane); n < layout.rows; n += layout.threads) {
      const int b = row_group * layout.rows + n;
      lengths[n] = b < frame.batch ? static_cast<int>(frame.length(b)) : 0;
    }
  });
}
template <class Group>
FASTRNN_DEVICE int length_of(const Group& group, const PersistentLayout& layout, int n) {
  return reinterpret_cast<const int*>(group.shared + layout.lengths_at)[n];
}
FASTRNN_DEVICE bool is_within(int t, int length) {
  return static_cast<unsigned>(t) < static_cast<unsigned>(length);
}

// The reset at a time of a row; none past its end.
FASTRNN_DEVICE char reset_at(const Frame& frame, int t, int length, int b) {
  return frame.resets && is_within(t, length) ? frame.resets[t * frame.batch + b] : '\0';
}

// One hidden unit of one row of the batch, as its block and its one thread see it.
struct ItemPlace {
  int unit, n;  // in the block, and of its rows
  int u, b;     // in the layer, in the batch
};

// The items of a block, each with what its thread keeps of it between two meetings. Registers are scarce
// beside the weights: a place takes one.
template <class Item, int most_items>
class Items {
 public:
  template <class Group>
  FASTRNN_DEVICE void place(const Group& group, const PersistentLayout& layout, int row_group,
                            const Frame& frame) {
    const int first_unit = layout.first_unit(group.rank), first_row = row_group * layout.rows;
    FASTRNN_UNROLL
    for (int i = 0; i < most_items; ++i) {
      group.lanes([&](int lane) {
        const int index = group.thread(lane) + i * layout.threads;
        const int unit = index % layout.units, n = index / layout.units;
        const bool is_one =
            index < layout.items && first_unit + unit < frame.hidden && first_row + n < frame.batch;
        packed_[i][lane] = is_one ? n << unit_bits | unit : -1;
      });
    }
  }

  // f(place, item, index) for those that there are; the index counts over the block's.
  template <class Group, class F>
  FASTRNN_DEVICE void each(const Group& group, const PersistentLayout& layout, int row_group, const F& f) {
    FASTRNN_UNROLL
    for (int i = 0; i < most_items; ++i) {
      group.lanes([&](int lane) {
        const int packed = packed_[i][lane];
        if (packed < 0) return;
        const int unit = packed & ((1 << unit_bits) - 1), n = packed >> unit_bits;
        f(ItemPlace{unit, n, layout.first_unit(group.rank) + unit, row_group * layout.rows + n},
          item_[i][lane], group.thread(lane) + i * layout.threads);
      });
    }
  }

  // What the compiler has derived from the places, to keep it for the next step, does not outlive this:
  // beside the weights, it is cheaper to derive again.
  FASTRNN_DEVICE void forget() {
#if defined(__CUDA_ARCH__)
    FASTRNN_UNROLL
    for (int i = 0; i < most_items; ++i) asm volatile("" : "+r"(packed_[i][0]));
#endif
  }

 private:
  static constexpr int unit_bits = 16;

  Lanes<int> packed_[most_items];
  Lanes<Item> item_[most_items];
};

// The sums of the chunks in their order, of `sums` gates; the item is one of the band.
template <int sums>
FASTRNN_DEVICE void add_chunks(const PersistentLayout& layout, const Band& band, const float* partials,
                               const ItemPlace& place, float (&total)[sums]) {
  const float* at = partials + place.unit / panel_rows * layout.panel_stride +
                    (place.n / tile_columns - band.first) * PersistentShape::partial_floats +
                    PersistentShape::column_at(place.n % tile_columns) + place.unit % panel_rows;
  FASTRNN_UNROLL
  for (int i = 0; i < sums; ++i) total[i] = at[i * layout.sum_stride];
  FASTRNN_UNROLL_BY(2)
  for (int chunk = 1; chunk < layout.chunks; ++chunk) {
    at += layout.chunk_stride;
    FASTRNN_UNROLL
    for (int i = 0; i < sums; ++i) total[i] += at[i * layout.sum_stride];
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
