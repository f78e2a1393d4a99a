// The network on the CPU: what its cells are made of, and its weights in the layout of the kernels.
#include <numeric>
#include <stdexcept>

#include "rnn_cpu_tape.h"

namespace fastrnn {

namespace {

CellPlan plan_of_cell(const Config& config) {
  constexpr CellPlan rnn = {1, {{StepPhase::rnn_tanh, 0, 1}, {}}, -1, 1, {0}, {0}, false};
  constexpr CellPlan lstm = {1, {{StepPhase::lstm, 0, 4}, {}}, -1, 4, {0, 1, 2, 3}, {0, 1, 2, 3}, false};
  constexpr CellPlan coupled = {1, {{StepPhase::lstm_coupled, 0, 3}, {}}, -1, 3, {0, 1, 2}, {0, 1, 2}, false};
  CellPlan plan = rnn;
  switch (config.cell) {
    case CellKind::rnn_tanh:
      return rnn;
    case CellKind::rnn_relu:
      plan.phase[0].phase = StepPhase::rnn_relu;
      return plan;
    case CellKind::rnn_sigmoid:
      plan.phase[0].phase = StepPhase::rnn_sigmoid;
      return plan;
    case CellKind::lstm:
      return lstm;
    case CellKind::lstm_peephole:
      plan = lstm;
      plan.phase[0].phase = StepPhase::lstm_peephole;
      return plan;
    case CellKind::lstm_coupled:
      return coupled;
    case CellKind::lstm_coupled_peephole:
      plan = coupled;
      plan.phase[0].phase = StepPhase::lstm_coupled_peephole;
      return plan;
    case CellKind::gru:
      return {1, {{StepPhase::gru, 0, 3}, {}}, 2, 4, {2, 0, 1, -1}, {-1, 0, 1, 2}, true};
    default:
      return {2,
              {{StepPhase::gru_reset_before_gates, 0, 2}, {StepPhase::gru_reset_before_candidate, 2, 1}},
              -1,
              3,
              {0, 1, 2},
              {0, 1, 2},
              true};
  }
}

// With layer norm a unit has a slot for each gate of either product.
CellPlan with_norm(CellPlan plan, int gates) {
  plan.separate_gate = -1;
  plan.slots = 2 * gates;
  for (int gate = 0; gate < gates; ++gate) {
    plan.input_gate[gate] = plan.recurrent_gate[gates + gate] = gate;
    plan.recurrent_gate[gate] = plan.input_gate[gates + gate] = -1;
  }
  return plan;
}

}  // namespace

CellPlan plan_of(const Config& config) {
  const CellPlan plan = plan_of_cell(config);
  return config.layer_norm ? with_norm(plan, config.gates()) : plan;
}

std::vector<std::int64_t> gradient_rooms(const Config& config, int lanes) {
  std::vector<std::int64_t> rooms;
  for (const Parameter& parameter : parameters_of(config)) {
    std::int64_t room = 1;
    for (const std::int64_t size : parameter.shape) room *= size;
    rooms.push_back(room);
  }
  const std::int64_t units = round_up(config.hidden_size, lanes);
  const std::int64_t state = round_up(config.state_size(), lanes);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (std::int64_t d = 0; d < config.directions(); ++d) {
      const ParameterIndices index = parameter_indices(config, layer, d);
      rooms[index.weight_ih] = units * config.gates() * round_up(config.layer_input_size(layer), lanes);
      rooms[index.weight_hh] = units * config.gates() * state;
      if (config.proj_size) rooms[index.weight_hr] = units * state;
    }
  }
  return rooms;
}

bool RowOrder::sort(const std::int64_t* row_lengths, std::int64_t steps, std::int64_t batch) {
  const auto rows = static_cast<std::size_t>(batch);
  if (!row_lengths && steps == equal_steps && rows == ids.size()) return false;
  equal_steps = row_lengths ? -1 : steps;
  ids.resize(rows);
  std::iota(ids.begin(), ids.end(), std::int64_t{0});
  lengths.assign(rows, steps);
  if (row_lengths) {
    std::stable_sort(ids.begin(), ids.end(),
                     [=](std::int64_t a, std::int64_t b) { return row_lengths[a] > row_lengths[b]; });
    for (std::size_t place = 0; place < rows; ++place) lengths[place] = row_lengths[ids[place]];
  }
  const std::int64_t longest = rows ? lengths[0] : 0;
  offset.assign(static_cast<std::size_t>(longest) + 1, 0);
  std::int64_t active = batch;
  for (std::int64_t s = 0; s < longest; ++s) {
    while (lengths[active - 1] <= s) --active;
    offset[s + 1] = offset[s] + active;
  }
  return true;
}

bool CpuWorkspace::set_partition(const Partition& p) {
  if (p == partition && barrier) return false;
  partition = p;
  slice_barriers.clear();
  group_barriers.clear();
  for (int i = 0; i < p.row_groups * p.directions; ++i) {
    slice_barriers.push_back(std::make_unique<Barrier>(p.slices));
  }
  for (int i = 0; i < p.row_groups; ++i) {
    group_barriers.push_back(std::make_unique<Barrier>(p.slices * p.directions));
  }
  barrier = std::make_unique<Barrier>(p.threads());
  return true;
}

void CpuWorkspace::deal(const RowOrder& order) {
  const std::size_t rows = order.ids.size(), groups = static_cast<std::size_t>(partition.row_groups);
  ids.resize(rows);
  lengths.resize(rows);
  std::size_t next = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    for (std::size_t place = group; place < rows; place += groups, ++next) {
      ids[next] = order.ids[place];
      lengths[next] = order.lengths[place];
    }
  }
}

template <class T>
void lay_out(Arena& arena, const Config& config, const CellPlan& plan, int lanes, CpuWeights<T>& weights) {
  const std::int64_t padded = round_up(config.hidden_size, lanes);
  const std::int64_t gates = config.gates();
  weights.directions.resize(static_cast<std::size_t>(config.num_layers * config.directions()));
  for (std::size_t i = 0; i < weights.directions.size(); ++i) {
    const auto layer = static_cast<std::int64_t>(i) / config.directions();
    DirectionWeights<T>& w = weights.directions[i];
    w.input = arena.take<T>(padded * gates * config.layer_input_size(layer));
    w.input_bias = arena.take<T>(padded * gates);
    for (int phase = 0; phase < plan.phases; ++phase) {
      w.recurrent[phase] = arena.take<T>(padded * plan.phase[phase].gates * config.state_size());
    }
    w.recurrent_bias = arena.take<T>(padded);
    w.peephole = arena.take<T>(config.has_peephole() ? 3 * padded : 0);
    w.projection = arena.take<T>(round_up(config.proj_size, lanes) * config.hidden_size);
    lay_out_norm(arena, config, lanes, w.norm);
  }
}

namespace {

// What acts lane by lane: biases and peepholes.
template <class T>
void pack_lanes(const Config& config, int separate_gate, int lanes, const T* const* parameters,
                const ParameterIndices& index, const DirectionWeights<T>& w, const Range& own) {
  const std::int64_t hidden = config.hidden_size;
  const int gates = config.gates();
  for (std::int64_t unit = own.first * lanes; unit < (own.first + own.count) * lanes; ++unit) {
    const std::int64_t panel = unit / lanes, lane = unit % lanes;
    const bool exists = unit < hidden;
    for (int gate = 0; gate < gates; ++gate) {
      const bool has_bias = exists && config.bias && !config.layer_norm;  // which adds them later
      const T from_input = has_bias ? parameters[index.bias_ih][gate * hidden + unit] : T(0);
      const T from_hidden = has_bias ? parameters[index.bias_hh][gate * hidden + unit] : T(0);
      const bool separate = gate == separate_gate;
      w.input_bias[(panel * gates + gate) * lanes + lane] = separate ? from_input : from_input + from_hidden;
      if (separate) w.recurrent_bias[unit] = from_hidden;
    }
    for (int row = 0; index.weight_peep >= 0 && row < 3; ++row) {
      const int from = peephole_row(config, row);
      w.peephole[(panel * 3 + row) * lanes + lane] =
          exists && from >= 0 ? parameters[index.weight_peep][from * hidden + unit] : T(0);
    }
  }
}

}  // namespace

template <class T>
void lay_out_norm(Arena& arena, const Config& config, int lanes, NormWeights<T>& norm) {
  if (!config.layer_norm) return;
  const std::int64_t padded = round_up(config.hidden_size, lanes);
  for (T** piece : {&norm.gain_x, &norm.shift_x, &norm.gain_h, &norm.shift_h}) {
    *piece = arena.take<T>(padded * config.gates());
  }
  for (T** piece : {&norm.gain_c, &norm.shift_c}) *piece = arena.take<T>(padded);
}

template <class T>
void pack_norm(const Config& config, int lanes, const T* const* parameters, const ParameterIndices& index,
               const NormWeights<T>& norm, const Range& own) {
  const std::int64_t hidden = config.hidden_size;
  const int gates = config.gates();
  const auto value = [&](int parameter, std::int64_t i) {
    return parameter >= 0 && i >= 0 ? parameters[parameter][i] : T(0);
  };
  for (std::int64_t unit = own.first * lanes; unit < (own.first + own.count) * lanes; ++unit) {
    for (int gate = 0; gate < gates; ++gate) {
      const std::int64_t at = (unit / lanes * gates + gate) * lanes + unit % lanes;
      const std::int64_t i = unit < hidden ? gate * hidden + unit : -1;
      norm.gain_x[at] = value(index.norm_ih_weight, i);
      norm.shift_x[at] = value(index.norm_ih_bias, i) + value(index.bias_ih, i);
      norm.gain_h[at] = value(index.norm_hh_weight, i);
      norm.shift_h[at] = value(index.norm_hh_bias, i) + value(index.bias_hh, i);
    }
    const std::int64_t i = unit < hidden ? unit : -1;
    norm.gain_c[unit] = value(index.norm_c_weight, i);
    norm.shift_c[unit] = value(index.norm_c_bias, i);
  }
}

template <class T>
void pack(const Config& config, const CellPlan& plan, const Kernels<T>& kernels, const T* const* parameters,
          const CpuWeights<T>& weights, int threads, int thread) {
  const std::int64_t hidden = config.hidden_size;
  const int lanes = kernels.lanes;
  const Range own = part_of(round_up(hidden, lanes) / lanes, threads, thread);
  const Range share = part_of(round_up(config.proj_size, lanes) / lanes, threads, thread);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (std::int64_t d = 0; d < config.directions(); ++d) {
      const ParameterIndices index = parameter_indices(config, layer, d);
      const DirectionWeights<T>& w = weights.directions[layer * config.directions() + d];
      kernels.pack({parameters[index.weight_ih], hidden, config.layer_input_size(layer), 0, config.gates(),
                    own.first, own.count, w.input});
      for (int i = 0; i < plan.phases; ++i) {
        const PhasePlan& phase = plan.phase[i];
        kernels.pack({parameters[index.weight_hh], hidden, config.state_size(), phase.first_gate, phase.gates,
                      own.first, own.count, w.recurrent[i]});
      }
      if (config.proj_size) {
        kernels.pack({parameters[index.weight_hr], config.proj_size, hidden, 0, 1, share.first, share.count,
                      w.projection});
      }
      pack_lanes(config, plan.separate_gate, lanes, parameters, index, w, own);
      if (config.layer_norm) pack_norm(config, lanes, parameters, index, w.norm, own);
    }
  }
}

template void lay_out_norm(Arena&, const Config&, int, NormWeights<float>&);
template void lay_out_norm(Arena&, const Config&, int, NormWeights<double>&);
template void pack_norm(const Config&, int, const float* const*, const ParameterIndices&,
                        const NormWeights<float>&, const Range&);
template void pack_norm(const Config&, int, const double* const*, const ParameterIndices&,
                        const NormWeights<double>&, const Range&);
template void lay_out(Arena&, const Config&, const CellPlan&, int, CpuWeights<float>&);
template void lay_out(Arena&, const Config&, const CellPlan&, int, CpuWeights<double>&);
template void pack(const Config&, const CellPlan&, const Kernels<float>&, const float* const*,
                   const CpuWeights<float>&, int, int);
template void pack(const Config&, const CellPlan&, const Kernels<double>&, const double* const*,
                   const CpuWeights<double>&, int, int);

namespace {

template <class T>
class CpuNetwork : public Network<T> {
 public:
  explicit CpuNetwork(const Config& config)
      : config_(config),
        plan_(plan_of(config)),
        kernels_(kernel_table().of<T>()),
        model_(config_, kernels_.lanes, sizeof(T)),
        rooms_(fastrnn::gradient_rooms(config_, kernels_.lanes)) {}

  std::unique_ptr<Weights<T>> pack(const T* const* parameters) const override {
    auto weights = std::make_unique<CpuWeights<T>>();
    Arena counting;
    lay_out(counting, config_, plan_, kernels_.lanes, *weights);
    Arena arena(weights->storage.reserve(counting.used()));
    lay_out(arena, config_, plan_, kernels_.lanes, *weights);

    constexpr std::size_t worth_a_team = 1 << 18;  // bytes
    constexpr double seconds_per_byte = 0.25e-9;   // of packing on one thread
    Team team(counting.used() > worth_a_team ? num_threads() : 1,
              static_cast<double>(counting.used()) * seconds_per_byte);
    team.run([&](int thread) {
      fastrnn::pack(config_, plan_, kernels_, parameters, *weights, team.size(), thread);
    });
    return weights;
  }

  std::unique_ptr<Workspace> make_workspace() const override { return std::make_unique<CpuWorkspace>(); }

  std::unique_ptr<Tape<T>> make_tape() const override { return std::make_unique<CpuTape<T>>(); }

  void forward(const Weights<T>* weights, Workspace& workspace, const Forward<T>& call) const override {
    run_forward(driver(workspace), static_cast<const CpuWeights<T>*>(weights), call);
  }

  std::size_t scratch_bytes() const override {
    CpuWeights<T> weights;
    Arena counting;
    lay_out(counting, config_, plan_, kernels_.lanes, weights);
    return counting.used();
  }

  void backward(Tape<T>& tape, Workspace& workspace, const Backward<T>& call) const override {
    run_backward(driver(workspace), static_cast<CpuTape<T>&>(tape), call);
  }

  std::vector<std::int64_t> gradient_rooms() const override { return rooms_; }

  std::unique_ptr<StepGradients<T>> make_step_gradients() const override {
    const bool plain = plan_.phases == 1 && !config_.has_peephole() && !config_.layer_norm &&
                       !config_.proj_size && config_.num_layers * config_.directions() == 1 &&
                       plain_output(config_, 0, 0);
    if (!plain) throw std::invalid_argument("step by step: expected one layer and direction of a plain cell");
    return fastrnn::make_step_gradients<T>();
  }

  void add_up(StepGradients<T>& steps, Workspace& workspace, T* const* gradients) const override {
    fastrnn::add_up(driver(workspace), steps, gradients);
  }

  double multiply_adds(std::int64_t steps, std::int64_t batch) const override {
    double total = 0;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      total += static_cast<double>(config_.layer_input_size(layer) + config_.state_size()) *
               static_cast<double>(config_.gates() * config_.hidden_size * config_.directions());
    }
    return total * static_cast<double>(steps) * static_cast<double>(batch);
  }

 private:
  Driver<T> driver(Workspace& workspace) const {
    return {config_, plan_, kernels_, model_, rooms_, static_cast<CpuWorkspace&>(workspace)};
  }

  const Config config_;
  const CellPlan plan_;
  const Kernels<T>& kernels_;
  const CostModel model_;
  const std::vector<std::int64_t> rooms_;
};

}  // namespace

template <class T>
std::unique_ptr<Network<T>> make_cpu_network(const Config& config) {
  return std::make_unique<CpuNetwork<T>>(config);
}

template std::unique_ptr<Network<float>> make_cpu_network(const Config&);
template std::unique_ptr<Network<double>> make_cpu_network(const Config&);

}  // namespace fastrnn
