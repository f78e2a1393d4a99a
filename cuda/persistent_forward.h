// Forward of one layer in one launch, or in one for each range of steps. What it reads and leaves is what the
// policy `Steps` does, array by array (steps_tape.h), so that the rest of a network need not know which of
// the two ran.
#pragma once

#include "persistent_product.h"
#include "steps_cells.h"

namespace fastrnn::FASTRNN_TARGET {

// One direction. Arrays of a time lie T apart: `slots + t * B * slots * H`.
template <class T>
struct PersistentForwardChain {
  const T* weight_hh = nullptr;                    // (G * H, H)
  const T *bias_ih = nullptr, *bias_hh = nullptr;  // (G * H); null: none
  const T *h0 = nullptr, *c0 = nullptr;            // (B, H); null: zeros
  T* slots = nullptr;                              // (T, B, slots * H): products with x, without bias
  T* y = nullptr;                                  // row t * B + b at y + (t * B + b) * y_stride
  std::int64_t y_stride = 0;
  T *hn = nullptr, *cn = nullptr;        // (B, H)
  T *h_all = nullptr, *c_all = nullptr;  // (T, B, H), or null
  T* h = nullptr;                        // (T + 1, B, H), what steps start from; null: no tape
  float* c = nullptr;                    // the same
  // (B, H), what the first step of a range starts from, and what the range leaves to the next one. Not the
  // same arrays: blocks begin and end when they may. Null: the range is the first, or the last.
  const T* carried_h = nullptr;
  const float* carried_c = nullptr;
  T* left_h = nullptr;
  float* left_c = nullptr;
};

template <class T>
struct PersistentForwardCall {
  PersistentLayout layout;
  Frame frame;
  int first_step, end_step;  // of the T steps, which a reverse direction counts from the last time
  float clip;                // bound of |c_t|
  bool keep_slots;           // for backward: activated gates
  PersistentForwardChain<T> chain[most_directions];
};

template <class Cell, Precision precision, int depth, class T, class Group>
class PersistentForward {
 public:
  using M = float;

  static constexpr int gates = Cell::gates, slots = Cell::slots;

  // `chain`: that of direction d, where it costs no registers: a device keeps a copy in shared memory.
  FASTRNN_DEVICE PersistentForward(Group& group, const PersistentForwardCall<T>& call,
                                   const PersistentForwardChain<T>& chain, int d, int row_group)
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
    group_.publish(0);
    const int steps = call_.end_step - call_.first_step;
    for (int s = 0; s < steps; ++s) {  // of the range
      const int t = time(s);
      load(t);
      group_.receive(s);
      each_band(group_, layout_, [&](const Band& band) {
        product_.run(group_, layout_, band, group_.buffer(s));
        group_.sync();
        if (s + 1 < steps && band.is_last(layout_)) group_.release(s);
        items_.forget();
        compute(band, group_.buffer(s + 1));
      });
      if (s + 1 < steps) group_.publish(s + 1);
      store(t);
    }
    if (chain_.left_h) leave();
  }

 private:
  using Op = Operand<precision>;
  // What happens at a step: it is one of the row's, the last one; the next takes the state, or the initial
  // one.
  static constexpr std::uint32_t active = 1, last = 2, passes = 4, starts = 8;

  // Slots and the reset are as they came, because a conversion would wait for them.
  struct Item {
    T slot[slots];
    std::uint32_t flags;
    char reset;  // not 0: the next step starts anew after all
  };

  FASTRNN_DEVICE M* state_h() const { return reinterpret_cast<M*>(group_.shared + layout_.state_at); }
  FASTRNN_DEVICE M* state_c() const { return state_h() + layout_.items; }
  FASTRNN_DEVICE M* biases() const { return reinterpret_cast<M*>(group_.shared + layout_.biases_at); }

  template <class F>
  FASTRNN_DEVICE void items(const F& f) {
    items_.each(group_, layout_, row_group_, f);
  }

  FASTRNN_DEVICE int time(int s) const {
    s += call_.first_step;
    return d_ ? static_cast<int>(frame_.steps) - 1 - s : s;
  }

  // Whether the step at time `next` starts from a state.
  FASTRNN_DEVICE bool is_passed(std::int64_t next, int b) const {
    return frame_.active(next, b) && !frame_.is_cut(d_, next, b);
  }
  FASTRNN_DEVICE static M initial(const T* from, std::int64_t at) {
    return from ? static_cast<M>(read_global(from + at)) : M(0);
  }

  // Buffers, biases and the state before the first step.
  FASTRNN_DEVICE void begin() {
    const std::int64_t t = time(0), hidden = frame_.hidden;
    load_lengths(group_, layout_, row_group_, frame_);
    group_.lanes([&](int lane) {
      const int thread = group_.thread(lane), threads = layout_.threads;
      auto* const words = reinterpret_cast<std::uint64_t*>(group_.shared);
      for (int i = thread; i < layout_.weights_at / 8; i += threads) words[i] = 0;
      for (int i = thread; i < gates * layout_.units; i += threads) {
        const int unit = layout_.first_unit(group_.rank) + i % layout_.units;
        const std::int64_t at = i / layout_.units * hidden + unit;
        biases()[i] = unit < hidden ? initial(chain_.bias_ih, at) : M(0);
        biases()[gates * layout_.units + i] = unit < hidden ? initial(chain_.bias_hh, at) : M(0);
      }
    });
    group_.sync();
    items([&](const ItemPlace& place, Item&, int index) {
      const std::int64_t at = place.b * hidden + place.u;
      const M h = before(t, place.b, at, chain_.carried_h, chain_.h0);
      const M c = before(t, place.b, at, chain_.carried_c, chain_.c0);
      put(group_.buffer(0), place, h);
      state_h()[index] = h;
      state_c()[index] = c;
      keep(d_ ? t + 1 : t, at, h, c);
      if (frame_.length(place.b) > 0) return;
      write_global(chain_.hn + at, static_cast<T>(initial(chain_.h0, at)));
      if constexpr (Cell::has_cell_state)
        write_global(chain_.cn + at, static_cast<T>(initial(chain_.c0, at)));
    });
  }

  // A state before the first step of the range, at time t.
  template <class X>
  FASTRNN_DEVICE M before(std::int64_t t, int b, std::int64_t at, const X* carried, const T* from) const {
    if (carried) return static_cast<M>(read_global(carried + at));
    return is_passed(t, b) && frame_.is_first(d_, t, b) ? initial(from, at) : M(0);
  }

  // To the next range.
  FASTRNN_DEVICE void leave() {
    items([&](const ItemPlace& place, Item&, int index) {
      const std::int64_t at = place.b * frame_.hidden + place.u;
      write_global(chain_.left_h + at, static_cast<T>(state_h()[index]));
      if constexpr (Cell::has_cell_state) write_global(chain_.left_c + at, state_c()[index]);
    });
  }

  FASTRNN_DEVICE void keep(std::int64_t entry, std::int64_t at, M h, M c) {
    const std::int64_t place = entry * frame_.batch * frame_.hidden + at;
    if (chain_.h) write_global(chain_.h + place, static_cast<T>(h));
    if constexpr (Cell::has_cell_state) {
      if (chain_.c) write_global(chain_.c + place, c);
    }
  }

  FASTRNN_DEVICE std::int64_t of_step(int t, const ItemPlace& place) const {
    return (std::int64_t{t} * frame_.batch + place.b) * frame_.hidden + place.u;
  }
  FASTRNN_DEVICE T* slots_of(int t, const ItemPlace& place) const {
    return chain_.slots + (std::int64_t{t} * frame_.batch + place.b) * slots * frame_.hidden + place.u;
  }

  // All that comes from memory, before the wait.
  FASTRNN_DEVICE void load(int t) {
    const int next = d_ ? t - 1 : t + 1, later = d_ ? t : t + 1;
    items([&](const ItemPlace& place, Item& item, int) {
      const T* const from = slots_of(t, place);
      FASTRNN_UNROLL
      for (int g = 0; g < gates; ++g) item.slot[g] = read_global(from + g * frame_.hidden);
      const int length = length_of(group_, layout_, place.n);
      item.reset = reset_at(frame_, later, length, place.b);
      item.flags = is_within(t, length) ? active : 0;
      if (t == (d_ ? 0 : length - 1)) item.flags |= last;
      if (is_within(next, length)) item.flags |= next == (d_ ? length - 1 : 0) ? starts : passes;
    });
  }

  FASTRNN_DEVICE void put(char* buffer, const ItemPlace& place, M h) const {
    put_right<Op>(buffer + place.n / tile_columns * layout_.row_bytes, place.u, place.n % tile_columns, h);
  }

  // One step of the block's units in a band; h of the next step into `buffer`.
  FASTRNN_DEVICE void compute(const Band& band, char* buffer) {
    items([&](const ItemPlace& place, Item& item, int index) {
      if (!band.has(layout_, place.n)) return;
      if (item.reset) item.flags &= active | last;
      if (item.flags & active) step(band, place, index, item);
      M h = item.flags & passes ? state_h()[index] : M(0);
      if (item.flags & starts) h = initial(chain_.h0, place.b * frame_.hidden + place.u);
      put(buffer, place, h);
    });
  }

  FASTRNN_DEVICE void step(const Band& band, const ItemPlace& place, int index, Item& item) {
    const float* const partials = reinterpret_cast<const float*>(group_.shared + layout_.partials_at);
    M product[gates], slot[slots];
    add_chunks(layout_, band, partials, place, product);
    FASTRNN_UNROLL
    for (int g = 0; g < gates; ++g) {
      const M from_x = static_cast<M>(item.slot[g]) + biases()[g * layout_.units + place.unit];
      const M from_h = product[g] + biases()[(gates + g) * layout_.units + place.unit];
      if (g == Cell::separate) {
        slot[g] = from_x;
        slot[slots - 1] = from_h;
      } else {
        slot[g] = from_x + from_h;
      }
    }
    State<M> state{state_h()[index], state_c()[index]};
    Cell::forward(slot, state, LaneWeights<M>{M(0), M(0), M(0), call_.clip});
    FASTRNN_UNROLL
    for (int j = 0; j < slots; ++j) item.slot[j] = static_cast<T>(slot[j]);
    // As it is kept, so that a sequence taken in parts gives the same.
    state_h()[index] = static_cast<M>(static_cast<T>(state.h));
    state_c()[index] = state.c;
  }

  // What leaves the step, and in the block's memory what the next one starts from.
  FASTRNN_DEVICE void store(int t) {
    items([&](const ItemPlace& place, Item& item, int index) {
      const std::int64_t at = place.b * frame_.hidden + place.u;
      const std::int64_t row = std::int64_t{t} * frame_.batch + place.b;
      const T h = static_cast<T>(item.flags & active ? state_h()[index] : M(0));
      write_global(chain_.y + row * chain_.y_stride + place.u, h);
      if (item.flags & active) store_step(t, place, index, item, h);
      if (!(item.flags & passes)) {
        const bool begins = item.flags & starts;
        state_h()[index] = begins ? initial(chain_.h0, at) : M(0);
        state_c()[index] = begins ? initial(chain_.c0, at) : M(0);
      }
      keep(d_ ? t : t + 1, at, state_h()[index], state_c()[index]);
    });
  }

  FASTRNN_DEVICE void store_step(int t, const ItemPlace& place, int index, const Item& item, T h) {
    const bool is_last = item.flags & last;
    const std::int64_t at = place.b * frame_.hidden + place.u;
    if (is_last) write_global(chain_.hn + at, h);
    if (chain_.h_all) write_global(chain_.h_all + of_step(t, place), h);
    if constexpr (Cell::has_cell_state) {
      const T c = static_cast<T>(state_c()[index]);
      if (is_last) write_global(chain_.cn + at, c);
      if (chain_.c_all) write_global(chain_.c_all + of_step(t, place), c);
    }
    if (!call_.keep_slots) return;
    T* const to = slots_of(t, place);
    FASTRNN_UNROLL
    for (int j = 0; j < slots; ++j) write_global(to + j * frame_.hidden, item.slot[j]);
  }

  Group& group_;
  const PersistentLayout& layout_;
  const Frame& frame_;
  const PersistentForwardCall<T>& call_;
  const PersistentForwardChain<T>& chain_;
  const int d_, row_group_;
  PersistentProduct<precision, gates, depth, false> product_;
  Items<Item, items_at_depth(gates, Op::parts, depth)> items_;
};

}  // namespace fastrnn::FASTRNN_TARGET
