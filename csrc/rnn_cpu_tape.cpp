#include "rnn_cpu_tape.h"

namespace fastrnn {

template <class T>
std::uint64_t checksum_of(const Kernels<T>& kernels, const T* values, std::int64_t count, int threads,
                          int thread) {
  constexpr std::int64_t block = 8192;
  std::uint64_t total = 0;
  const Range own = part_of((count + block - 1) / block, threads, thread);
  for (std::int64_t i = own.first; i < own.first + own.count; ++i) {
    const std::uint64_t factor = 2 * static_cast<std::uint64_t>(i) + 1;
    total += factor * kernels.checksum(values + i * block, std::min(block, count - i * block));
  }
  return total;
}

template <class T>
std::uint64_t checksum_of(const Config& config, const Kernels<T>& kernels, const T* const* parameters,
                          int threads, int thread) {
  std::uint64_t total = 0, factor = 1;
  for (const Parameter& parameter : parameters_of(config)) {
    std::int64_t count = 1;
    for (const std::int64_t size : parameter.shape) count *= size;
    total += factor * checksum_of(kernels, *parameters++, count, threads, thread);
    factor += 1u << 20;  // the sum within an array has smaller ones
  }
  return total;
}

template std::uint64_t checksum_of(const Kernels<float>&, const float*, std::int64_t, int, int);
template std::uint64_t checksum_of(const Kernels<double>&, const double*, std::int64_t, int, int);
template std::uint64_t checksum_of(const Config&, const Kernels<float>&, const float* const*, int, int);
template std::uint64_t checksum_of(const Config&, const Kernels<double>&, const double* const*, int, int);

namespace {

// Strides at which the rows of a tile do not share cache sets.
template <class T>
std::int64_t spread(std::int64_t stride, int lanes) {
  return stride * std::int64_t{sizeof(T)} % 2048 ? stride : stride + lanes;
}

}  // namespace

template <class T>
void CpuTape<T>::begin(const Config& config, const CellPlan& plan, int lanes, const Forward<T>& call) {
  guarded = call.guard;
  checksums.parameters = checksums.x = 0;
  steps = call.steps;
  batch = call.batch;
  directions = config.directions();
  state_size = config.state_size();
  x = call.x;
  noise = call.noise;
  seed = call.seed;
  order.sort(call.lengths, steps, batch);
  resets.clear();
  if (const View& given = call.resets; given.data) {
    resets.resize(static_cast<std::size_t>(steps * batch));
    for (std::int64_t t = 0; t < steps; ++t) {
      for (std::int64_t b = 0; b < batch; ++b) {
        resets[t * batch + b] = given.data[t * given.stride[0] + b * given.stride[1]];
      }
    }
  }
  Arena counting;
  lay_out(counting, config, plan, lanes, call);
  used = counting.used();
  Arena arena(storage.reserve(used));
  lay_out(arena, config, plan, lanes, call);
  std::fill_n(zeros, std::max(c_stride, h_stride), T(0));
}

template <class T>
void CpuTape<T>::lay_out(Arena& arena, const Config& config, const CellPlan& plan, int lanes,
                         const Forward<T>& call) {
  const std::int64_t padded = round_up(config.hidden_size, lanes);
  const std::int64_t width = config.output_size();
  slots_stride = spread<T>(plan.slots * padded, lanes);
  c_stride = spread<T>(padded, lanes);
  h_stride = round_up(state_size, lanes);
  zeros = arena.take<T>(std::max(c_stride, h_stride));
  chains.resize(static_cast<std::size_t>(config.num_layers * config.directions()));
  y.resize(static_cast<std::size_t>(config.num_layers));
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    Rows<T*>& out = y[layer];
    if (layer + 1 < config.num_layers) {
      out = {arena.take<T>(call.steps * call.batch * width), call.batch * width, width, false};
    } else {
      out = {call.y, call.y_step, call.y_row, false};
    }
    for (std::int64_t d = 0; d < config.directions(); ++d) {
      Chain<T>& kept = chains[layer * config.directions() + d];
      kept.slots = arena.take<T>(rows() * slots_stride);
      kept.c = config.has_cell_state() ? arena.take<T>(rows() * c_stride) : nullptr;
      const bool sees_candidate = config.has_peephole() && call.noise.zoneout_c > 0;
      kept.candidate = sees_candidate ? arena.take<T>(rows() * c_stride) : nullptr;
      kept.moments =
          config.layer_norm ? arena.take<T>(rows() * NormBackwardArguments<T>::moment_count) : nullptr;
      const bool exchanges = config.proj_size || plan.phases == 2;
      kept.exchange = exchanges ? arena.take<T>(rows() * c_stride) : nullptr;
      const bool plain = plain_output(config, call.noise.dropout, layer);
      kept.h = plain ? nullptr : arena.take<T>(call.steps * call.batch * state_size);
      kept.h0 = arena.take<T>(call.batch * h_stride);
      kept.c0 = config.has_cell_state() ? arena.take<T>(call.batch * c_stride) : nullptr;
    }
  }
}

template <class T>
Place CpuTape<T>::place_of(std::int64_t n) const {
  const auto& offset = order.offset;
  const auto s = std::upper_bound(offset.begin(), offset.end(), n) - offset.begin() - 1;
  return {s, n - offset[s], n};
}

template <class T>
void CpuTape<T>::advance(Place& at) const {
  ++at.n;
  if (++at.place < order.offset[at.s + 1] - order.offset[at.s]) return;
  at.place = 0;
  ++at.s;
}

template <class T>
bool CpuTape<T>::cut_before(int d, std::int64_t s, std::int64_t place) const {
  if (resets.empty() || (d == 1 && s == 0)) return false;
  // The cut lies before the later of two times, whichever a direction takes first.
  const std::int64_t later = d == 1 ? order.lengths[place] - s : s;
  return resets[later * batch + order.ids[place]];
}

template <class T>
const T* CpuTape<T>::h_before(std::int64_t layer, int d, std::int64_t s, std::int64_t place) const {
  const std::int64_t id = order.ids[place];
  if (cut_before(d, s, place)) return zeros;
  if (s == 0) return chain(layer, d).h0 + id * h_stride;
  const std::int64_t t = d == 1 ? order.lengths[place] - s : s - 1;
  if (const T* h = chain(layer, d).h) return h + (t * batch + id) * state_size;
  const Rows<T*>& output = y[layer];
  return output.base + t * output.step + id * output.row + d * state_size;
}

template <class T>
const T* CpuTape<T>::c_before(std::int64_t layer, int d, std::int64_t s, std::int64_t place) const {
  if (cut_before(d, s, place)) return zeros;
  if (s == 0) return chain(layer, d).c0 + order.ids[place] * c_stride;
  return chain(layer, d).c + (order.offset[s - 1] + place) * c_stride;
}

template <class T>
const T* CpuTape<T>::input(std::int64_t layer, std::int64_t t, std::int64_t id) const {
  if (layer == 0) return reinterpret_cast<const T*>(x.data + t * x.stride[0] + id * x.stride[1]);
  const Rows<T*>& output = y[layer - 1];
  return output.base + t * output.step + id * output.row;
}

template struct CpuTape<float>;
template struct CpuTape<double>;

}  // namespace fastrnn
