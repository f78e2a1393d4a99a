// What training adds to a step besides the cell: masks, zoneout and dropped weights, for rows of one thread's
// units. Equations in docs/design.md; the random numbers are those of random.h.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "random.h"
#include "rnn.h"

namespace fastrnn {

// Draws masks of one call.
template <class T>
struct Masks {
  const Kernels<T>& kernels;
  const Noise& noise;
  std::uint64_t seed;

  // Zeros with probability p, else 1 / (1 - p).
  void dropout(MaskKind kind, double p, std::int64_t layer, std::int64_t d, std::int64_t step,
               std::int64_t row, std::int64_t first, std::int64_t count, T* out) const {
    const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
    draw(kind, p, T(0), scale, layer, d, step, row, first, count, out);
  }
  // Of zoneout, without pointers.
  ZoneArguments<T> zoneout(MaskKind kind, double p, std::int64_t layer, std::int64_t d, std::int64_t step,
                           std::int64_t row, std::int64_t first, std::int64_t count) const {
    ZoneArguments<T> zone{};
    zone.mask = arguments(kind, p, layer, d, step, row, first, count);
    zone.training = noise.training;
    return zone;
  }
  // Its mask: ones with probability p, where the old state stays.
  void zoneout_mask(MaskKind kind, double p, std::int64_t layer, std::int64_t d, std::int64_t step,
                    std::int64_t row, std::int64_t count, T* out) const {
    draw(kind, p, T(1), T(0), layer, d, step, row, 0, count, out);
  }
  // Rows [first, first + count) of a copy of W_hh with dropped weights.
  void drop_weights(std::int64_t layer, std::int64_t d, const T* weight, std::int64_t columns,
                    std::int64_t first, std::int64_t count, T* out) const {
    for (std::int64_t row = first; row < first + count; ++row) {
      T* const to = out + row * columns;
      dropout(MaskKind::weight, noise.weight_drop, layer, d, 0, row, 0, columns, to);
      for (std::int64_t k = 0; k < columns; ++k) to[k] *= weight[row * columns + k];
    }
  }

 private:
  void draw(MaskKind kind, double p, T hit, T miss, std::int64_t layer, std::int64_t d, std::int64_t step,
            std::int64_t row, std::int64_t first, std::int64_t count, T* out) const {
    MaskArguments<T> mask = arguments(kind, p, layer, d, step, row, first, count);
    mask.out = out;
    mask.hit = hit;
    mask.miss = miss;
    kernels.mask(mask);
  }

  MaskArguments<T> arguments(MaskKind kind, double p, std::int64_t layer, std::int64_t d, std::int64_t step,
                             std::int64_t row, std::int64_t first, std::int64_t count) const {
    MaskArguments<T> mask{};
    mask.first = first;
    mask.count = count;
    mask.seed = seed;
    mask.row = static_cast<std::uint32_t>(row);
    mask.step = static_cast<std::uint32_t>(step);
    mask.stream = stream_of(kind, layer, d);
    mask.probability = p;
    return mask;
  }
};

template <class T>
void multiply_by(const T* mask, T* values, std::int64_t count) {
  for (std::int64_t u = 0; u < count; ++u) values[u] *= mask[u];
}

template <class T>
void add_to(const T* values, T* sum, std::int64_t count) {
  for (std::int64_t u = 0; u < count; ++u) sum[u] += values[u];
}

// Where the masks of whole sequences lie, a row for each batch row.
template <class T>
struct SequenceMasks {
  T* input = nullptr;      // per layer (B, input_stride)
  T* recurrent = nullptr;  // (L*D, B, state_stride)
  std::int64_t batch = 0, directions = 1, input_stride = 0, state_stride = 0;

  const T* input_row(std::int64_t layer, std::int64_t id) const {
    return input + (layer * batch + id) * input_stride;
  }
  const T* recurrent_row(std::int64_t layer, std::int64_t d, std::int64_t id) const {
    return recurrent + ((layer * directions + d) * batch + id) * state_stride;
  }

  template <class Arena>
  void lay_out(Arena& arena, const Config& config, const Noise& noise, std::int64_t rows) {
    batch = rows;
    directions = config.directions();
    input_stride = std::max(config.input_size, config.num_layers > 1 ? config.output_size() : 0);
    state_stride = config.state_size();
    const std::int64_t layers = config.num_layers;
    if (noise.input_dropout > 0) input = arena.template take<T>(layers * batch * input_stride);
    if (noise.recurrent_dropout > 0) {
      recurrent = arena.template take<T>(layers * directions * batch * state_stride);
    }
  }

  // Of one batch row.
  void draw(const Config& config, const Masks<T>& masks, std::int64_t id) const {
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      if (input) {
        masks.dropout(MaskKind::input, masks.noise.input_dropout, layer, 0, 0, id, 0,
                      config.layer_input_size(layer), input + (layer * batch + id) * input_stride);
      }
      for (std::int64_t d = 0; recurrent && d < directions; ++d) {
        masks.dropout(MaskKind::recurrent, masks.noise.recurrent_dropout, layer, d, 0, id, 0, state_stride,
                      recurrent + ((layer * directions + d) * batch + id) * state_stride);
      }
    }
  }
};

}  // namespace fastrnn
