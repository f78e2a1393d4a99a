// Back through the steps of one layer in one launch, with the partition of the forward pass. A block owns the
// gradients of its units; what it lacks, W_hh^T times the gradients of all gates, it forms itself from what
// the group hands round. (The other way, each block forming its share of every unit's sum and the group
// adding up the shares, moves half as much between blocks, but its sums depend on the number of blocks.)
#pragma once

#include "persistent_product.h"
#include "steps_cells.h"

namespace fastrnn::FASTRNN_TARGET {

// One direction; null: zeros, and of gradients that are results: not wanted.
template <class T>
struct PersistentBackwardChain {
  const T* weight_hh = nullptr;  // (G * H, H)
  T* slots = nullptr;            // (T, B, slots * H): activated gates, which become gradients
  const T* h = nullptr;          // (T + 1, B, H), as forward left them
  const float* c = nullptr;      // the same
  const T* grad_y = nullptr;     // row t * B + b at grad_y + (t * B + b) * grad_y_stride
  std::int64_t grad_y_stride = 0;
  const T *grad_h_all = nullptr, *grad_c_all = nullptr;  // (T, B, H)
  const T *grad_hn = nullptr, *grad_cn = nullptr;        // (B, H)
  T *grad_h0 = nullptr, *grad_c0 = nullptr;              // (B, H)
};

template <class T>
struct PersistentBackwardCall {
  PersistentLayout layout;
  Frame frame;
  float clip;
  PersistentBackwardChain<T> chain[most_directions];
};

template <class Cell, Precision precision, int depth, class T, class Group>
class PersistentBackward {
 public:
  using M = float;

  static constexpr int gates = Cell::gates, slots = Cell::slots;

  // `chain`: that of direction d, where it costs no registers: a device keeps a copy in shared memory.
  FASTRNN_DEVICE PersistentBackward(Group& group, const PersistentBackwardCall<T>& call,
                                    const PersistentBackwardChain<T>& chain, int d, int row_group)
      : group_(group),
        layout_(call.layout),
        frame_(call.frame),
        call_(call),
        chain_(chain),
        d_(d),
        row_group_(row_group) {}

  FASTRNN_DEVICE void run() {
    items_.place(group_, layout_, row_group_, frame_);
    product_.load(group_, layout_, chain_.weight_hh, frame_.hidden);
    begin();
    group_.start();
    const int steps = static_cast<int>(frame_.steps);
    for (int s = 0; s < steps; ++s) {
      const int t = d_ ? s : steps - 1 - s;
      load(t);
      if (s > 0) group_.receive(s);
      each_band(group_, layout_, [&](const Band& band) {
        if (s > 0) {
          multiply(band, s);
          if (band.is_last(layout_)) group_.release(s);
        }
        compute(band, t, s > 0, group_.buffer(s + 1));
      });
      group_.publish(s + 1);
      store(t);
    }
    group_.receive(steps);
    each_band(group_, layout_, [&](const Band& band) {
      multiply(band, steps);
      finish(band);
    });
  }

 private:
  using Op = Operand<precision>;
  // What a step is: one of the row's, one that starts anew, and one after which the next does.
  static constexpr std::uint32_t active = 1, cut = 2, cut_after = 4;

  // As they came, because a conversion would wait for them.
  struct Item {
    T slot[slots], h, grad_y;
    M c;
    std::uint32_t flags = 0;
    char reset;  // not 0: the step starts anew
  };

  FASTRNN_DEVICE M* carry() const { return reinterpret_cast<M*>(group_.shared + layout_.state_at); }
  FASTRNN_DEVICE M* grad_c() const { return carry() + layout_.items; }
  FASTRNN_DEVICE const float* partials() const {
    return reinterpret_cast<const float*>(group_.shared + layout_.partials_at);
  }

  template <class F>
  FASTRNN_DEVICE void items(const F& f) {
    items_.each(group_, layout_, row_group_, f);
  }

  FASTRNN_DEVICE static M value(const T* from, std::int64_t at) {
    return from ? static_cast<M>(read_global(from + at)) : M(0);
  }

  FASTRNN_DEVICE void begin() {
    load_lengths(group_, layout_, row_group_, frame_);
    group_.lanes([&](int lane) {
      auto* const words = reinterpret_cast<std::uint64_t*>(group_.shared);
      for (int i = group_.thread(lane); i < layout_.weights_at / 8; i += layout_.threads) words[i] = 0;
    });
    items([&](const ItemPlace& place, Item&, int index) {
      const std::int64_t at = place.b * frame_.hidden + place.u;
      carry()[index] = value(chain_.grad_hn, at);
      grad_c()[index] = value(chain_.grad_cn, at);
    });
  }

  FASTRNN_DEVICE void multiply(const Band& band, int s) {
    product_.run(group_, layout_, band, group_.buffer(s));
    group_.sync();
    items_.forget();
  }

  FASTRNN_DEVICE std::int64_t of_step(int t, const ItemPlace& place) const {
    return (std::int64_t{t} * frame_.batch + place.b) * frame_.hidden + place.u;
  }
  FASTRNN_DEVICE T* slots_of(int t, const ItemPlace& place) const {
    return chain_.slots + (std::int64_t{t} * frame_.batch + place.b) * slots * frame_.hidden + place.u;
  }

  // All that comes from memory, before the wait.
  FASTRNN_DEVICE void load(int t) {
    const std::int64_t entry = std::int64_t{d_ ? t + 1 : t} * frame_.batch * frame_.hidden;
    items([&](const ItemPlace& place, Item& item, int) {
      const std::int64_t at = place.b * frame_.hidden + place.u,
                         row = std::int64_t{t} * frame_.batch + place.b;
      const T* const from = slots_of(t, place);
      FASTRNN_UNROLL
      for (int j = 0; j < slots; ++j) item.slot[j] = read_global(from + j * frame_.hidden);
      if constexpr (Cell::reads_h) item.h = read_global(chain_.h + entry + at);
      if (chain_.grad_y) item.grad_y = read_global(chain_.grad_y + row * chain_.grad_y_stride + place.u);
      if constexpr (Cell::has_cell_state) item.c = read_global(chain_.c + entry + at);
      const int length = length_of(group_, layout_, place.n);
      item.reset = reset_at(frame_, d_ ? t + 1 : t, length, place.b);
      // The last call was for the step after this one.
      item.flags = (item.flags & cut ? cut_after : 0) | (is_within(t, length) ? active : 0);
    });
  }

  // What reaches the state after a step from later steps.
  FASTRNN_DEVICE M arriving(const Band& band, const ItemPlace& place, int index, bool has_after,
                            bool is_cut) const {
    if (is_cut) return M(0);
    const M passed = carry()[index];
    if (!has_after) return passed;
    M product[1];
    add_chunks(layout_, band, partials(), place, product);
    return passed + product[0];
  }

  // One step of the block's units in a band; gradients of gates into `buffer`.
  FASTRNN_DEVICE void compute(const Band& band, int t, bool has_after, char* buffer) {
    items([&](const ItemPlace& place, Item& item, int index) {
      if (!band.has(layout_, place.n)) return;
      if (item.reset) item.flags |= cut;
      const M grad = arriving(band, place, index, has_after, item.flags & cut_after);
      carry()[index] = item.flags & active ? M(0) : grad;
      if (item.flags & active) {
        step(t, place, index, item, grad);
      } else {
        FASTRNN_UNROLL
        for (int j = 0; j < slots; ++j) item.slot[j] = T(0);
      }
      FASTRNN_UNROLL
      for (int g = 0; g < gates; ++g) {
        put_right<Op, gates>(buffer + place.n / tile_columns * layout_.row_bytes + g * right_bytes, place.u,
                             place.n % tile_columns, static_cast<M>(item.slot[slots - gates + g]));
      }
    });
  }

  FASTRNN_DEVICE void step(int t, const ItemPlace& place, int index, Item& item, M grad_h) {
    State<M> grad{grad_h + (chain_.grad_y ? static_cast<M>(item.grad_y) : M(0)), M(0)};
    if constexpr (Cell::has_cell_state) grad.c = grad_c()[index];
    if (chain_.grad_h_all)
      grad.h += value(chain_.grad_h_all, of_step(t, place));  // rare, and so not loaded early
    if (Cell::has_cell_state && chain_.grad_c_all) grad.c += value(chain_.grad_c_all, of_step(t, place));
    M slot[slots];
    FASTRNN_UNROLL
    for (int j = 0; j < slots; ++j) slot[j] = static_cast<M>(item.slot[j]);
    State<M> before{};
    if constexpr (Cell::reads_h) before.h = static_cast<M>(item.h);
    if constexpr (Cell::has_cell_state) before.c = item.c;
    Cell::backward(slot, before, grad, LaneWeights<M>{M(0), M(0), M(0), call_.clip});
    if constexpr (Cell::has_cell_state) grad_c()[index] = item.flags & cut ? M(0) : grad.c;
    if constexpr (Cell::passes_h) carry()[index] = grad.h;
    // As they are kept, and as the products for the weights read them.
    FASTRNN_UNROLL
    for (int j = 0; j < slots; ++j) item.slot[j] = static_cast<T>(slot[j]);
  }

  FASTRNN_DEVICE void store(int t) {
    items([&](const ItemPlace& place, Item& item, int) {
      T* const to = slots_of(t, place);
      FASTRNN_UNROLL
      for (int j = 0; j < slots; ++j) write_global(to + j * frame_.hidden, item.slot[j]);
    });
  }

  FASTRNN_DEVICE void finish(const Band& band) {
    const std::int64_t last = d_ ? frame_.steps - 1 : 0;
    items([&](const ItemPlace& place, Item&, int index) {
      if (!band.has(layout_, place.n)) return;
      const std::int64_t at = place.b * frame_.hidden + place.u;
      const bool is_cut = frame_.is_cut(d_, last, place.b);
      if (chain_.grad_h0)
        write_global(chain_.grad_h0 + at, static_cast<T>(arriving(band, place, index, true, is_cut)));
      if (chain_.grad_c0) write_global(chain_.grad_c0 + at, static_cast<T>(grad_c()[index]));
    });
  }

  Group& group_;
  const PersistentLayout& layout_;
  const Frame& frame_;
  const PersistentBackwardCall<T>& call_;
  const PersistentBackwardChain<T>& chain_;
  const int d_, row_group_;
  PersistentProduct<precision, gates, depth, true> product_;
  Items<Item, items_at_depth(gates, Op::parts, depth)> items_;
};

}  // namespace fastrnn::FASTRNN_TARGET
