// What happens to whole sequences on a device, element by element: masks, outputs of layers, sums over rows.
// Row t * B + b of a sequence is batch row b at time t. An output is the merge of the directions, plus the
// residual, times dropout, in this order.
#pragma once

#include "steps_cells.h"

namespace fastrnn::FASTRNN_TARGET {

// What the products with W_ih read: (T * B, columns). Nothing of what lies past a row's length.
template <class T, class M>
struct MaskInput {
  Frame frame;
  std::int64_t columns;
  const T* from;
  T* to;
  Draw mask;

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const std::int64_t t = row / frame.batch, b = row % frame.batch, at = row * columns + u;
    M value(0);
    if (frame.active(t, b)) {
      value = static_cast<M>(from[at]);
      if (mask.probability > 0) value *= mask.template factor<M>(0, b, u);
    }
    to[at] = static_cast<T>(value);
  }
};

// How outputs of the directions become that of a layer.
struct Joining {
  Merge merge = Merge::concat;
  bool merges = false;
  std::int64_t state = 0, width = 0;  // R, and columns of the output
  Draw dropout;
};

// NaN of either side propagates.
template <class M>
FASTRNN_HD inline M merged(Merge merge, M ahead, M back) {
  switch (merge) {
    case Merge::sum:
      return ahead + back;
    case Merge::mean:
      return (ahead + back) / M(2);
    case Merge::max:
      return ahead > back || ahead != ahead ? ahead : back;
    default:
      return ahead * back;
  }
}

// (T * B, width)
template <class T, class M>
struct JoinOutputs {
  Frame frame;
  Joining joining;
  const T* hidden;    // (T * B, D * R)
  const T* residual;  // (T * B, width), or null
  T* output;

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const std::int64_t t = row / frame.batch, b = row % frame.batch, at = row * joining.width + u;
    M value(0);
    if (frame.active(t, b)) {
      if (joining.merges) {
        const T* const h = hidden + row * 2 * joining.state + u;
        value = merged(joining.merge, static_cast<M>(h[0]), static_cast<M>(h[joining.state]));
      } else {
        value = static_cast<M>(hidden[at]);
      }
      if (residual) value += static_cast<M>(residual[at]);
      if (joining.dropout.probability > 0) value *= joining.dropout.template factor<M>(t, b, u);
    }
    output[at] = static_cast<T>(value);
  }
};

// (T * B, width)
template <class T, class M>
struct SplitGradient {
  Frame frame;
  Joining joining;
  const T* grad_output;
  const T* hidden;  // as JoinOutputs; merges by max and mul only
  T* grad_hidden;   // (T * B, D * R)
  T* passed;        // (T * B, width): what a residual passes on; may be grad_output; null: none

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const std::int64_t t = row / frame.batch, b = row % frame.batch, at = row * joining.width + u;
    M grad(0);
    if (frame.active(t, b)) {
      grad = static_cast<M>(grad_output[at]);
      if (joining.dropout.probability > 0) grad *= joining.dropout.template factor<M>(t, b, u);
    }
    if (passed) passed[at] = static_cast<T>(grad);
    if (!joining.merges) {
      grad_hidden[at] = static_cast<T>(grad);
      return;
    }
    const std::int64_t of_ahead = row * 2 * joining.state + u, of_back = of_ahead + joining.state;
    M to_ahead = grad, to_back = grad;
    if (joining.merge == Merge::mean) to_ahead = to_back = grad / M(2);
    if (joining.merge == Merge::max || joining.merge == Merge::mul) {
      const M ahead = static_cast<M>(hidden[of_ahead]), back = static_cast<M>(hidden[of_back]);
      if (joining.merge == Merge::mul) {
        to_ahead = grad * back;
        to_back = grad * ahead;
      } else {
        // Where both are the maximum, each gets half, as in torch.
        const M share = ahead == back ? M(0.5) : ahead > back ? M(1) : M(0);
        to_ahead = share * grad;
        to_back = (M(1) - share) * grad;
      }
    }
    grad_hidden[of_ahead] = static_cast<T>(to_ahead);
    grad_hidden[of_back] = static_cast<T>(to_back);
  }
};

// From the gradient of the masked input to that of the input: (T * B, columns), in place.
template <class T, class M>
struct JoinInputGradient {
  Frame frame;
  std::int64_t columns;
  Draw mask;
  const T* passed;  // by a residual, or null
  T* grad;

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const std::int64_t b = row % frame.batch, at = row * columns + u;
    M value = static_cast<M>(grad[at]);
    if (mask.probability > 0) value *= mask.template factor<M>(0, b, u);
    if (passed) value += static_cast<M>(passed[at]);
    grad[at] = static_cast<T>(value);
  }
};

// A weight matrix with dropped weights, or its gradient: (rows, columns). `to` may be `from`.
template <class T, class M>
struct DropWeights {
  std::int64_t columns;
  Draw mask;
  const T* from;
  T* to;

  FASTRNN_HD void operator()(std::int64_t row, std::int64_t u) const {
    const std::int64_t at = row * columns + u;
    to[at] = static_cast<T>(static_cast<M>(from[at]) * mask.template factor<M>(0, row, u));
  }
};

// Sums over rows in an order that the shape alone decides: chunks of rows first, then the chunks.
template <class In, class M>
struct SumChunks {
  const In* from;
  std::int64_t rows, chunk_rows, stride, columns;
  M* partial;  // (chunks, columns)

  FASTRNN_HD void operator()(std::int64_t chunk, std::int64_t u) const {
    const std::int64_t first = chunk * chunk_rows;
    const std::int64_t end = first + chunk_rows < rows ? first + chunk_rows : rows;
    M sum(0);
    for (std::int64_t row = first; row < end; ++row) sum += static_cast<M>(from[row * stride + u]);
    partial[chunk * columns + u] = sum;
  }
};

// Into up to two places.
template <class T, class M>
struct AddChunks {
  const M* partial;
  std::int64_t chunks, columns;
  T *to, *also;

  FASTRNN_HD void operator()(std::int64_t, std::int64_t u) const {
    M sum(0);
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * columns + u];
    to[u] = static_cast<T>(sum);
    if (also) also[u] = static_cast<T>(sum);
  }
};

}  // namespace fastrnn::FASTRNN_TARGET
